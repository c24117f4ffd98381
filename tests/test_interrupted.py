"""What a machine does to a run: a full disk, a closed output, Ctrl-C, kill -9. What is left is whole, and goes on."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deft.commands import app as cli
from deft.testing.tiny import save_tiny
from deft.training.checkpoint import checkpoints
from deft.training.record import read_metrics

PATIENCE_S = 120.0
"""How long a subprocess may take on a busy machine before a test gives up."""


def row(number: int) -> str:
    turns = [("user", f"{number} 加 {number} 等于几?"), ("assistant", f"等于 {2 * number}。")]
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}, ensure_ascii=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "小模型")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with rows to convert and to train on."""
    folder = tmp_path / "工作"
    folder.mkdir()
    (folder / "多.jsonl").write_text("".join(row(n) + "\n" for n in range(2000)), encoding="utf-8")
    (folder / "少.jsonl").write_text("".join(row(n) + "\n" for n in range(8)), encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: object) -> object:
    """Run `deft …` in this process and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(each) for each in arguments])
    return stopped.value.code


def one_error(stderr: str) -> str:
    """Check that stderr holds one error, with a remedy, and nothing else."""
    lines = stderr.strip().splitlines()
    assert lines and lines[0].startswith("error: "), stderr
    assert all(line.startswith(("  where:", "  got:", "  fix:")) for line in lines[1:]), stderr
    assert lines[-1].startswith("  fix:"), stderr
    return stderr


# --- full disks -------------------------------------------------------------------------------------------------------


@contextmanager
def tmpfs(folder: Path, num_bytes: int) -> Iterator[Callable[[int], object]]:
    """Mount a disk of `num_bytes` at `folder`; yield a function that changes its size."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs root; the same fault is tested with a limit on the size of files")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def file_limit(folder: Path, num_bytes: int) -> Iterator[Callable[[int], object]]:
    """Let no file grow beyond `num_bytes`; yield a function that changes the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = {"tmpfs": (tmpfs, "No space left on device"), "limit": (file_limit, "File too large")}


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("name", ["出.jsonl", "出.parquet"])
def test_a_full_disk_while_converting(kind: str, name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    full, reason = FULL[kind]
    disk = place / "盘"
    disk.mkdir()
    with full(disk, 8192):
        (disk / name).write_text("旧")
        code = run("data", "convert", "多.jsonl", disk / name, "--overwrite")
        assert code == 2
        assert (disk / name).read_text() == "旧", "the older file must stay as it was"
        assert [path.name for path in disk.iterdir()] == [name]
    told = one_error(capfd.readouterr().err)
    assert f"cannot write {disk / name}" in told and reason in told


def checkpoint_files(tiny: Path, place: Path) -> dict[str, int]:
    """Return the files of a checkpoint, and their sizes in bytes."""
    assert run(*training(tiny, place / "样")) == 0
    return {file.name: file.stat().st_size for file in (place / "样/latest/best/").iterdir()}


def training(tiny: Path, runs: Path, **changes: object) -> list[object]:
    """Return a command that trains for four steps, two of them an epoch."""
    settings = {"num_epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "max_length_tokens": 256} | changes
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    return ["train", "--train", "少.jsonl", "--model", tiny, "--output-dir", runs, *flags]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_file_of_the_checkpoint_that_cannot_be_written(
    file: str, tiny: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes = checkpoint_files(tiny, place)
    assert sizes["optimizer.pt"] > sizes["model.safetensors"] > 10_000
    capfd.readouterr()
    with file_limit(place, sizes[file] - 5000):
        assert run(*training(tiny, place / "跑")) == 2
    told = one_error(capfd.readouterr().err)
    assert "no checkpoint was saved yet" in told and "--resume-training" in told and str(place / "跑") in told
    folder = (place / "跑/latest").resolve()
    assert not checkpoints(folder) and not list(folder.rglob("*.partial")) and not (folder / ".partial").exists()
    assert run(*training(tiny, place / "跑"), "--resume-training") == 0
    assert_same_run(folder, (place / "样/latest").resolve())


def test_a_disk_that_fills_up_during_training(tiny: Path, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint_bytes = sum(checkpoint_files(tiny, place).values())
    capfd.readouterr()
    disk = place / "盘"
    disk.mkdir()
    with tmpfs(disk, int(1.6 * checkpoint_bytes)) as resize:
        assert run(*training(tiny, disk)) == 2
        told = one_error(capfd.readouterr().err)
        assert "checkpoint-2 is whole" in told and "MB are free" in told and "--resume-training" in told
        folder = (disk / "latest").resolve()
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
        assert not list(folder.glob(".*partial"))
        resize(10 * checkpoint_bytes)
        assert run(*training(tiny, disk), "--resume-training") == 0
        assert_same_run(folder, (place / "样/latest").resolve())


def test_a_disk_too_full_to_begin(tiny: Path, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    disk = place / "盘"
    disk.mkdir()
    with tmpfs(disk, 4096):
        (disk / "满").write_bytes(b"0" * 4096)
        assert run(*training(tiny, disk)) == 2
        assert [path.name for path in disk.iterdir()] == ["满"]
    assert "No space left" in one_error(capfd.readouterr().err)


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Check that two runs ended with the same weights after the same steps, each told once."""
    steps = [[line["step"] for line in read_metrics(folder) if "loss" in line] for folder in (ours, theirs)]
    assert steps[0] == steps[1]
    weights, expected = (load_file(folder / "best/model.safetensors") for folder in (ours, theirs))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert json.loads((ours / "run.json").read_text())["finished"] is True


