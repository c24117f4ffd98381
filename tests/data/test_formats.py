from typing import Any

import pytest

from deft.data.formats import FORMATS, find_format, parse_row, split_belle
from deft.errors import UserError
from deft.types import Message, content_id

ASK = {"role": "user", "content": "问"}
REPLY = {"role": "assistant", "content": "答"}


def alpaca(**changes: Any) -> dict[str, Any]:
    return {"instruction": "写一首诗", "input": "", "output": "床前明月光"} | changes


def prompt_of(row: dict[str, Any]) -> str:
    return parse_row(row).messages[-2].content


def test_every_format_has_a_case(format_names: list[str]) -> None:
    assert format_names == [known.name for known in FORMATS]


def test_format_is_found_and_parsed(format_case: Any) -> None:
    assert find_format(format_case.row).name == format_case.format
    parsed = parse_row(format_case.row)
    assert [(message.role, message.content) for message in parsed.messages] == format_case.messages
    assert (parsed.ability, parsed.meta) == (format_case.ability, format_case.meta)


@pytest.mark.parametrize("empty", [None, "", "  \n"])
def test_empty_input_and_system_are_absent(empty: str | None) -> None:
    parsed = parse_row(alpaca(input=empty, system=empty))
    assert [message.role for message in parsed.messages] == ["user", "assistant"]
    assert prompt_of(alpaca(input=empty)) == "写一首诗"


def test_alpaca_prompt_may_stand_in_the_input_alone() -> None:
    assert prompt_of(alpaca(instruction="", input="题目：春天")) == "题目：春天"


def test_alpaca_may_have_system_and_history() -> None:
    parsed = parse_row(alpaca(system="你是诗人", history=[["你好", "你好！"]]))
    assert [message.content for message in parsed.messages] == ["你是诗人", "你好", "你好！", "写一首诗", "床前明月光"]
    assert parsed.meta == {}


@pytest.mark.parametrize(
    ("instruction", "turns"),
    [
        ("Human:你好Assistant:您好Human:再见Assistant:", [("human", "你好"), ("assistant", "您好"), ("human", "再见")]),
        (
            "Human：你好\nAssistant：您好\nHuman：再见\nAssistant：",
            [("human", "你好"), ("assistant", "您好"), ("human", "再见")],
        ),
        ("\n Human: 只有一问\nAssistant: ", [("human", "只有一问")]),
        ("Human:甲\nAssistant:乙\nHuman:丙", [("human", "甲"), ("assistant", "乙"), ("human", "丙")]),
        ("Human:解释 Human: 这个词\nAssistant:", [("human", "解释 Human: 这个词")]),
    ],
)
def test_belle_turns(instruction: str, turns: list[tuple[str, str]]) -> None:
    assert split_belle(instruction) == turns


@pytest.mark.parametrize(
    "instruction", ["Human:甲\nHuman:乙\nAssistant:", "Human:\nAssistant:乙\nHuman:丙\nAssistant:"]
)
def test_belle_turns_out_of_order_are_an_error(instruction: str) -> None:
    with pytest.raises(UserError, match="Human and Assistant do not take turns"):
        parse_row(alpaca(instruction=instruction))


def test_text_that_only_mentions_human_is_alpaca() -> None:
    assert find_format(alpaca(instruction="什么是 Human:Assistant: 格式？")).name == "alpaca"


def test_ability_comes_from_type_before_ability_and_from_nothing_else() -> None:
    assert parse_row(alpaca(type="数学", ability="其他")).ability == "数学"
    assert parse_row(alpaca(type="数学", ability="其他")).meta == {"ability": "其他"}
    assert parse_row(alpaca(type=None, ability="推理")).ability == "推理"
    assert parse_row(alpaca(kind="诗", task_category="写作")).ability is None
    with pytest.raises(UserError, match=r"the ability \(`type`\) is not text"):
        parse_row(alpaca(type=3))


