"""Which files a path stands for, compressed and Arrow files, traps, and what is said of all of them."""

import bz2
import gzip
import json
import lzma
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft.data import bounds
from deft.data.files import LeftOut, look_for_files
from deft.data.read import FileRead, read_examples
from deft.data.show import files_told
from deft.errors import UserError

ROWS = [{"query": f"第{n}题", "response": f"答{n}"} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def replies(path: Path, **options: Any) -> list[str]:
    return [one.messages[-1].content for one in read_examples(path, **options).examples]


def error_of(path: Path | list[Path], **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        read_examples(path, **options)
    return caught.value


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(LINES)


# --- what a folder stands for -----------------------------------------------------------------------------------------


def test_a_folder_names_what_is_not_read_and_why(tmp_path: Path) -> None:
    put(tmp_path, "一.jsonl", "二.csv.gz", "README.md", "旧.xls", "包.zip", ".密.json", ".gitignore", "~$表.xlsx")
    put(tmp_path, "三.json.partial", "dataset_info.json", "跑/run.json", "跑/metrics.jsonl", ".git/x.json")
    put(tmp_path, "模/tokenizer_config.json", "模/vocab.json")
    found = look_for_files(tmp_path)
    assert [file.name for file in found.files] == ["一.jsonl", "二.csv.gz"]
    assert {(str(Path(one.name).relative_to(tmp_path)), one.reason) for one in found.left_out} == {
        ("README.md", "no data by the name"),
        ("旧.xls", "an old Excel file; save it as .xlsx or .csv"),
        ("包.zip", "an archive; unpack it"),
        (".密.json", "hidden"),
        ("三.json.partial", "half-written"),
        ("dataset_info.json", "describes a data set, holds no rows"),
        ("跑", "a run of deft's"),
        ("模", "a model"),
    }


def test_a_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path, "旧.xls")
    error = error_of(tmp_path)
    assert error.what == "the folder has no data files"
    assert "旧.xls (an old Excel file; save it as .xlsx or .csv)" in error.got and ".xlsx" in error.fix
    put(tmp_path, "跑/run.json")
    assert error_of(tmp_path / "跑").what == "the folder is a run of deft's, not data"


def test_a_file_that_is_written_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "夹/一.jsonl", "夹/出.jsonl")
    (tmp_path / "链").symlink_to("夹")
    monkeypatch.chdir(tmp_path)
    for written in (Path("夹/出.jsonl"), tmp_path / "夹" / "出.jsonl", Path("链/../夹/出.jsonl"), Path("链/出.jsonl")):
        result = read_examples(Path("夹"), written=written)
        assert len(result.examples) == 5
        assert result.left_out == (LeftOut(name="夹/出.jsonl", reason="this command writes it"),)
    assert error_of([Path("夹/一.jsonl"), Path("链/出.jsonl")], written=Path("夹/出.jsonl")).what == (
        "the file to write is also to be read"
    )


def test_a_mistyped_name_gets_near_names_or_a_handful_of_data(tmp_path: Path) -> None:
    put(tmp_path, *[f"{n}号.json" for n in "一二三四五六七"], "说明.md", "train_sft.py", ".隐.json", "夹/x.json")
    assert error_of(tmp_path / "一号.jsn").fix == "did you mean '一号.json'?"
    fix = error_of(tmp_path / "数据").fix
    assert fix == "data files and folders there: 一号.json, 七号.json, 三号.json, 二号.json, 五号.json and 3 more"
    (tmp_path / "空").mkdir()
    assert error_of(tmp_path / "空" / "数据").fix == f"the folder {tmp_path}/空 has no data files"


def test_files_are_told_in_a_line_each_up_to_a_handful() -> None:
    some = [FileRead(path=Path(f"{n}.csv"), num_rows=n, remarks=("GB18030",) * (n == 2)) for n in (1, 2)]
    left = [LeftOut(name=f"文{n}.md", reason="no data by the name") for n in range(7)]
    assert files_told(some, [*left, LeftOut(name="\x1b[31m.xls", reason="old")]) == [
        "read 1.csv: 1 row",
        "read 2.csv: 2 rows (GB18030)",
        "not read: 文0.md, 文1.md, 文2.md, 文3.md, 文4.md and 2 more (no data by the name)",
        "not read: \x1b[31m.xls (old)",
    ]
    many = [FileRead(path=Path(f"{n}.csv"), num_rows=300) for n in range(7)]
    empty = FileRead(path=Path("空.csv"), num_rows=0)
    assert files_told([*many, empty], []) == ["read 8 files, 2,100 rows", "read 空.csv: 0 rows"]


