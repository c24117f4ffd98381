"""JSON in every layout that files come in, whole and spoiled, and without bound."""

import json
from pathlib import Path
from typing import Any

import pytest

from deft.data import bounds, jsonrows
from deft.data.read import ReadResult, read_examples
from deft.errors import UserError

ROWS = [{"instruction": f"第{n}题：{n}+1等于几？", "input": "", "output": f"{n + 1}"} for n in range(3)]
TURNS = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
FROMS = [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "你好！"}]


def text_of(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read_text(text: str, **options: Any) -> ReadResult:
        (tmp_path / "甲.json").write_text(text, encoding="utf-8")
        return read_examples(tmp_path / "甲.json", **options)

    return read_text


def lines(result: ReadResult) -> list[int]:
    return [int(one.source.rpartition(":")[2]) for one in result.examples]


def replies(result: ReadResult) -> list[str]:
    return [one.messages[-1].content for one in result.examples]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n".join(text_of(row, 1) for row in ROWS), [1, 6, 11]),
        (text_of(ROWS[:1]) + "\n\n" + text_of(ROWS[1:]), [1, 3, 3]),
        ("\n".join(text_of([row]) for row in ROWS), [1, 2, 3]),
        (text_of({"data": ROWS}), [1, 1, 1]),
        (text_of({"rows": ROWS}, 1), [3, 8, 13]),
        (text_of({"version": "1.0", "n": 3, "train": ROWS}, 1), [5, 10, 15]),
        (text_of({"info": {"语言": "zh"}, "examples": ROWS}), [1, 1, 1]),
        (text_of({"features": [], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)]}), [1, 1, 1]),
    ],
    ids=["pretty", "two_arrays", "array_a_line", "data", "rows_pretty", "after_scalars", "after_object", "viewer"],
)
def test_every_layout_gives_the_same_rows_with_their_lines(read: Any, text: str, expected: list[int]) -> None:
    result = read(text)
    assert replies(result) == ["1", "2", "3"]
    assert lines(result) == expected


@pytest.mark.parametrize(
    "text",
    [
        text_of(TURNS),
        text_of([TURNS]),
        text_of(TURNS) + "\n" + text_of(FROMS),
        text_of({"data": [FROMS]}),
        text_of({"id": 7, "items": FROMS}),
    ],
)
def test_a_bare_list_of_turns_is_one_conversation(read: Any, text: str) -> None:
    result = read(text)
    assert set(replies(result)) == {"你好！"}
    assert len(result.examples) == 1 + text.count("\n")


@pytest.mark.parametrize("indent", [None, 1])
def test_fields_beside_a_list_of_turns_are_fields_of_the_row(read: Any, indent: int | None) -> None:
    [row] = read(text_of({"id": "甲", "system": "你是海盗", "items": FROMS}, indent)).examples
    assert [one.content for one in row.messages] == ["你是海盗", "你好", "你好！"]
    with pytest.raises(UserError, match=r"marked as bad \(`label`\)"):
        read(text_of({"label": False, "items": FROMS}, indent))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "beside", [{"definition": "译成英语"}, {"system": "你是海盗"}, {"label": False}, {"tools": "[{}]"}]
)
@pytest.mark.parametrize("is_first", [False, True])
def test_what_would_be_lost_beside_the_rows_is_refused(
    read: Any, beside: dict[str, Any], indent: int | None, is_first: bool
) -> None:
    rows = {"data": ROWS}
    with pytest.raises(UserError, match="beside the list of rows") as caught:
        read(text_of(beside | rows if is_first else rows | beside, indent))
    assert "write it into each of the rows" in str(caught.value.fix)


