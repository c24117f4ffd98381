"""`deft runs`: what it lists, shows, compares and removes, in 80 columns."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest

from deft.commands import app as cli
from deft.errors import UserError
from deft.files import write_json
from deft.training.lock import is_running, run_held

FIRST, SECOND, THIRD = "20260102-030405", "20260102-030406", "20260103-000000"


def make_run(
    folder: Path, *, finished: bool = True, losses: tuple[float, ...] = (), rate: float = 1e-4, **other: Any
) -> None:
    """A run of two steps an epoch, without its weights; `losses` are those before and after each epoch."""
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "checkpoint-2/trainer_state.json").write_text('{"max_steps": 4}')
    (folder / "checkpoint-2/model.safetensors").write_bytes(b"0" * 2_500_000)
    settings = {"model": "模型/小[模型]", "method": "lora", "learning_rate": rate, "valid": [], "trainer": {}}
    record = {
        "settings": settings,
        "num_train_rows": 1240,
        "num_valid_rows": 20,
        "valid_rows": "v",
        "finished": finished,
    }
    write_json(folder / "run.json", record | {"held_out": ["a"]} | other)
    lines: list[dict[str, Any]] = []
    for epoch, loss in enumerate(losses):
        if epoch:
            lines += [{"step": 2 * epoch - 1, "loss": loss + 1, "epoch": epoch}]
        lines.append({"step": 2 * epoch, "eval_loss": loss, "eval_loss_数学": loss / 2, "epoch": epoch})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs: finished, finished with another rate, and stopped after two of four steps; the last is `latest`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    make_run(tmp_path / "runs" / FIRST, losses=(4.0, 3.0, 3.25))
    make_run(tmp_path / "runs" / SECOND, losses=(4.0, 2.5, 2.0), rate=5e-4)
    make_run(tmp_path / "runs" / THIRD, losses=(4.0, 3.5), finished=False)
    (tmp_path / "runs/latest").symlink_to(THIRD)
    (tmp_path / "runs/notes.txt").write_text("不是一次训练")
    return tmp_path / "runs"


def deft(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["runs", *arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_the_list_is_newest_first_and_fits_80_columns(place: Path, capsys: Any) -> None:
    code, out, _ = deft(capsys, "list")
    lines = [line.rstrip() for line in out.splitlines()]
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert re.split(r"  +| ", lines[0]) == ["run", "model", "method", "rows", "steps", "state", "loss", "size"]
    assert re.fullmatch(rf"{THIRD} 小\[模型\] +lora +1,240 +2/4 unfinished 4.00 → 3.50 +3 MB", lines[1])
    assert re.fullmatch(rf"{SECOND} 小\[模型\] +lora +1,240 +4 finished +4.00 → 2.00 +3 MB", lines[2])
    assert lines[3].startswith(FIRST)
    assert "4.00 → 3.00" in lines[3], "the best epoch, not the last"


def test_an_empty_folder_says_what_to_do(tmp_path: Path, capsys: Any) -> None:
    code, out, _ = deft(capsys, "list", "--runs", str(tmp_path / "[空]"))
    assert code == 0
    assert f"there are no runs in {tmp_path}/[空] yet: deft train --train FILE begins one" in out


def test_a_run_is_shown_with_settings_and_losses_by_epoch_and_ability(place: Path, capsys: Any) -> None:
    _, out, _ = deft(capsys, "show", FIRST)
    flat = {
        line.split("  ")[0].strip() or line.strip().split("  ")[0]: " ".join(line.split()) for line in out.splitlines()
    }
    assert flat["learning_rate"] == "learning_rate 0.0001"
    assert flat["valid"] == "valid held out"
    assert flat["before training"] == "before training 4.0000"
    assert flat["epoch 2"] == "epoch 2 3.2500"
    assert flat["数学"] == "数学 2.0000 → 1.5000"
    assert deft(capsys, "show")[1].startswith(f"{THIRD}  unfinished"), "latest, where none is named"


def test_runs_stand_side_by_side_with_what_differs(place: Path, capsys: Any) -> None:
    _, out, _ = deft(capsys, "compare", FIRST, SECOND)
    lines = {tuple(re.split(r"  +", line.strip())) for line in out.splitlines()}
    assert ("learning_rate", "0.0001", "0.0005") in lines
    assert ("epoch 2", "3.2500", "2.0000") in lines
    assert ("数学", "2.0000 → 1.5000", "2.0000 → 1.0000") in lines
    assert "method" not in out
    assert "do not compare" not in out


def test_runs_measured_on_different_rows_are_not_compared_silently(place: Path, capsys: Any) -> None:
    make_run(place / "20260104-000000", losses=(4.0, 1.0), valid_rows="w")
    _, out, _ = deft(capsys, "compare", FIRST, "20260104-000000")
    assert "these were measured on different rows" in out


def test_removing_takes_the_run_and_moves_latest(place: Path, capsys: Any) -> None:
    code, out, _ = deft(capsys, "remove", "latest", "--yes")
    assert code == 0
    assert f"✓ removed runs/{THIRD}" in out
    assert sorted(path.name for path in place.iterdir()) == [FIRST, SECOND, "latest", "notes.txt"]
    assert (place / "latest").resolve().name == SECOND
    deft(capsys, "remove", FIRST, f"runs/{SECOND}", "--yes")
    assert [path.name for path in place.iterdir()] == ["notes.txt"], "a link to nothing goes with the last run"


@pytest.mark.parametrize(("answer", "left"), [("n", True), ("", True), ("yes", False)])
def test_it_asks_first(place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, answer: str, left: bool) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    _, out, _ = deft(capsys, "remove", FIRST)
    assert f"{FIRST}  finished  3 MB" in out
    assert (place / FIRST).exists() is left


def test_nothing_is_removed_where_nobody_can_be_asked(place: Path, capsys: Any) -> None:
    code, _, err = deft(capsys, "remove", FIRST)
    assert code == 2
    assert "--yes" in err
    assert (place / FIRST).exists()


def test_a_run_that_is_going_is_not_removed(place: Path, capsys: Any) -> None:
    with run_held(place / THIRD):
        code, _, err = deft(capsys, "remove", FIRST, THIRD, "--yes")
        assert code == 2
        assert "this run is still in progress" in err
        assert (place / FIRST).exists(), "none goes where one may not"
        assert re.search(rf"{THIRD} .* running ", deft(capsys, "list")[1])
    assert re.search(rf"{THIRD} .* unfinished ", deft(capsys, "list")[1])
    (place / THIRD / ".lock").write_text("")
    assert not is_running(place / THIRD), "a lock that nobody holds is none"


def test_two_processes_do_not_train_in_one_folder(place: Path) -> None:
    with run_held(place / THIRD), pytest.raises(UserError, match="still in progress"), run_held(place / THIRD):
        raise AssertionError("the second must not begin")


@pytest.mark.parametrize("fault", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")])
def test_a_disk_that_knows_no_locks_is_trained_on_all_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr("deft.locks.FileLock.acquire", refuse)
    with run_held(place / THIRD):
        assert not is_running(place / THIRD)


@pytest.mark.parametrize("name", ["20260102-030407", ".", "..", "../数据", "notes.txt", ""])
def test_only_runs_are_found(place: Path, capsys: Any, name: str) -> None:
    (place.parent / "数据").mkdir()
    code, _, err = deft(capsys, "remove", name, "--yes")
    assert code == 2
    assert "there is no such run" in err
    assert len(list(place.iterdir())) == 5


@pytest.mark.parametrize("record", ["", "[]", '{"settings": null, "finished": "?"}', '{"settings": {"model": 3}}'])
def test_damaged_records_are_listed_all_the_same(place: Path, capsys: Any, record: str) -> None:
    (place / SECOND / "run.json").write_text(record)
    (place / SECOND / "metrics.jsonl").write_text('[1]\n{"loss": 1}\n{"st')
    code, out, _ = deft(capsys, "list")
    assert code == 0
    assert SECOND in out
    assert deft(capsys, "show", SECOND)[0] == 0
