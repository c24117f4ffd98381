import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deft.data.read import BrokenRow, read_examples
from deft.errors import UserError

Write = Callable[..., Path]
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = [{"instruction": f"第{n}题：{n}+1等于几？", "input": "", "output": f"{n + 1}"} for n in range(3)]


def error_of(path: Any, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        read_examples([path] if not isinstance(path, list) else path, **options)
    return caught.value


def lines_of(path: Path, **options: Any) -> list[int]:
    return [int(example.source.rpartition(":")[2]) for example in read_examples(path, **options).examples]


def test_lines_count_empty_ones(write_lines: Write) -> None:
    path = write_lines([ROWS[0], "", "   ", ROWS[1], ROWS[2]])
    result = read_examples([path])
    assert [example.source for example in result.examples] == [f"{path}:1", f"{path}:4", f"{path}:5"]
    assert result.files == (path,)
    assert result.broken == ()
    assert result.examples[1].messages[0].content == "第1题：1+1等于几？"


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["甲.json", "甲.jsonl"])
def test_array_is_known_by_its_content(tmp_path: Path, indent: int | None, name: str) -> None:
    path = tmp_path / name
    path.write_text("\n " + json.dumps(ROWS, ensure_ascii=False, indent=indent) + "\n\n", encoding="utf-8")
    assert lines_of(path) == ([2, 2, 2] if indent is None else [3, 8, 13])


def test_json_lines_may_be_named_json(write_lines: Write) -> None:
    assert lines_of(write_lines(ROWS, name="数学_full.json")) == [1, 2, 3]


