"""What `benchmarks.bad_input` gives deft in the formats of tables and archives: broken files, odd ones, damaged ones.

`BROKEN` is data that every reading command must refuse, `ODD` data that must be converted whole; `damaged` spoils bytes
of a good file of any kind, of which a command may make what it can, save a traceback.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

PAIRS = [(f"第{n}题：“{n}”加一，等于几？", f"等于 {n + 1}。\n好") for n in range(6)]
RECORDS = [{"query": query, "response": response} for query, response in PAIRS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in RECORDS).encode()
TURNS = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]


def csv_of(rows: Sequence[Sequence[str]], **options: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, **options).writerows([("query", "response"), *rows])
    return stream.getvalue()


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def parquet(table: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def arrow(table: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def workbook(*sheets: Sequence[Sequence[Any]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, records in enumerate(sheets, start=1):
        sheet = book.create_sheet(f"表{number}")
        for record in records:
            sheet.append(list(record))
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


def archive(**files: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name.replace("__", "/"), content)
    return sink.getvalue()


def saved(name: str, part: bytes, state: str | None = None) -> dict[str, bytes | str]:
    """Return the files of a folder that `save_to_disk` wrote."""
    told = json.dumps({"_data_files": [{"filename": "a.arrow"}]}) if state is None else state
    return {f"{name}/a.arrow": part, f"{name}/state.json": told, f"{name}/dataset_info.json": "{}"}


TABLE = pa.Table.from_pylist(RECORDS)
BOOK = workbook([("query", "response"), *PAIRS])
LONG = "长" * 17_000_000
FALSE_ROW = BOOK[:0] + archive(**{"xl__workbook.xml": b"<workbook/>"})
MANY_TEXTS = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), ["长" * 33_000])
BOMB = parquet(pa.table({"query": ["问"] * 3000, "response": MANY_TEXTS}), compression="zstd")
SPARSE = 400_000_000


def line_without_end(path: Path) -> None:
    """Make a line of hundreds of megabytes that takes no room on the disk."""
    with path.open("wb") as stream:
        stream.write(b'{"query": "')
        stream.truncate(SPARSE)


BROKEN: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    name: (files if isinstance(files, dict) else {data: files}, data, words)
    for name, files, data, words in [
        ("csv_quote_open", 'query,response\n问,答\n"问,答\n', "坏.csv", ("坏.csv:3", "never closed")),
        ("csv_quote_within", 'query,response\n"问"题,答\n', "坏.csv", ("坏.csv:2", "quotes", '""')),
        ("csv_same_names", "query,query\n问,答\n", "坏.csv", ("坏.csv:1", "same name", "query")),
        ("csv_header_alone", "query,response\n", "坏.csv", ("no row", "坏.csv")),
        ("csv_without_header", "你好,你好！\n问,答\n", "坏.csv", ("坏.csv:2", "not in any known format")),
        ("csv_latin_1", "query,response\ncafé,x\n".encode("latin-1"), "坏.csv", ("坏.csv:2", "UTF-8", "iconv")),
        ("csv_big5", csv_of([("繁體字", "臺灣話")] * 9).encode("big5"), "坏.csv", ("坏.csv:2", "UTF-8", "iconv")),
        ("csv_utf32", csv_of(PAIRS).encode("utf-32"), "坏.csv", ("坏.csv:1", "UTF-32")),
        ("csv_cut_in_utf16", csv_of(PAIRS).encode("utf-16")[:-1], "坏.csv", ("坏.csv",)),
        ("csv_empty_reply", csv_of([("问", " ")]), "坏.csv", ("坏.csv:2", "empty reply")),
        ("csv_nul", csv_of([("问\0", "答")]), "坏.csv", ("坏.csv:2", "NUL")),
        ("csv_long_cell", csv_of([("问", LONG)]), "坏.csv", ("坏.csv:2", "longer than 16 MB")),
        ("csv_broken_messages", 'messages\n"[{""role"": "\n', "坏.csv", ("坏.csv:2", "messages", "json.dumps")),
        ("tsv_ragged", "query\tresponse\n问\n", "坏.tsv", ("坏.tsv:2", "1 cells")),
        ("xlsx_cut", BOOK[: len(BOOK) // 2], "坏.xlsx", ("坏.xlsx", "workbook")),
        ("xlsx_hollow", FALSE_ROW, "坏.xlsx", ("坏.xlsx", "workbook")),
        ("xlsx_old", b"\xd0\xcf\x11\xe0" + b"\0" * 512, "坏.xlsx", ("坏.xlsx", "password", ".xlsx")),
        ("xlsx_formula", workbook([("query", "response"), ("问", "=1+1")]), "坏.xlsx", ("坏.xlsx:2", "formula")),
        ("xlsx_error", workbook([("query", "response"), ("问", "#REF!")]), "坏.xlsx", ("坏.xlsx:2", "B2", "#REF!")),
        ("xlsx_empty", workbook([]), "坏.xlsx", ("no row", "坏.xlsx")),
        ("xlsx_bomb", archive(xl__workbook=b"0" * 90_000_000, **{"xl__workbook.xml": b""}), "坏.xlsx", ("far more",)),
        ("zip", archive(a=b"[]"), "坏.json", ("archive", "unzip")),
        ("tar_gz", gzip.compress(b"a" * 257 + b"ustar\0"), "坏.jsonl.gz", ("archive", "tar xf")),
        ("gz_twice", gzip.compress(gzip.compress(LINES)), "坏.jsonl.gz", ("twice", "unpack")),
        ("gz_cut", gzip.compress(LINES)[:-9], "坏.jsonl.gz", ("坏.jsonl.gz", "truncated", "download it again")),
        ("zst_cut", zstd(LINES)[:-9], "坏.jsonl.zst", ("坏.jsonl.zst", "truncated")),
        ("xz_cut", lzma.compress(LINES)[:-9], "坏.jsonl.xz", ("坏.jsonl.xz", "truncated")),
        ("bz2_cut", bz2.compress(LINES)[:-9], "坏.jsonl.bz2", ("坏.jsonl.bz2", "truncated")),
        ("gz_bomb", gzip.compress(b" " * 90_000_000), "坏.jsonl.gz", ("far more", "kB on disk")),
        ("zst_bomb", zstd(b" " * 90_000_000), "坏.jsonl.zst", ("far more",)),
        ("gz_broken_row", gzip.compress(LINES + b"{"), "坏.jsonl.gz", ("坏.jsonl.gz:7", "not valid JSON")),
        ("parquet_bomb", BOMB, "坏.parquet", ("far more", "坏.parquet")),
        ("parquet_cut", parquet(TABLE)[:-40], "坏.parquet", ("坏.parquet:1", "Parquet")),
        ("arrow_cut", arrow(TABLE)[:200], "坏.arrow", ("坏.arrow:1", "Arrow")),
        ("saved_cut", saved("集", arrow(TABLE)[:200]), "集", ("集:1", "Arrow")),
        ("saved_state", saved("集", arrow(TABLE), "{"), "集", ("集/state.json", "damaged")),
        ("saved_part", saved("集", b"", '{"_data_files": [{"filename": "b"}]}'), "集", ("missing", "b")),
        ("wrapper_cut", '{"data": [\n' + LINES.decode().splitlines()[0], "坏.json", ("坏.json:2", "',' or ']'")),
        ("two_lists", json.dumps({"train": RECORDS, "test": RECORDS}), "坏.json", ("坏.json:1", "train, test")),
        ("pretty_cut", json.dumps(RECORDS[0], indent=1) + "\n{\n", "坏.json", ("坏.json:", "not valid JSON")),
        ("endless_line", {"坏.jsonl": line_without_end}, "坏.jsonl", ("坏.jsonl:1", "longer than 16 MB")),
        ("web_page", "<!DOCTYPE html>\n<html></html>", "坏.json", ("web page", "raw file")),
        ("prose", "从前有座山。\n", "坏.txt", ("cannot tell", "CSV")),
        ("folder_of_old_files", {"夹/旧.xls": b"", "夹/包.zip": b""}, "夹", ("no data files", "旧.xls", "包.zip")),
    ]
}

ODD: list[tuple[str, dict[str, Any], str, int]] = [
    ("csv_gb18030", {"表.csv": csv_of(PAIRS).encode("gb18030")}, "表.csv", 6),
    ("csv_utf16_of_excel", {"表.csv": csv_of(PAIRS, delimiter="\t").encode("utf-16")}, "表.csv", 6),
    ("csv_semicolons_and_mark", {"表.csv": csv_of(PAIRS, delimiter=";").encode("utf-8-sig")}, "表.csv", 6),
    ("csv_all_quoted", {"表.csv": csv_of(PAIRS, quoting=csv.QUOTE_ALL)}, "表.csv", 6),
    ("csv_named_jsonl", {"表.jsonl": csv_of(PAIRS)}, "表.jsonl", 6),
    ("jsonl_named_csv", {"表.csv": LINES}, "表.csv", 6),
    ("tsv", {"表.tsv": csv_of(PAIRS, delimiter="\t")}, "表.tsv", 6),
    ("csv_messages", {"表.csv": csv_of([]).replace("query,response", "messages") + f'"{TURNS}"\n'}, "表.csv", 1),
    ("xlsx", {"表.xlsx": BOOK}, "表.xlsx", 6),
    ("xlsx_two_sheets", {"表.xlsx": workbook(*[[("query", "response"), *PAIRS]] * 2)}, "表.xlsx", 12),
    ("gz", {"表.jsonl.gz": gzip.compress(LINES)}, "表.jsonl.gz", 6),
    ("zst", {"表.csv.zst": zstd(csv_of(PAIRS).encode())}, "表.csv.zst", 6),
    ("xz", {"表.json.xz": lzma.compress(json.dumps(RECORDS).encode())}, "表.json.xz", 6),
    ("bz2_unnamed", {"表": bz2.compress(LINES)}, "表", 6),
    ("arrow", {"表.arrow": arrow(TABLE)}, "表.arrow", 6),
    ("saved", saved("集", arrow(TABLE)), "集", 6),
    ("pretty_objects", {"表.json": "\n".join(json.dumps(row, indent=2) for row in RECORDS)}, "表.json", 6),
    ("array_a_line", {"表.jsonl": "\n".join(json.dumps([row]) for row in RECORDS)}, "表.jsonl", 6),
    ("wrapped", {"表.json": json.dumps({"版": 1, "data": RECORDS}, indent=1)}, "表.json", 6),
    ("parquet_json_text", {"表.parquet": parquet(pa.table({"messages": [json.dumps(TURNS)] * 3}))}, "表.parquet", 3),
    (
        "all_in_one_folder",
        {"夹/一.csv": csv_of(PAIRS), "夹/二.xlsx": BOOK, "夹/三.json.gz": gzip.compress(LINES)},
        "夹",
        18,
    ),
]

GOOD: dict[str, bytes] = {
    "csv": csv_of(PAIRS).encode(),
    "csv in GB18030": csv_of(PAIRS).encode("gb18030"),
    "csv in UTF-16": csv_of(PAIRS).encode("utf-16"),
    "tsv": csv_of(PAIRS, delimiter="\t").encode(),
    "xlsx": BOOK,
    "gz": gzip.compress(LINES),
    "zst": zstd(LINES),
    "xz": lzma.compress(LINES),
    "bz2": bz2.compress(LINES),
    "parquet": parquet(TABLE),
    "arrow": arrow(TABLE),
    "wrapped": json.dumps({"data": RECORDS}, indent=1).encode(),
    "array a line": "\n".join(json.dumps([row], ensure_ascii=False) for row in RECORDS).encode(),
}


def damaged(chance: random.Random) -> tuple[str, bytes]:
    """Return the name of a kind of file, and a file of it with some bytes changed, lost, doubled or put in."""
    kind = chance.choice(list(GOOD))
    data = bytearray(GOOD[kind])
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(data))
        change: Callable[[], None] = chance.choice(
            (
                lambda at=at: data.__setitem__(at, data[at] ^ 1 << chance.randrange(8)),
                lambda at=at: data.__delitem__(slice(at, at + chance.choice((1, 2, 40)))),
                lambda at=at: data.__setitem__(
                    slice(at, at), chance.choice((b"\0", b'"', b"\xff", b"\n", b",", b"\t"))
                ),
                lambda at=at: data.__setitem__(slice(at, at), data[at : at + 30]),
                lambda at=at: data.__delitem__(slice(at, len(data))),
            )
        )
        change()
        if not data:
            return kind, b""
    return kind, bytes(data)
