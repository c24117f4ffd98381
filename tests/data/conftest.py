"""One row in each known format, with what must come out of it; and helpers to write files of rows."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class FormatCase(NamedTuple):
    format: str
    row: dict[str, Any]
    messages: list[tuple[str, str]]
    ability: str | None
    meta: dict[str, Any]


QA = [("user", "中国的首都是哪里？"), ("assistant", "北京。")]
QAQA = [("user", "你好"), ("assistant", "你好！"), ("user", "一加一等于几？"), ("assistant", "二。")]
SYSTEM = ("system", "你是数学老师。")

CASES = [
    FormatCase(
        "doit",
        {
            "messages": [{"role": "user", "content": "水的化学式？"}, {"role": "assistant", "content": "H₂O"}],
            "type": "biology",
            "question_format": 1,
            "choices": ["H₂O", "CO₂", "你好"],
            "answer": "H₂O",
        },
        [("user", "水的化学式？"), ("assistant", "H₂O")],
        "biology",
        {"question_format": 1, "choices": ["H₂O", "CO₂", "你好"], "answer": "H₂O"},
    ),
    FormatCase(
        "openai_chat",
        {
            "messages": [
                {"role": "developer", "content": SYSTEM[1]},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "中国的首都"}, {"type": "text", "text": "是哪里？"}],
                },
                {"role": "assistant", "content": "北京。", "weight": 1},
            ],
            "tools": [],
            "ability": "geography",
        },
        [SYSTEM, *QA],
        "geography",
        {},
    ),
    FormatCase(
        "magpie",
        {
            "uuid": "e1",
            "conversations": [{"from": "human", "value": QA[0][1]}, {"from": "gpt", "value": QA[1][1]}],
            "instruction": QA[0][1],
            "response": QA[1][1],
            "task_category": "Information seeking",
            "difficulty": None,
        },
        QA,
        None,
        {
            "uuid": "e1",
            "instruction": QA[0][1],
            "response": QA[1][1],
            "task_category": "Information seeking",
            "difficulty": None,
        },
    ),
    FormatCase(
        "belle_conversations",
        {
            "id": "16012449",
            "conversations": [
                {"from": ("human", "assistant")[n % 2], "value": content} for n, (_, content) in enumerate(QAQA)
            ],
        },
        QAQA,
        None,
        {"row_id": "16012449"},
    ),
    FormatCase(
        "sharegpt",
        {
            "id": 7,
            "conversations": [
                {"from": "system", "value": SYSTEM[1]},
                {"from": "user", "value": "你好"},
                {"from": "bot", "value": "你好！"},
                {"from": "Human", "value": "一加一等于几？"},
                {"from": "gpt", "value": "二。"},
            ],
            "lang": "zh",
        },
        [SYSTEM, *QAQA],
        None,
        {"row_id": 7, "lang": "zh"},
    ),
    FormatCase(
        "swift",
        {
            "system": SYSTEM[1],
            "conversation": [
                {"human": "你好", "assistant": "你好！"},
                {"human": "一加一等于几？", "assistant": "二。"},
            ],
        },
        [SYSTEM, *QAQA],
        None,
        {},
    ),
    FormatCase(
        "conversation",
        {
            "conversation": [
                {"role": "user", "content": "你好"},
                {"role": "assistant", "content": "你好！"},
                {"role": "user", "content": "一加一等于几？"},
                {"role": "assistant", "content": "二。"},
            ],
            "conversation_id": "甲",
            "turn": 2,
        },
        QAQA,
        None,
        {"conversation_id": "甲", "turn": 2},
    ),
    FormatCase(
        "query_response",
        {"system": SYSTEM[1], "history": [["你好", "你好！"]], "query": "一加一等于几？", "response": "二。", "n": 1.5},
        [SYSTEM, *QAQA],
        None,
        {"n": 1.5},
    ),
    FormatCase("firefly", {"kind": "NLI", "input": QA[0][1], "target": QA[1][1]}, QA, None, {"kind": "NLI"}),
    FormatCase(
        "belle_multi_turn",
        {
            "instruction": "Human:你好\nAssistant：你好！\n\nHuman: 一加一等于几？ \nAssistant:\n",
            "input": "",
            "output": "二。",
        },
        QAQA,
        None,
        {},
    ),
    FormatCase(
        "coig_cqia",
        {
            "instruction": QA[0][1],
            "input": "",
            "output": QA[1][1],
            "task_type": {"major": ["问答"], "minor": ["地理"]},
            "domain": ["地理"],
            "answer_from": "human",
            "human_verified": True,
        },
        QA,
        None,
        {
            "task_type": {"major": ["问答"], "minor": ["地理"]},
            "domain": ["地理"],
            "answer_from": "human",
            "human_verified": True,
        },
    ),
    FormatCase(
        "alpaca_zh",
        {
            "instruction_zh": "翻译成英语",
            "input_zh": "苹果",
            "output_zh": "apple",
            "instruction": "Translate",
            "output": "x",
        },
        [("user", "翻译成英语\n苹果"), ("assistant", "apple")],
        None,
        {"instruction": "Translate", "output": "x"},
    ),
    FormatCase(
        "alpaca",
        {"instruction": "翻译成英语：", "input": "苹果", "output": "apple"},
        [("user", "翻译成英语：\n苹果"), ("assistant", "apple")],
        None,
        {},
    ),
    FormatCase(
        "dolly",
        {"instruction": "文中的河叫什么？", "context": "磨坊在湘江边。", "response": "湘江。", "category": "closed_qa"},
        [("user", "文中的河叫什么？\n磨坊在湘江边。"), ("assistant", "湘江。")],
        None,
        {"category": "closed_qa"},
    ),
    FormatCase("instruction_response", {"instruction": QA[0][1], "response": QA[1][1]}, QA, None, {}),
    FormatCase(
        "prompt_completion", {"prompt": QA[0][1], "completion": QA[1][1], "label": True}, QA, None, {"label": True}
    ),
    FormatCase(
        "question_answer",
        {"context": "磨坊在湘江边。", "question": "什么河？", "answer": "湘江。"},
        [("user", "磨坊在湘江边。\n什么河？"), ("assistant", "湘江。")],
        None,
        {},
    ),
    FormatCase("query_answer", {"query": QA[0][1], "answer": QA[1][1]}, QA, None, {}),
    FormatCase("input_output", {"input": QA[0][1], "output": QA[1][1]}, QA, None, {}),
]


@pytest.fixture
def format_names() -> list[str]:
    return [case.format for case in CASES]


@pytest.fixture(params=CASES, ids=[case.format for case in CASES])
def format_case(request: pytest.FixtureRequest) -> FormatCase:
    return request.param


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON Lines; a row that is text already is written as it stands."""

    def write(rows: Sequence[Any], name: str = "数据.jsonl", encoding: str = "utf-8") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
        return path

    return write