def test_what_stands_beside_the_rows_is_told(read: Any) -> None:
    for text in (text_of({"版本": 1, "data": ROWS, "作者": {"甲": 1}}), text_of({"说明": {}, "data": ROWS, "页": [1]})):
        result = read(text)
        assert len(result.examples) == 3
        [remark] = result.sources[0].remarks
        assert remark.startswith("beside `data`, not used: ") and remark.count(",") == 2


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("first", [{}, {"info": {}}])
def test_several_lists_are_refused(read: Any, indent: int | None, first: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        read(text_of(first | {"train": ROWS[:2], "test": ROWS[2:]}, indent))
    assert caught.value.what == "the object holds several lists of rows" and caught.value.got == "train, test"


def test_a_row_with_lists_beside_it_is_a_row(read: Any) -> None:
    result = read(text_of(ROWS[0] | {"examples": [{"甲": 1}], "data": []}))
    assert dict(result.examples[0].meta) == {"examples": [{"甲": 1}], "data": []}


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_are_whole_wherever_a_chunk_ends(
    read: Any, chunk: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonrows, "CHUNK_BYTES", chunk)
    rows = [row | {"n": 12345.5, "t": True, "note": '\\"}]\n\u2028😀'} for row in ROWS]
    result = read("\ufeff " + text_of(rows, indent))
    assert [dict(one.meta) for one in result.examples] == [
        {"n": 12345.5, "t": True, "note": '\\"}]\n\u2028😀'} for _ in ROWS
    ]
    assert lines(result) == ([1, 1, 1] if indent is None else [2, 10, 18])


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ('[{"a": "甲"}, 坏]', 1, "not valid JSON: Expecting value at column 14"),
        ('[\n{"a": "甲"},\n  {"甲": 坏}]', 3, "not valid JSON: Expecting value at column 9"),
        (text_of(ROWS, 1) + "\n坏", 18, "not valid JSON: something follows the end of the array"),
        ('{"data": [\n{"a": 1}\n}', 3, "not valid JSON: a row of the array is not followed by ',' or ']'"),
        ('{"data": [\n{"a": 1}],\n', 3, "not valid JSON: Expecting value at column 1"),
    ],
)
def test_a_broken_text_names_line_and_column(
    read: Any, chunk: int, text: str, place: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonrows, "CHUNK_BYTES", chunk)
    with pytest.raises(UserError) as caught:
        read(text, skip_broken=True)
    assert (caught.value.what, caught.value.where.rpartition(":")[2]) == (what, str(place))
    assert "--skip-broken cannot help" in caught.value.fix


def test_a_line_that_is_too_long_is_told_and_passed_over(
    read: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (bounds, jsonrows):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 1000)
    long = ROWS[0] | {"output": "长" * 1000}
    result = read("\n".join(map(text_of, (ROWS[0], long, ROWS[1]))), skip_broken=True)
    assert lines(result) == [1, 3]
    assert [(one.source.rpartition(":")[2], one.reason) for one in result.broken] == [
        ("2", "the line is longer than 1 kB")
    ]
    for text in (text_of([ROWS[0], long]), text_of(long) + "\n", text_of({"data": [long]})):
        with pytest.raises(UserError, match="is longer than 1 kB") as caught:
            monkeypatch.setattr(jsonrows, "CHUNK_BYTES", 100)
            read(text)
        assert caught.value.where == f"{tmp_path}/甲.json:1"


def test_an_array_on_one_line_may_be_longer_than_a_row(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonrows, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(jsonrows, "CHUNK_BYTES", 100)
    assert len(read(text_of(ROWS * 100)).examples) == 300
    assert len(read(text_of({"data": ROWS * 100})).examples) == 300


@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_lists_as_text_are_read(read: Any, field: str) -> None:
    turns = TURNS if field == "messages" else FROMS
    for text in (text_of(turns), text_of(turns, 1), str(turns)):
        result = read(text_of({field: text, "分": None}))
        assert replies(result) == ["你好！"] and dict(result.examples[0].meta) == {"分": None}


def test_text_that_should_be_a_list_and_is_none_is_told(read: Any) -> None:
    with pytest.raises(UserError) as caught:
        read(text_of({"messages": "[{'role': 'user'"}))
    assert caught.value.what == "`messages` holds text that is not a list in JSON or Python"
    assert "json.dumps" in caught.value.fix
    for text in ("[b'\\x00']", "[" * 100_000, "{1: {2}}"):
        with pytest.raises(UserError):
            read(text_of({"messages": text}))