# --- compressed -------------------------------------------------------------------------------------------------------


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstd,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_text_is_read_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    pack = PACKERS[suffix]
    table = "query,response\n第0题,答0\n第1题,答1\n"
    contents = {
        f"一.jsonl{suffix}": (LINES, 5),
        f"二.json{suffix}": (json.dumps(ROWS, indent=1).encode(), 5),
        f"三.csv{suffix}": (table.encode("gb18030"), 2),
        "四": (table.encode("utf-16"), 2),
    }
    for name, (content, num_rows) in contents.items():
        (tmp_path / name).write_bytes(pack(content[:20]) + pack(content[20:]))  # two parts, as parallel packers write
        assert replies(tmp_path / name) == [f"答{n}" for n in range(num_rows)], name
    assert [file.name for file in look_for_files(tmp_path).files] == [
        f"一.jsonl{suffix}",
        f"三.csv{suffix}",
        f"二.json{suffix}",
    ]


@pytest.mark.parametrize("suffix", PACKERS)
def test_damaged_compressed_files_are_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"一.jsonl{suffix}"
    noise = random.Random(0).randbytes(3000).hex()
    whole = PACKERS[suffix](LINES + json.dumps({"query": "甲", "response": noise}).encode())
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 255
    flipped = [] if suffix == ".zst" else [bytes(spoiled)]  # pyarrow's Zstandard writes no checksum
    for content in (whole[: len(whole) // 2], whole[:-3], whole[:8], *flipped):
        path.write_bytes(content)
        error = error_of(path, skip_broken=True)
        assert (error.what, error.where) == ("the compressed file is damaged or truncated", str(path))
        assert "download it again" in error.fix


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_second_part_that_is_damaged_is_not_passed_over(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"一.jsonl{suffix}"
    pack = PACKERS[suffix]
    path.write_bytes(pack(LINES) + b"\1" + pack(LINES))
    assert error_of(path, skip_broken=True).what == "the compressed file is damaged or truncated"
    path.write_bytes(pack(LINES) + pack(LINES)[:2])
    assert error_of(path, skip_broken=True).what == "the compressed file is damaged or truncated"


def test_padding_after_xz_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "一.xz"
    path.write_bytes(lzma.compress(LINES) + b"\0" * 200_000 + lzma.compress(LINES) + b"\0\0\0\0")
    assert len(replies(path)) == 10


@pytest.mark.parametrize("suffix", PACKERS)
def test_what_grows_without_bound_is_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SMALL_BYTES", 1_000_000)
    path = tmp_path / f"一.jsonl{suffix}"
    row = b'{"query": "\xe9\x97\xae", "response": "' + b"x" * 1000 + b'"}\n'
    path.write_bytes(PACKERS[suffix](row * 5000))
    error = error_of(path, skip_broken=True)
    assert error.what == "the file holds far more than its size allows" and error.where == str(path)
    assert len(replies(tmp_path / "小.jsonl")) == 900 if (tmp_path / "小.jsonl").write_bytes(row * 900) else False


def test_compressed_things_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "一.json.gz"
    for content, words in (
        (gzip.compress(LINES), "compressed twice"),
        (b"PAR1" + b"\0" * 20, "compressed twice"),
        (b"x" * 257 + b"ustar\x0000", "archive"),
        (b"<!DOCTYPE html><html>", "web page"),
    ):
        path.write_bytes(gzip.compress(content))
        error = error_of(path)
        assert words in error.what and error.fix


# --- Arrow and Parquet ------------------------------------------------------------------------------------------------


def saved(folder: Path, parts: list[list[dict[str, Any]]], **state: Any) -> Path:
    """Write what `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(parts):05d}.arrow" for n in range(len(parts))]
    for name, rows in zip(names, parts, strict=True):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    told = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": "train", **state}
    (folder / "state.json").write_text(json.dumps(told))
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return folder


def test_a_saved_data_set_is_one_file_whose_rows_are_numbered(tmp_path: Path) -> None:
    folder = saved(tmp_path / "集", [ROWS[3:], ROWS[:3]])
    put(folder, "cache-1.arrow")
    result = read_examples(folder)
    assert [(one.source, one.messages[-1].content) for one in result.examples] == [
        (f"{folder}:{n}", f"答{place}") for n, place in enumerate((3, 4, 0, 1, 2), start=1)
    ]
    assert result.sources == (FileRead(path=folder, num_rows=5),)
    assert replies(tmp_path) == replies(folder)


def test_a_saved_data_set_keeps_the_order_of_its_indices(tmp_path: Path) -> None:
    folder = saved(tmp_path / "集", [ROWS], _indices_data_files=[{"filename": "indices.arrow"}])
    table = pa.table({"indices": pa.array([4, 0, 4], pa.uint64())})
    with pa.OSFile(str(folder / "indices.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert replies(folder) == ["答4", "答0", "答4"]


def test_splits_of_a_saved_data_set_are_never_mixed(tmp_path: Path) -> None:
    saved(tmp_path / "集/train", [ROWS[:3]])
    (tmp_path / "集/dataset_dict.json").write_text('{"splits": ["train"]}')
    assert len(replies(tmp_path / "集")) == 3
    saved(tmp_path / "集/test", [ROWS[3:]])
    for path in (tmp_path, tmp_path / "集"):
        error = error_of(path)
        assert (error.what, error.got) == ("the folder holds several splits of a data set", "test, train")
        assert error.fix == f"name the one to read, e.g. {tmp_path}/集/train"
    assert replies(tmp_path / "集/test") == ["答3", "答4"]


def test_damaged_saved_data_sets_are_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "集", [ROWS])
    [part] = folder.glob("*.arrow")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    assert error_of(folder).what == "cannot read the Arrow file"
    part.unlink()
    assert error_of(folder).what == "a file of the saved data set is missing"
    for state in ("{", "[]", '{"_data_files": 1}', '{"_data_files": [{"filename": "../甲.arrow"}]}', "[" * 100_000):
        (folder / "state.json").write_text(state)
        assert "saved data set" in error_of(folder).what


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_alone(tmp_path: Path, new: Any) -> None:
    path = tmp_path / "表.arrow"
    table = pa.table({"query": ["甲", "乙"], "response": pa.array(["是", "是"]).dictionary_encode()})
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table)
    assert replies(path) == ["是", "是"]
    path.write_bytes(path.read_bytes()[:100])
    assert error_of(path).what == "cannot read the Arrow file"


@pytest.mark.parametrize(
    "replies",
    [
        pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), ["长" * 33_000]),
        pa.array(["x" * 70_000_000]),
        pa.array([["x" * 30_000] * 3000]),
    ],
    ids=["one_text_many_times", "one_cell", "one_list"],
)
def test_a_small_parquet_file_that_holds_hundreds_of_megabytes_is_refused_at_once(tmp_path: Path, replies: Any) -> None:
    path = tmp_path / "炸弹.parquet"
    pq.write_table(pa.table({"query": ["问"] * len(replies), "response": replies}), path, compression="zstd")
    assert path.stat().st_size < 20_000
    began_at = time.process_time()
    error = error_of(path)
    assert error.what == "the file holds far more than its size allows" and "more than 64 MB" in error.got
    assert time.process_time() - began_at < 2


def test_a_cell_that_is_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deft.data.arrow.MAX_ROW_BYTES", 1000)
    path = tmp_path / "表.parquet"
    pq.write_table(pa.table({"query": ["问", "问"], "response": ["长" * 1001, "答"]}), path)
    assert "the cell of column `response` is longer than" in error_of(path).what
    assert replies(path, skip_broken=True) == ["答"]


def test_conversations_as_json_text_in_parquet(tmp_path: Path) -> None:
    turns = json.dumps([{"from": "human", "value": "你好"}, {"from": "gpt", "value": "好"}])
    pq.write_table(pa.table({"conversations": [turns]}), tmp_path / "表.parquet")
    assert replies(tmp_path / "表.parquet") == ["好"]