def test_one_object_over_many_lines_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "甲.json"
    path.write_text("\n" + json.dumps(ROWS[0], indent=2, ensure_ascii=False), encoding="utf-8")
    assert lines_of(path) == [2]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_mark_and_windows_lines(tmp_path: Path, newline: str) -> None:
    text = newline.join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    for name, content in (("甲.jsonl", text), ("乙.json", json.dumps(ROWS, ensure_ascii=False))):
        (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
    assert lines_of(tmp_path / "甲.jsonl") == [1, 2, 3]
    assert lines_of(tmp_path / "乙.json") == [1, 1, 1]


def test_unicode_line_separators_do_not_split_rows(write_lines: Write) -> None:
    row = ROWS[0] | {"output": "一\u2028二\x85三\u2029"}
    assert read_examples(write_lines([row, ROWS[1]])).examples[0].messages[-1].content == "一\u2028二\x85三\u2029"


def test_folder_is_read_sorted_without_hidden_and_partial_files(write_lines: Write, tmp_path: Path) -> None:
    for name in ("b.json", "a/z.jsonl", "a/y.JSON", ".hidden.json", ".git/x.json", "c.json.partial", "notes.txt"):
        write_lines([ROWS[0]], name=f"数据/{name}")
    folder = tmp_path / "数据"
    files = read_examples([folder]).files
    assert [str(file.relative_to(folder)) for file in files] == ["a/y.JSON", "a/z.jsonl", "b.json"]
    assert read_examples([folder / "b.json", folder]).files == (folder / "b.json", *files[:2])


def test_linked_folders_are_followed_and_loops_end(write_lines: Write, tmp_path: Path) -> None:
    write_lines([ROWS[0]], name="真/a.json")
    (tmp_path / "数据").mkdir()
    (tmp_path / "数据" / "链接").symlink_to(tmp_path / "真")
    (tmp_path / "真" / "环").symlink_to(tmp_path / "真")
    assert len(read_examples(tmp_path / "数据").files) == 1


def test_ability_is_given_to_rows_without_one(write_lines: Write) -> None:
    path = write_lines([ROWS[0], ROWS[1] | {"type": "数学"}], name="ethics_full.json")
    assert [example.ability for example in read_examples([path]).examples] == [None, "数学"]
    assert [example.ability for example in read_examples([path], ability="推理").examples] == ["推理", "数学"]


def row(**changes: Any) -> str:
    return json.dumps(ROWS[0] | changes, ensure_ascii=False)


BROKEN = [
    ('{"instruction": "问", ', "not valid JSON: Expecting property name enclosed in double quotes at column 21"),
    ("你好", "not valid JSON: Expecting value at column 1"),
    ("[1, 2]", "the row is not a JSON object"),
    ('"文字"', "the row is not a JSON object"),
    ('{"问": 1}', "the row is not in any known format"),
    (row(output=""), "empty reply"),
    (row(output=3), "the content of the assistant message is not text"),
    ('{"messages": [{"role": "assistant", "content": "答"}]}', "message 1 should be from the user"),
    ('{"instruction": "问", "output": "\\ud83d"}', "`output` holds half of a surrogate pair, which is not a character"),
    (
        '{"instruction": "问", "output": "答", "\\ud83d": 1}',
        "`\ud83d` holds half of a surrogate pair, which is not a character",
    ),
    (
        '{"instruction": "问", "output": "答", "分": NaN}',
        "`分` holds NaN or an infinite number, which JSON does not allow",
    ),
    (
        '{"instruction": "问", "output": "答", "分": 1e999}',
        "`分` holds NaN or an infinite number, which JSON does not allow",
    ),
    ('{"instruction": "问", "output": "答\\u0000"}', "the assistant message holds a NUL character"),
    ('{"a": ' * 100_000, "the JSON is nested too deeply"),
    ('{"n": ' + "9" * 5000 + "}", "a number has too many digits"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=[f"{n}" for n in range(len(BROKEN))])
def test_broken_row_stops_with_its_place_or_is_passed_over(write_lines: Write, line: str, reason: str) -> None:
    path = write_lines([ROWS[0], line, ROWS[1], line])
    error = error_of(path)
    assert (error.what, error.where) == (reason, f"{path}:2")
    assert error.fix.endswith("or pass over broken rows with --skip-broken (2 of the 4 rows of this file are broken)")
    assert str(error).encode("utf-8", "backslashreplace")
    result = read_examples([path], skip_broken=True)
    assert [example.source for example in result.examples] == [f"{path}:1", f"{path}:3"]
    assert [(broken.source, broken.reason) for broken in result.broken] == [
        (f"{path}:2", reason),
        (f"{path}:4", reason),
    ]


def test_broken_first_line_of_json_lines(write_lines: Write) -> None:
    path = write_lines(['{"instruction": "问"', ROWS[0]])
    assert read_examples([path], skip_broken=True).broken[0] == BrokenRow(
        source=f"{path}:1",
        reason="not valid JSON: Expecting ',' delimiter at column 20",
        got='{"instruction": "问"',
        fix="a file is one JSON array of rows, or has one JSON row on each line",
    )


def test_wrong_row_in_an_array_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "甲.json"
    rows = [ROWS[0], ROWS[1] | {"output": float("nan")}, {"问": 1}, ROWS[2]]
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    result = read_examples(path, skip_broken=True)
    assert [broken.source for broken in result.broken] == [f"{path}:7", f"{path}:12"]
    assert lines_of(path, skip_broken=True) == [2, 15]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('[\n{"a": "甲"}\n{"a": 1}]', 3, "not valid JSON: a row of the array is not followed by ',' or ']'"),
        ('[\n{"a": "甲"},\n{"a": ', 3, "not valid JSON: Expecting value at column 7"),
        ('[\n{"a": "甲"}\n', 3, "not valid JSON: a row of the array is not followed by ',' or ']'"),
        ('[{"a": "甲"}]\n\n]', 3, "not valid JSON: something follows the end of the array"),
        ('[{"a": "甲"},\n]', 2, "not valid JSON: Expecting value at column 1"),
        ("[\n" + "[" * 100_000, 2, "the JSON is nested too deeply"),
        ("[\n" + "9" * 5000 + "]", 2, "a number has too many digits"),
        ("[", 1, "not valid JSON: Expecting value at column 2"),
    ],
)
@pytest.mark.parametrize("skip_broken", [False, True])
def test_broken_array_is_never_passed_over(tmp_path: Path, text: str, line: int, what: str, skip_broken: bool) -> None:
    path = tmp_path / "甲.json"
    path.write_text(text, encoding="utf-8")
    error = error_of(path, skip_broken=skip_broken)
    assert (error.what, error.where) == (what, f"{path}:{line}")
    assert error.fix.startswith("correct the file there; --skip-broken cannot help")


