"""Rows as people have them: loss flags, reasoning, tools, in every layout; each with what it should be read as.

A case of `cases/rows.jsonl`, or of `cases/edges.jsonl` with what is rare or wrong, is read, compared, written, and read
back.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft.data.read import make_example, read_examples
from deft.data.write import message_rows, write_examples
from deft.errors import UserError
from deft.types import Example, Message

CASES = [
    json.loads(line)
    for file in sorted((Path(__file__).parent / "cases").glob("*.jsonl"))
    for line in file.read_text(encoding="utf-8").splitlines()
]
READ = [case for case in CASES if "messages" in case["expected"]]
REFUSED = [case for case in CASES if "refused" in case["expected"]]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "cases" / "rows.jsonl"


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def written(row: dict[str, Any]) -> Path:
        file = tmp_path / "行.jsonl"
        file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        return file

    return written


@pytest.mark.parametrize("case", READ, ids=[case["case"] for case in READ])
def test_a_row_is_read_as_it_is_meant(case: dict[str, Any], file_of: Callable[[dict[str, Any]], Path]) -> None:
    [example] = read_examples(file_of(case["row"])).examples
    assert message_rows(example) == case["expected"]["messages"]
    assert list(example.tools) == case["expected"].get("tools", [])


@pytest.mark.parametrize("case", REFUSED, ids=[case["case"] for case in REFUSED])
def test_a_row_that_cannot_be_meant_is_refused_with_its_place(
    case: dict[str, Any], file_of: Callable[[dict[str, Any]], Path]
) -> None:
    file = file_of(case["row"])
    with pytest.raises(UserError) as refusal:
        read_examples(file)
    assert case["expected"]["refused"] in refusal.value.what
    assert refusal.value.where == f"{file}:1"
    assert refusal.value.fix


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_written_is_read_back_equal(suffix: str, tmp_path: Path) -> None:
    examples = [make_example(case["row"]) for case in READ]
    write_examples(tmp_path / f"一起{suffix}", examples)
    together = read_examples(tmp_path / f"一起{suffix}").examples
    assert [replace(one, source="") for one in together] == examples
    for number, example in enumerate(examples):
        file = tmp_path / f"{number}{suffix}"
        write_examples(file, [example])
        [again] = read_examples(file).examples
        assert replace(again, source="") == example, READ[number]["case"]


CALL = {"name": "天气", "arguments": {"城市": "北京", "日期": None}}
CALLED = {"type": "function", "function": {"name": "天气", "arguments": '{"城市": "北京"}'}}
TOOL = {"type": "function", "function": {"name": "天气", "parameters": {"type": "object"}}}
ASKED, SUNNY = {"role": "user", "content": "北京天气？"}, {"role": "assistant", "content": "晴天。"}


def test_cells_of_a_table_say_the_same(tmp_path: Path) -> None:
    cells = [
        {"问题": "一加一？", "回答": "二", "思考": "数一数", "weight": "0.5", "tools": str([TOOL])},
        {"问题": "一加二？", "回答": "<think>数</think>三", "思考": "", "weight": "", "tools": "[]"},
    ]
    with (tmp_path / "表.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, cells[0])
        table.writeheader()
        table.writerows(cells)
    text = (tmp_path / "表.csv").read_text(encoding="utf-8")
    (tmp_path / "表.csv").write_text(text.replace("思考", "reasoning", 1), encoding="utf-8")
    for fields in ([], ["prompt=问题,response=回答"]):  # found by the names of the columns, or named
        first, second = read_examples(tmp_path / "表.csv", fields=fields).examples
        assert [(one.reasoning, one.weight) for one in first.messages] == [("", 1), ("数一数", 0.5)]
        assert first.tools == (TOOL,) and dict(first.meta) == {}
        assert [(one.content, one.reasoning) for one in second.messages] == [("一加二？", ""), ("三", "数")]
        assert second.tools == () and dict(second.meta) == {}


def test_keys_that_a_parquet_table_filled_up_are_absent(tmp_path: Path) -> None:
    """A table gives each object the keys of all; null is then no value of an argument."""
    calls = [{"function": CALL}]
    turns = [ASKED, {"role": "assistant", "tool_calls": calls, "weight": 0.0}, {"role": "tool", "content": "晴"}, SUNNY]
    properties = {"name": "时间", "parameters": {"type": "object", "properties": {"地": {"type": "string"}}}}
    rows = [{"messages": turns, "tools": [TOOL["function"]]}, {"messages": [ASKED, SUNNY], "tools": [properties]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "表.parquet")
    first, second = read_examples(tmp_path / "表.parquet").examples
    called = {"role": "assistant", "content": "", "tool_calls": [CALLED], "weight": 0.0}
    assert message_rows(first) == [ASKED, called, {"role": "tool", "content": "晴"}, SUNNY]
    assert first.tools == (TOOL,)
    assert second.tools == ({"type": "function", "function": properties},)


def test_what_told_how_to_write_calls_is_kept_beside(tmp_path: Path) -> None:
    system = f"你是助手。\n<tools>{json.dumps(TOOL)}</tools>\n先查再答。\n<tool_call>{{…}}</tool_call>\n用中文。"
    row = {"messages": [{"role": "system", "content": system}, ASKED, SUNNY]}
    example = make_example(row)
    assert example.messages[0].content == "你是助手。\n用中文。"
    assert dict(example.meta) == {"tool_prompt": "先查再答。\n<tool_call>{…}</tool_call>"}
    write_examples(tmp_path / "出.jsonl", [example])
    assert replace(read_examples(tmp_path / "出.jsonl").examples[0], source="") == example


def test_a_weight_is_the_same_number_however_it_is_written() -> None:
    ids = {
        Example.create(
            [
                Message(role="user", content="一加一？"),
                Message(role="assistant", content="三", weight=weight),
                Message(role="user", content="再想想"),
                Message(role="assistant", content="二"),
            ]
        ).id
        for weight in (0, 0.0, False)
    }
    assert len(ids) == 1


def test_the_rows_that_users_reported() -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not there")
    rows: dict[str, Any] = {}
    for line in SHARED.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        try:
            rows[case["case"]] = [(one.role, one.content, one.weight) for one in make_example(case["row"]).messages]
        except UserError as error:
            rows[case["case"]] = error.what
    spider = [("user", "How many legs has a spider?", 1), ("assistant", "Six.", 0), ("user", "Are you sure?", 1)]
    corrected = [*spider, ("assistant", "No, eight.", 1)]
    less = [spider[0], ("assistant", "Six.", 0.1), *corrected[2:]]
    passage = "Answer with the passage.\nThe mill stands on the Sieg.\nWhich river?"
    mill = "Which river does the text name?\nThe old mill stands on the Sieg, upstream of the weir."
    rain = [("system", "Answer like a pirate.", 1), ("user", "What is rain?", 1)]
    assert rows == {
        "dolly": [("user", mill, 1), ("assistant", "The Sieg.", 1)],
        "ff_instr": [("user", "Translate into French.\nthe river", 1), ("assistant", "la rivière", 1)],
        "inst_question": [("user", passage, 1), ("assistant", "Sieg", 1)],
        "alpaca_sysprompt": [*rain, ("assistant", "Arr, water from above.", 1)],
        "flag_train_false": corrected,
        "flag_masked": corrected,
        "flag_weight_half": less,
        "kto": "a reply is marked as bad (`label`)",
        "mm_lf": "a row with images, sound or film is not text alone (`images`)",
    }
