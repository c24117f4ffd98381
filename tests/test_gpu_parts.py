"""The parts of the GPU check: whatever becomes of one, it leaves what it found, and the others run."""

import importlib
import json
import os
from pathlib import Path

import pytest
from benchmarks.gpu.__main__ import PARTS, table_of
from benchmarks.gpu.parts import Line, Part, Record, checked, measured, run_all, tried
from rich.console import Console

MODULE = """
import os, time
from benchmarks.gpu.parts import measured, checked

def good(small):
    yield measured("速度", "三千 tokens/s", rate=3000.0, small=small)

def failing(small):
    yield measured("出错之前", "1")
    raise ValueError("内存坏了")

def hanging(small):
    yield measured("卡住之前", "2")
    time.sleep(60)

def killed(small):
    os.abort()

def wrong(small):
    yield checked("损失", "0.5", holds=False, allowed="0.01")

def silent(small):
    yield from ()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "parts_of_a_test.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    return "parts_of_a_test"


def test_all_parts_together_end_within_eight_minutes_and_exist() -> None:
    assert sum(part.seconds for part in PARTS) <= 480
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        name, _, function = part.function.partition(":")
        assert callable(getattr(importlib.import_module(name), function))


def test_a_part_that_fails_hangs_or_dies_leaves_its_record_and_the_others(module: str, tmp_path: Path) -> None:
    names = ("hanging", "failing", "killed", "good")
    parts = [Part(name=name, function=f"{module}:{name}", seconds=2.5 if name == "hanging" else 20) for name in names]
    told: list[str] = []
    records = run_all(parts, tmp_path / "out", small=True, tell=lambda record: told.append(record.name))
    by_name = {record.name: record for record in records}
    assert told == list(names)
    assert [by_name[name].ended for name in names] == ["time limit", "crashed", "crashed", "whole"]
    assert [by_name[name].failed for name in names] == [True, True, True, False]
    assert by_name["hanging"].lines[0].what == "卡住之前"
    assert 2.5 <= by_name["hanging"].seconds < 15
    assert by_name["failing"].lines[0].what == "出错之前" and "内存坏了" in by_name["failing"].last_words
    assert by_name["killed"].lines == () and by_name["killed"].last_words
    assert by_name["good"].lines == (measured("速度", "三千 tokens/s", rate=3000.0, small=True),)
    found = json.loads((tmp_path / "out/gpu.json").read_text(encoding="utf-8"))
    assert [part["name"] for part in found["parts"]] == list(names) and found["size"] == "small"
    assert found["parts"][3]["lines"][0]["values"]["rate"] == 3000.0
    assert not list((tmp_path / "out").glob("*.tmp*"))
    assert "内存坏了" in (tmp_path / "out/gpu.log").read_text(encoding="utf-8")


def test_a_part_may_use_what_those_before_it_left(module: str, tmp_path: Path) -> None:
    parts = [Part(name=name, function=f"{module}:{name}", seconds=20) for name in ("wrong", "silent")]
    wrong, silent = run_all(parts, tmp_path, small=False, tell=lambda _: None)
    assert (wrong.ended, wrong.failed, wrong.lines[0].verdict) == ("whole", True, "failed")
    assert (silent.ended, silent.failed) == ("whole", True), "a part that found nothing has not passed"
    assert wrong.limit_s == pytest.approx(20, abs=1)
    assert silent.limit_s == pytest.approx(40 - wrong.seconds, abs=1)


def test_an_error_in_one_check_becomes_a_failed_line() -> None:
    def broken() -> list[Line]:
        raise RuntimeError("显存不足\nmore")

    assert list(tried("解码", broken)) == [Line(what="解码", seen="RuntimeError: 显存不足", verdict="failed")]
    assert list(tried("解码", lambda: [measured("a", "1")])) == [measured("a", "1")]


def test_the_table_shows_every_line_and_how_a_part_ended() -> None:
    lines = (measured("速度", "[3] 千"), checked("损失", "0.5", holds=False, allowed="0.01"))
    records = [
        Record(name="curve", ended="whole", seconds=3, limit_s=9, lines=lines),
        Record(name="decode", ended="time limit", seconds=9, limit_s=9, lines=(), last_words="最后一句"),
    ]
    console = Console(width=150, record=True, quiet=False, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    console.print(table_of(records, small=True))
    text = console.export_text()
    for words in ("SMALL SIZE", "curve, 3 s", "[3] 千", "0.01", "✗", "time limit", "最后一句"):
        assert words in text