@pytest.mark.parametrize("as_array", [False, True])
def test_gbk_file_names_line_and_remedy(tmp_path: Path, as_array: bool) -> None:
    path = tmp_path / "甲 乙.json"
    rows = [{"instruction": "hi", "output": "hello"}, ROWS[0]]
    text = (
        json.dumps(rows, ensure_ascii=False, indent=0)
        if as_array
        else "\n".join(json.dumps(one, ensure_ascii=False) for one in rows)
    )
    path.write_bytes(text.encode("gbk"))
    error = error_of(path, skip_broken=True)
    assert error.what == "not valid UTF-8; it looks like GB18030"
    assert error.where == f"{path}:{7 if as_array else 2}"
    assert error.fix == f"convert it: iconv -f GB18030 -t UTF-8 '{path}' > '{tmp_path}/甲 乙.utf8.json'"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_file(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(ROWS, ensure_ascii=False).encode(encoding))
    error = error_of(path)
    assert (error.what, error.where) == ("not valid UTF-8; it looks like UTF-16", f"{path}:1")


def test_other_bytes_and_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"instruction": "caf\xe9"}\n')
    error = error_of(path)
    assert (error.what, error.where) == ("not valid UTF-8", f"{path}:1")
    assert "iconv -f ENCODING -t UTF-8" in error.fix
    path.write_bytes(row().encode() + b"\n" + row(output="好").encode()[:-3])
    assert error_of(path).fix == "the file ends inside a character: it is truncated; download it again"


def test_pointer_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert error_of(path).what == "the file is a Git LFS pointer, not the data"


def test_missing_file_suggests_a_name(write_lines: Write, tmp_path: Path) -> None:
    write_lines(ROWS, name="math_full.json")
    error = error_of(tmp_path / "math_ful.json")
    assert (error.what, error.got) == ("no such file or folder", str(tmp_path / "math_ful.json"))
    assert error.fix == "did you mean 'math_full.json'?"
    assert error_of(tmp_path / "无" / "a.json").what == "no such file or folder"
    assert error_of(tmp_path / "math_full.json" / "a.json").what == "no such file or folder"


def test_places_without_data(tmp_path: Path) -> None:
    assert error_of([]).what == "no data was given"
    assert error_of(tmp_path).what == "the folder has no data files"
    (tmp_path / "空.json").write_text(" \n")
    (tmp_path / "空数组.json").write_text("[ ]")
    assert error_of(tmp_path).what == "the data has no rows"
    os.mkfifo(tmp_path / "fifo")
    assert error_of(tmp_path / "fifo").what == "not a regular file"
    assert error_of("/dev/null").what == "not a regular file"
    assert error_of(tmp_path / ("名" * 300)).what.startswith("cannot read ")
    assert error_of("a\0b").what


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(write_lines: Write) -> None:
    path = write_lines(ROWS)
    path.chmod(0)
    assert error_of(path).what == f"cannot read {path}"