def test_own_id_is_not_kept_and_a_foreign_id_is() -> None:
    own = content_id([Message(role="user", content="写一首诗"), Message(role="assistant", content="床前明月光")])
    assert parse_row(alpaca(id=own)).meta == {}
    assert parse_row(alpaca(id="x-1")).meta == {"row_id": "x-1"}
    assert parse_row(alpaca(id="x-1", row_id=5)).meta == {"row_id": 5, "id": "x-1"}


def test_foreign_meta_object_stays_one() -> None:
    row = {"messages": [ASK, REPLY], "id": "7", "meta": {"来源": "网页"}}
    assert parse_row(row).meta == {"row_id": "7", "meta": {"来源": "网页"}}


BROKEN = [
    ({"prompt": "问", "reply": "答"}, "the row is not in any known format", "keys prompt, reply"),
    ({}, "the row is not in any known format", "keys (none)"),
    ([1], "the row is not a JSON object", [1]),
    (alpaca(output=""), "empty reply", None),
    (alpaca(output=None), "empty reply", None),
    (alpaca(output=42), "the content of the assistant message is not text", 42),
    (alpaca(instruction=["写"]), "`instruction` is not text", ["写"]),
    (alpaca(instruction=" "), "empty user message", None),
    (alpaca(output="诗\0"), "the assistant message holds a NUL character", "诗\0"),
    (alpaca(history="无"), "`history` is not a list", "无"),
    (alpaca(history=[["只有问"]]), "an entry of `history` is not a question and a reply", ["只有问"]),
    ({"messages": []}, "the conversation has no messages", None),
    ({"messages": [ASK]}, "the last message should be from the assistant", "user"),
    ({"messages": [REPLY]}, "message 1 should be from the user", "assistant: 答"),
    ({"messages": [ASK, ASK, REPLY]}, "message 2 should be from the assistant", "user: 问"),
    ({"messages": [["问", "答"]]}, "a turn has no `role`", ["问", "答"]),
    ({"messages": [{"content": "问"}]}, "a turn has no `role`", {"content": "问"}),
    ({"messages": [{"role": "老师", "content": "问"}]}, "unknown role", "老师"),
    ({"messages": [{"role": ["user"], "content": "问"}]}, "unknown role", ["user"]),
    ({"messages": [ASK, {"role": "tool", "content": "3"}]}, "message 2 should be from the assistant", "tool: 3"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "图"}]}, REPLY]},
        "a part of the content is not text",
        "type image_url",
    ),
    (
        {"messages": [{"role": "system", "content": "甲"}, ASK, REPLY], "system": "乙"},
        "the row has two system messages",
        "乙",
    ),
    ({"conversations": [{"from": "human", "value": "问"}]}, "the last message should be from the assistant", "user"),
    ({"conversations": [{"from": "observation", "value": "晴"}]}, "message 1 should be from the user", "tool: 晴"),
    (alpaca(instruction="Human:甲\nAssistant:", input="乙"), "a multi-turn instruction has an `input` too", "乙"),
]


@pytest.mark.parametrize(
    ("row", "what", "got"), BROKEN, ids=[f"{n}-{what[:30]}" for n, (_, what, _) in enumerate(BROKEN)]
)
def test_wrong_rows_say_why(row: Any, what: str, got: object) -> None:
    with pytest.raises(UserError) as caught:
        parse_row(row)
    assert (caught.value.what, caught.value.got) == (what, got)


def test_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        parse_row({"甲": "1+1"})
    assert caught.value.fix == "the known formats are " + ", ".join(known.name for known in FORMATS)


def test_unknown_format_names_the_nearest_one_and_the_flag_that_would_read_it() -> None:
    with pytest.raises(UserError) as caught:
        parse_row({"编号": 3, "instruction": "写一首诗", "回答": "床前明月光"})
    assert caught.value.got == "keys 编号, instruction, 回答"
    assert caught.value.fix == (
        "the nearest format is alpaca, for which it lacks output; "
        "if these are its prompt and reply: --fields prompt=instruction,response=回答"
    )
