"""CSV, TSV and XLSX as programs write them: encodings, separators, quotes, ragged records, sheets."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from deft.data import tables
from deft.data.read import ReadResult, read_examples
from deft.errors import UserError

HEADER = ["instruction", "input", "output"]
RECORDS = [
    ["翻译成英语：“苹果”", "", "apple"],
    ["写两行，\n用逗号", "春天", '他说："好"，\n就走了'],
    ["三加四；等于几|？", "\t", "7"],
]


def csv_text(records: Sequence[Sequence[str]], **options: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, **options).writerows(records)
    return stream.getvalue()


def pairs(result: ReadResult) -> list[tuple[str, str]]:
    return [(one.messages[0].content, one.messages[-1].content) for one in result.examples]


EXPECTED = [
    ("翻译成英语：“苹果”", "apple"),
    ("写两行，\n用逗号\n春天", '他说："好"，\n就走了'),
    ("三加四；等于几|？", "7"),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "gbk"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["表.csv", "表.tsv", "表.jsonl", "表"])
def test_encoding_and_separator_are_found(tmp_path: Path, encoding: str, delimiter: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(csv_text([HEADER, *RECORDS], delimiter=delimiter).encode(encoding))
    result = read_examples(path)
    assert pairs(result) == EXPECTED
    assert [one.source for one in result.examples] == [f"{path}:2", f"{path}:3", f"{path}:6"]
    assert result.sources[0].remarks == (("GB18030",) if encoding.startswith("gb") else ())


@pytest.mark.parametrize("terminator", ["\n", "\r\n", "\r"])
def test_line_ends_quoting_and_excels_hint(tmp_path: Path, terminator: str) -> None:
    path = tmp_path / "表.csv"
    text = csv_text([HEADER, *RECORDS], quoting=csv.QUOTE_ALL, lineterminator=terminator)
    path.write_bytes(text.encode())
    assert pairs(read_examples(path)) == EXPECTED
    path.write_bytes(b"sep=;\r\n" + csv_text([HEADER, *RECORDS], delimiter=";").encode())
    result = read_examples(path)
    assert pairs(result) == EXPECTED and result.examples[1].source == f"{path}:4"


def test_quotes_in_tabs_without_quoting_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "表.tsv"
    path.write_text('query\tresponse\n"好"是什么意思\t"好"就是"妙"。\n问"\t答\n', encoding="utf-8")
    assert pairs(read_examples(path)) == [('"好"是什么意思', '"好"就是"妙"。'), ('问"', "答")]


def test_every_cell_is_text_and_an_index_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "表.csv"
    path.write_text(",instruction,output,score\n0,一加一？,02,1.50\n\n1,二加二？,4,\n", encoding="utf-8")
    result = read_examples(path)
    assert pairs(result) == [("一加一？", "02"), ("二加二？", "4")]
    assert [dict(one.meta) for one in result.examples] == [{"score": "1.50"}, {"score": ""}]
    path.write_text(",instruction,output\n甲,一加一？,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="column 1 has text and no name"):
        read_examples(path)


def test_spaces_between_separators_and_quotes_are_layout(tmp_path: Path) -> None:
    path = tmp_path / "表.csv"
    path.write_text('问题, 回答\n"你好, 吗", "好, 的"\n再见, 嗯\n', encoding="utf-8")
    assert pairs(read_examples(path)) == [("你好, 吗", "好, 的"), ("再见", "嗯")]
    path.write_text("问题, 回答\n写代码,    return 1\n", encoding="utf-8")
    assert pairs(read_examples(path)) == [("写代码", "    return 1")]  # without quotes to tell apart, nothing is lost


def test_conversations_in_cells(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "你好，\n世界"}, {"role": "assistant", "content": "“好”"}]
    path = tmp_path / "表.csv"
    cells = [json.dumps(turns, ensure_ascii=False), json.dumps(turns, indent=1), str(turns)]
    path.write_text(csv_text([["messages"], *([cell] for cell in cells)]), encoding="utf-8")
    assert pairs(read_examples(path)) == [("你好，\n世界", "“好”")] * 3


def test_empty_history_is_none(tmp_path: Path) -> None:
    path = tmp_path / "表.csv"
    path.write_text('query,response,system,history\n问,答,,\n问,答,,"[[""前"",""后""]]"\n', encoding="utf-8")
    assert [len(one.messages) for one in read_examples(path).examples] == [2, 4]


def test_ragged_records_are_told_with_their_lines_and_can_be_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "表.csv"
    path.write_text('instruction,output\n"一\n行",好\n问,答,多\n问\n问,答,,\n', encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_examples(path)
    assert caught.value.what == "the record has 3 cells, and the table 2 columns"
    assert caught.value.where == f"{path}:4" and "2 of the 4 rows" in caught.value.fix
    result = read_examples(path, skip_broken=True)
    assert pairs(result) == [("一\n行", "好"), ("问", "答")]
    assert [one.source for one in result.broken] == [f"{path}:4", f"{path}:5"]


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        ('instruction,output\n问,答\n"问,答\n问,答\n', 3, "a quote that opens in this record is never closed"),
        ('instruction,output\n问,答\n"问"题,答\n', 3, "the quoting of the table is broken"),
        ("instruction,output,output\n问,答,答\n", 1, "two columns have the same name"),
        ("\ninstruction,output,output\n问,答,答\n", 2, "two columns have the same name"),
        (b"instruction,output\ncaf\xe9,x\n", 2, "not valid UTF-8"),
        ("instruction,output\n好,好\n".encode() + b"\xe4\xbd,x\n", 3, "not valid UTF-8"),
        ("instruction,output\n".encode("utf-16-le") + "問,答\n".encode("utf-16-le"), 1, "it looks like UTF-16"),
        ("instruction,output\n這個,繁體字\n".encode("big5"), 2, "not valid UTF-8"),
    ],
)
def test_broken_tables_name_the_line(tmp_path: Path, content: str | bytes, line: int, what: str) -> None:
    path = tmp_path / "表.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_examples(path, skip_broken=True)
    assert what in caught.value.what and caught.value.where == f"{path}:{line}" and caught.value.fix


def test_a_cell_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "表.csv"
    path.write_text("instruction,output\n问," + "长" * 1001 + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="the line is longer than") as caught:
        read_examples(path)
    assert caught.value.where == f"{path}:2"
    path.write_text("instruction,output\n问," + "长" * 990 + "\n", encoding="utf-8")
    assert len(read_examples(path).examples) == 1
    path.write_text('instruction,output\n问,"' + "长长长长\n" * 300 + '"\n', encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_examples(path)
    assert caught.value.where == f"{path}:2"


def test_text_that_is_no_table_is_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "文.jsonl"
    path.write_text('我说，"你好", 他说\n', encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        read_examples(path)
    (tmp_path / "文.txt").write_text("从前有座山。\n山上有座庙。\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot tell what the file holds") as caught:
        read_examples(tmp_path / "文.txt")
    assert "CSV" in caught.value.fix and caught.value.got == "从前有座山。"


# --- workbooks --------------------------------------------------------------------------------------------------------


def workbook(path: Path, **sheets: Sequence[Sequence[Any]]) -> Any:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, records in sheets.items():
        sheet = book.create_sheet(name)
        for record in records:
            sheet.append(list(record))
    book.save(path)
    return book


def test_workbook_gives_texts_of_the_sheets_with_the_same_columns(tmp_path: Path) -> None:
    import datetime

    path = tmp_path / "表.xlsx"
    head = ["instruction", "output", "日期", "对"]
    workbook(
        path,
        空=[],
        一月=[head, ["一加一？", 2, datetime.datetime(2024, 5, 1), True], [], ["写诗", "春\n夏", None, None]],
        说明=[["作者"], ["某"]],
        二月=[head, ["二加二？", 4.0]],
    )
    result = read_examples(path)
    assert pairs(result) == [("一加一？", "2"), ("写诗", "春\n夏"), ("二加二？", "4")]
    assert [one.source for one in result.examples] == [f"{path}:2", f"{path}:4", f"{path}:二月!2"]
    assert dict(result.examples[0].meta) == {"日期": "2024-05-01", "对": "TRUE"}
    assert dict(result.examples[1].meta) == {"日期": "", "对": ""}
    assert [(one.name, one.reason) for one in result.left_out] == [
        (f"{path}, sheet 说明", "other columns than the first sheet")
    ]


def test_hidden_sheets_are_named_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "表.xlsx"
    book = workbook(path, 一=[["query", "response"], ["问", "答"]], 二=[["query", "response"], ["密", "密"]])
    book["二"].sheet_state = "hidden"
    book.save(path)
    result = read_examples(path)
    assert pairs(result) == [("问", "答")]
    assert [(one.name, one.reason) for one in result.left_out] == [(f"{path}, sheet 二", "hidden")]


def test_formulas_without_results_and_error_cells_are_told(tmp_path: Path) -> None:
    path = tmp_path / "表.xlsx"
    workbook(path, 一=[["query", "response"], ["问", "=1+1"], ["问", "#N/A"], ["问", "答"]])
    result = read_examples(path, skip_broken=True)
    assert pairs(result) == [("问", "答")]
    assert [(one.source, one.reason, one.got) for one in result.broken] == [
        (f"{path}:2", "cell B2 holds a formula without a result", "=1+1"),
        (f"{path}:3", "cell B3 holds an error", "#N/A"),
    ]


def test_cells_that_are_merged_are_told_where_only_one_holds_their_text(tmp_path: Path) -> None:
    path = tmp_path / "表.xlsx"
    records = [
        ["instruction", "input", "output"],
        ["译成英语", "河", "river"],
        [None, "山", "hill"],
        ["写", "诗", "春"],
    ]
    book = workbook(path, 一=records, 二=[*records, [None, None, None]])
    book["一"].merge_cells("A2:A3")
    book["二"].merge_cells("A5:C6")  # nothing but looks
    book.save(path)
    result = read_examples(path, skip_broken=True)
    assert [(one.source, one.reason, one.got) for one in result.broken[:1]] == [
        (f"{path}:3", "a cell is merged with others, and one alone holds its text", "译成英语")
    ]
    assert pairs(result)[:2] == [("译成英语\n河", "river"), ("写\n诗", "春")]


def test_other_archives_and_damaged_workbooks_are_told(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "表.xlsx"
    workbook(path, 一=[["query", "response"], ["问", "答"]])
    whole = path.read_bytes()
    for damaged in (whole[:1000], whole[:-30], b"PK\x03\x04" + b"\0" * 50):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot read the workbook") as caught:
            read_examples(path)
        assert caught.value.where == str(path) and "CSV" in caught.value.fix
    with zipfile.ZipFile(tmp_path / "档.json", "w") as archive:
        archive.writestr("a.json", "[]")
    with pytest.raises(UserError, match="archive") as caught:
        read_examples(tmp_path / "档.json")
    assert caught.value.fix == f"unpack it first: unzip '{tmp_path}/档.json'"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
    with pytest.raises(UserError, match="old or protected Excel file"):
        read_examples(path)