def test_system_error_while_reading(write_lines: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_lines(ROWS)
    monkeypatch.setattr(Path, "open", refuse)
    error = error_of(path)
    assert (error.what, error.got) == (f"cannot read {path}", "Permission denied")


def test_parquet_export(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "你好！"}]
    rows = [
        {"conversations": turns, "instruction": "你好", "response": "你好！", "score": float("nan")},
        {"conversations": None, "instruction": "再见", "response": "再见！", "score": 0.5},
        {"conversations": turns[:1], "instruction": "问", "response": "", "score": 1.0},
    ]
    path = tmp_path / "train-00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    result = read_examples(path, skip_broken=True)
    assert [example.source for example in result.examples] == [f"{path}:1", f"{path}:2"]
    assert dict(result.examples[0].meta) == {"instruction": "你好", "response": "你好！"}
    assert dict(result.examples[1].meta) == {"score": 0.5}
    assert [(broken.source, broken.reason) for broken in result.broken] == [
        (f"{path}:3", "the last message should be from the assistant")
    ]
    special = {
        "query": "问",
        "response": "答",
        "day": datetime.date(2024, 5, 1),
        "price": decimal.Decimal("1.50"),
        "list": [datetime.datetime(2024, 5, 1, 8)],
    }
    pq.write_table(pa.Table.from_pylist([special]), path)
    meta = read_examples(path).examples[0].meta
    assert meta == {"day": "2024-05-01", "price": "1.50", "list": ["2024-05-01T08:00:00"]}
    pq.write_table(pa.Table.from_pylist([{"query": "问", "response": "答", "图": b"\x00"}]), path)
    error = error_of(path)
    assert (error.what, error.where) == ("column `图` holds bytes, which JSON cannot", f"{path}:1")
    assert len(read_examples(path, ignore_fields=["图"]).examples) == 1
    path.write_bytes(b"PAR1 cut short")
    assert (error_of(path).what, error_of(path).where) == ("cannot read the Parquet file", f"{path}:1")


@pytest.mark.parametrize(("name", "num_rows"), [("alpaca_zh_demo.json", 1000), ("alpaca_en_demo.json", 999)])
def test_real_files_lose_no_row(name: str, num_rows: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the sample is not here")
    result = read_examples(SHARED / name)
    assert len(result.examples) == num_rows == len(json.loads((SHARED / name).read_text(encoding="utf-8")))
    text = (SHARED / name).read_text(encoding="utf-8").splitlines()
    assert all(text[int(one.source.rpartition(":")[2]) - 1].strip() == "{" for one in result.examples)


@pytest.mark.parametrize("target", ["没有.jsonl", "环.jsonl"], ids=["nowhere", "itself"])
def test_a_link_that_leads_nowhere_is_told_and_not_passed_over(tmp_path: Path, target: str) -> None:
    (tmp_path / "一.jsonl").write_text('{"instruction": "问", "output": "答"}\n', encoding="utf-8")
    (tmp_path / "环.jsonl").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match="is broken") as caught:
        read_examples([tmp_path])
    assert "环.jsonl" in str(caught.value) and "repair or delete the link" in str(caught.value)


def test_utf_32_is_told_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "宽.jsonl"
    path.write_bytes('{"instruction": "问", "output": "答"}'.encode("utf-32"))
    with pytest.raises(UserError) as caught:
        read_examples([path])
    assert "iconv -f UTF-32" in str(caught.value)


def test_passing_over_broken_rows_is_not_advised_where_nothing_would_be_left(tmp_path: Path) -> None:
    path = tmp_path / "坏.jsonl"
    path.write_text('{"instruction": "问", "output": ""}\n', encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_examples([path])
    assert "--skip-broken" not in str(caught.value) and "1 of the 1 rows" in str(caught.value)


@pytest.mark.parametrize("value", ['{"甲": ', "["], ids=["objects", "lists"])
def test_a_row_of_any_depth_is_read_or_told(tmp_path: Path, value: str) -> None:
    closed = "}" if value.startswith("{") else "]"
    file = tmp_path / "深.jsonl"
    row = '{"prompt": "问", "completion": "答", "category": %s1%s}\n'
    file.write_text("".join(row % (value * depth, closed * depth) for depth in range(1, 1200, 20)), encoding="utf-8")
    found = read_examples([file], skip_broken=True)
    assert len(found.examples) + len(found.broken) == 60
    assert found.broken and all("nested too deeply" in row.reason for row in found.broken)