# --- real processes ---------------------------------------------------------------------------------------------------


def deft(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start `deft …` as a process, its output buffered as a user has it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment} | options
    return subprocess.Popen([sys.executable, "-m", "deft", *map(str, arguments)], text=True, **pipes)  # type: ignore


def wait_until(holds: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process does."""
    start = time.monotonic()
    while not holds():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() - start < PATIENCE_S, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("output", ["closed pipe", "full device", "no output"])
def test_an_output_that_cannot_be_written(output: str, place: Path) -> None:
    if output == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        process = deft("models", stdout=writer)
        os.close(writer)
    elif output == "full device":
        with Path("/dev/full").open("w") as full:
            process = deft("models", stdout=full)
    else:
        process = deft("models", stdout=None, preexec_fn=lambda: os.close(1))
    _, told = process.communicate(timeout=PATIENCE_S)
    if output == "full device":
        assert process.returncode == 2
        assert "No space left" in one_error(told)
    else:
        assert told == ""
        assert (process.returncode != 0) == (output == "closed pipe")


def test_an_output_in_another_encoding(place: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "gbk"}
    process = subprocess.run(
        [sys.executable, "-m", "deft", "data", "convert", "少.jsonl", "出.jsonl"],
        check=False,
        capture_output=True,
        env=environment,
    )
    assert (process.returncode, process.stderr) == (0, b"")
    assert "8 rows → 出.jsonl" in process.stdout.decode("gbk")


LONG = {"num_epochs": 20, "batch_size": 1}
"""160 steps, which take some seconds, with a checkpoint after every eight."""


def test_control_c_leaves_a_whole_checkpoint_and_says_how_to_go_on(tiny: Path, place: Path) -> None:
    command = training(tiny, place / "跑", **LONG)
    process = deft(*command)
    wait_until(lambda: len(read_metrics(place / "跑/latest")) > 3, process)
    process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, told
    assert "--resume-training" in said and told == ""
    folder = (place / "跑/latest").resolve()
    step = read_metrics(folder)[-1]["step"]
    assert step < 160, "the run was over before the signal came"
    assert checkpoints(folder)[-1].name == f"checkpoint-{step}"
    assert not list(folder.glob(".*partial"))
    assert run(*command, "--resume-training") == 0
    assert run(*training(tiny, place / "样", **LONG)) == 0
    assert_same_run(folder, (place / "样/latest").resolve())


@pytest.mark.slow
def test_control_c_twice_stops_at_once(tiny: Path, place: Path) -> None:
    process = deft(*training(tiny, place / "跑", num_epochs=4000))
    wait_until(lambda: len(read_metrics(place / "跑/latest")) > 3, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert not list((place / "跑/latest").glob(".*partial"))


DIES_WHILE_SAVING = """
import os, sys
from deft.commands import app as cli
from deft.training.record import RunRecord
def die(*_): os.kill(os.getpid(), 9)
RunRecord.save_rows = die
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "moment",
    [
        "while saving",
        pytest.param("before the first checkpoint", marks=pytest.mark.slow),
        pytest.param("after a checkpoint", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on(moment: str, tiny: Path, place: Path) -> None:
    settings = LONG | {"save_steps": 7}
    command = training(tiny, place / "跑", **settings)
    if moment == "while saving":
        process = subprocess.run(
            [sys.executable, "-c", DIES_WHILE_SAVING, *map(str, command)], check=False, capture_output=True
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert list((place / "跑/latest").glob(".*partial")), "it did not die while saving"
    else:
        started = deft(*command)
        there = "checkpoint-7" if moment == "after a checkpoint" else "metrics.jsonl"
        wait_until((place / "跑/latest" / there).exists, started)
        started.kill()
        started.communicate(timeout=PATIENCE_S)
    folder = (place / "跑/latest").resolve()
    assert json.loads((folder / "run.json").read_text())["finished"] is False
    assert all((found / "model.safetensors").exists() for found in checkpoints(folder))
    assert run(*command, "--resume-training") == 0
    assert not list(folder.glob(".*partial"))
    assert run(*training(tiny, place / "样", **settings)) == 0
    assert_same_run(folder, (place / "样/latest").resolve())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "--train", "少.jsonl", "--max-length-tokens", "8", "--model", "{tiny}"],
            "no training row is usable",
        ),
        (["train", "--train", "少.jsonl", "--model", "some/model"], "the hub is switched off"),
        (["data", "audit", "少.jsonl", "--model", "少.jsonl"], "a model is a folder"),
        (["pull", "smollm2-135m", "--from", "少.jsonl"], "a model is taken from"),
    ],
)
def test_no_library_speaks_beside_the_error(arguments: list[str], words: str, tiny: Path, place: Path) -> None:
    process = deft(*[each.format(tiny=tiny) for each in arguments])
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert words in one_error(told)
