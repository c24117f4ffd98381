"""What a run does with checkpoints that are damaged, incomplete or not its own: it says which, and takes no harm."""

import json
import os
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from deft.errors import UserError
from deft.hub.manifest import MANIFEST, check_manifest, find_fault, write_manifest
from deft.testing.tiny import save_tiny
from deft.training.checkpoint import POSITION_FILE, checkpoints, prune_checkpoints, why_not_to_resume
from deft.training.config import TrainConfig
from deft.training.order import Position
from deft.training.progress import Progress
from deft.training.record import read_metrics, read_rows
from deft.training.run import TrainResult, train
from deft.training.runfolder import Resumption, choose_checkpoint
from deft.types import Example, Message

NUM_ROWS = 11


def examples(ability: str = "数学") -> list[Example]:
    made = []
    for number in range(NUM_ROWS):
        messages = [Message(role="user", content=f"{number} 加一等于几？"), Message(role="assistant", content="想想。")]
        made.append(Example.create(messages, ability=ability))
    return made


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("模型") / "llama", "llama", seed=5)


def settings(llama: Path, runs: Path, **changes: Any) -> TrainConfig:
    values = {"model": str(llama), "output_dir": runs, "batch_size": 2, "num_epochs": 2, "show_rows": 0}
    rates = {"learning_rate": 2e-3, "end_learning_rate": 1e-4, "max_length_tokens": 128, "save_total_limit": 9}
    return TrainConfig(**(values | rates | changes))  # type: ignore[arg-type]


class StopAfter(Progress):
    last_step = 0

    def stepped(self, step: int) -> None:
        super().stepped(step)
        self.stop_asked = step >= self.last_step


def stopped(llama: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, after: int, **changes: Any) -> Path:
    """Return the folder of a run that was stopped after a step."""
    with monkeypatch.context() as patched:
        patched.setattr(StopAfter, "last_step", after)
        patched.setattr("deft.training.run.Progress", StopAfter)
        return train(settings(llama, runs, **changes), examples(), [], Console(quiet=True)).folder


def resumed(llama: Path, runs: Path, **changes: Any) -> tuple[TrainResult, str]:
    """Resume the run; return its result and what was said."""
    said = Console(file=StringIO(), width=500)
    result = train(settings(llama, runs, resume_training=True, **changes), examples(), [], said)
    return result, said.file.getvalue()  # type: ignore[attr-defined]


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def made_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


STATE = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "rows.parquet", "model.safetensors"]
DAMAGES = [
    *[(flipped, name) for name in ("optimizer.pt", "model.safetensors")],
    *[(cut, name) for name in (*STATE, MANIFEST)],
    *[(emptied, name) for name in STATE],
    *[(Path.unlink, name) for name in (*STATE, MANIFEST)],
]


@pytest.fixture(scope="module")
def saved(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints."""
    runs = tmp_path_factory.mktemp("训练")
    return train(settings(llama, runs, max_steps=6, save_steps=2), examples(), [], Console(quiet=True)).folder


@pytest.mark.parametrize(("damage", "name"), DAMAGES, ids=[f"{d.__name__}-{n}" for d, n in DAMAGES])
def test_a_damaged_checkpoint_is_passed_over_for_the_last_whole_one(
    saved: Path, tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    run = tmp_path / "训练"
    shutil.copytree(saved, run, symlinks=True)
    damage(run / "checkpoint-6" / name)
    said: list[str] = []
    found = choose_checkpoint(run, num_rows=NUM_ROWS, verify=True, tell=said.append)
    assert found == Resumption(checkpoint=run / "checkpoint-4", position=Position(step=4, epoch=0, num_met=8))
    assert len(said) == 1 and said[0].startswith(f"checkpoint-6 is passed over: {name}")
    assert [one.name for one in checkpoints(run)] == ["checkpoint-2", "checkpoint-4"]
    assert (run / "damaged-checkpoint-6").is_dir(), "it can still be looked at"


def test_resumed_from_an_older_checkpoint_a_run_ends_with_the_same_weights(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(settings(llama, tmp_path / "整"), examples(), [], Console(quiet=True)).best
    run = stopped(llama, tmp_path / "断", monkeypatch, after=4, save_steps=2)
    flipped(run / "checkpoint-4" / "optimizer.pt")
    result, said = resumed(llama, tmp_path / "断", save_steps=2)
    assert "checkpoint-4 is passed over: optimizer.pt has changed" in said
    assert "checkpoint-2" in said.partition("resuming")[2]
    ours, theirs = load_file(result.best / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_without_manifest_an_incomplete_checkpoint_is_still_told(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(llama, tmp_path, monkeypatch, after=3)
    for name in (MANIFEST, POSITION_FILE):  # an earlier version wrote neither
        (run / "checkpoint-3" / name).unlink()
    emptied(run / "checkpoint-3" / "optimizer.pt")
    with pytest.raises(UserError) as caught:
        resumed(llama, tmp_path)
    assert caught.value.what == "the run cannot resume from any of its checkpoints"
    assert "it has no optimizer.pt" in str(caught.value.got) and caught.value.where == str(run / "checkpoint-3")
    assert (run / "checkpoint-3").is_dir(), "nothing is lost"


def test_verification_can_be_left_out(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped(llama, tmp_path, monkeypatch, after=3)
    stored = json.loads((run / "checkpoint-3" / MANIFEST).read_text(encoding="utf-8"))
    stored["files"]["model.safetensors"]["sha256"] = "0" * 64
    (run / "checkpoint-3" / MANIFEST).write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(UserError, match="cannot resume"):
        resumed(llama, tmp_path)
    assert resumed(llama, tmp_path, verify="none")[0].finished


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "optimizer.pt", "rng_state.pth"])
def test_a_damaged_checkpoint_that_was_trusted_is_told(
    llama: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(llama, tmp_path, monkeypatch, after=1)
    cut(run / "checkpoint-1" / name)
    with pytest.raises(UserError, match="the checkpoint cannot be restored") as caught:
        resumed(llama, tmp_path, verify="none")
    assert caught.value.where == str(run / "checkpoint-1") and "leave out --verify none" in str(caught.value.fix)


@pytest.mark.parametrize("name", ["scheduler.pt", "optimizer.pt", "rng_state.pth"])
def test_a_folder_in_place_of_a_state_is_none(saved: Path, tmp_path: Path, name: str) -> None:
    checkpoint = shutil.copytree(saved / "checkpoint-6", tmp_path / "checkpoint-6")
    made_a_folder(checkpoint / name)
    assert f"it has no {name}" in str(why_not_to_resume(checkpoint, verify=False))


@pytest.mark.parametrize("values", [{"global_step": 5}, {"未知": 1}])
def test_a_state_of_another_step_is_none_to_resume_from(saved: Path, tmp_path: Path, values: dict[str, int]) -> None:
    checkpoint = shutil.copytree(saved / "checkpoint-6", tmp_path / "checkpoint-6")
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    (checkpoint / "trainer_state.json").write_text(json.dumps(state | values), encoding="utf-8")
    assert str(why_not_to_resume(checkpoint, verify=False)).startswith("trainer_state.json is")


def test_what_is_no_checkpoint_is_left_alone(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped(llama, tmp_path, monkeypatch, after=3)
    for name in ("checkpoint-x", "checkpoint-", "checkpoint-99"):
        (run / name).mkdir()
    (run / "checkpoint-7").write_text("不是文件夹", encoding="utf-8")
    with (run / "metrics.jsonl").open("ab") as stream:
        stream.write(b'[1]\n{"step": "\xff\n')
    result, said = resumed(llama, tmp_path)
    assert result.finished and "checkpoint-99 is passed over" in said
    assert (run / "checkpoint-x").is_dir()
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == list(range(1, 13))


def test_a_checkpoint_of_the_model_alone_is_none_to_resume_from(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(llama, tmp_path, monkeypatch, after=3, trainer={"save_only_model": True})
    with pytest.raises(UserError, match="cannot resume") as caught:
        resumed(llama, tmp_path, trainer={"save_only_model": True})
    assert "it has no optimizer.pt, scheduler.pt, rng_state.pth" in str(caught.value.got)


def test_a_resumed_run_leaves_a_recipe_that_repeats_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(llama, tmp_path, monkeypatch, after=2)
    resumed(llama, tmp_path, allow_changed=("learning_rate",))
    stored = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["train"]
    assert (stored["resume_training"], stored["allow_changed"]) == (False, [])


def test_one_checkpoint_is_kept_where_one_was_asked_for(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(llama, tmp_path, monkeypatch, after=5, save_steps=2, save_total_limit=1)
    assert [one.name for one in checkpoints(run)] == ["checkpoint-5"]
    result, _ = resumed(llama, tmp_path, save_steps=2, save_total_limit=1)
    assert [one.name for one in checkpoints(run)] == ["checkpoint-12"]
    assert (result.best / "model.safetensors").is_file()


def test_pruning_keeps_the_best(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    prune_checkpoints(tmp_path, keep=1, best_step=4)
    assert [one.name for one in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-8"]


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 4},
        pytest.param({"batch_size": 1}, marks=pytest.mark.slow),
        pytest.param({"gradient_accumulation": 3}, marks=pytest.mark.slow),
    ],
)
def test_with_other_rows_in_a_step_an_epoch_still_meets_every_row_once(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    run = stopped(llama, tmp_path, monkeypatch, after=2)
    result, _ = resumed(llama, tmp_path, allow_changed=("rows_per_step",), **changes)
    met = [(row.epoch, row.row) for row in read_rows(run) if row.split == "train"]
    assert sorted(met) == [(epoch, row) for epoch in (1, 2) for row in range(NUM_ROWS)]
    rows_per_step = changes.get("batch_size", 2) * changes.get("gradient_accumulation", 1)
    left, whole_epoch = -(-(NUM_ROWS - 4) // rows_per_step), -(-NUM_ROWS // rows_per_step)
    steps = [line["step"] for line in read_metrics(run) if "loss" in line]
    assert steps == list(range(1, 2 + left + whole_epoch + 1))
    assert result.finished


def test_equal_conversations_count_for_each_of_their_abilities(llama: Path, tmp_path: Path) -> None:
    valid = examples("推理")[:2] + examples("数学")[:2]
    result = train(settings(llama, tmp_path, valid=(Path("给"),)), examples(), valid, Console(quiet=True))
    rows = [row for row in read_rows(result.folder) if row.split == "valid" and row.epoch == 2]
    assert [(row.row, row.ability) for row in sorted(rows, key=lambda row: row.row)] == [
        (0, "推理"),
        (1, "推理"),
        (2, "数学"),
        (3, "数学"),
    ]
    assert rows[0].id in {row.id for row in rows[2:]} or rows[1].id in {row.id for row in rows}
    [last] = [line for line in read_metrics(result.folder) if line.get("step") == 12 and "eval_loss" in line]
    assert last["eval_loss_推理"] == pytest.approx(last["eval_loss_数学"])


def test_the_last_validation_belongs_to_the_epoch_that_max_steps_cut_short(llama: Path, tmp_path: Path) -> None:
    config = settings(llama, tmp_path, valid=(Path("给"),), max_steps=8)
    result = train(config, examples(), examples()[:3], Console(quiet=True))
    table = pq.read_table(result.folder / "rows.parquet").to_pylist()
    assert {(row["epoch"], row["step"]) for row in table if row["split"] == "valid"} == {(0, 0), (1, 6), (2, 8)}
    last = [row for row in table if row["split"] == "valid" and row["step"] == 8]
    assert result.valid_loss == pytest.approx(
        sum(row["nll"] for row in last) / sum(row["num_supervised"] for row in last)
    )


def test_a_run_that_is_going_on_is_not_resumed(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deft.training.lock import run_held

    run = stopped(llama, tmp_path, monkeypatch, after=3)
    (run / ".半.partial").mkdir()
    with run_held(run), pytest.raises(UserError, match="this run is still in progress"):
        resumed(llama, tmp_path)
    assert (run / ".半.partial").is_dir(), "what the other process is writing is left alone"
    assert resumed(llama, tmp_path)[0].finished


def test_a_damaged_model_is_neither_trained_nor_merged(llama: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "模型", "llama", seed=5)
    write_manifest(model)
    check_manifest(model)
    (model / "README.md").write_text("人写的说明", encoding="utf-8")
    assert find_fault(model) is None
    flipped(model / "model.safetensors")
    with pytest.raises(UserError) as caught:
        train(settings(model, tmp_path / "runs"), examples(), [], Console(quiet=True))
    assert caught.value.got == "model.safetensors has changed since it was written"
    assert caught.value.where == str(model) and "--verify none" in str(caught.value.fix)


def test_a_checkpoint_without_its_training_state_is_a_whole_model(saved: Path, tmp_path: Path) -> None:
    model = tmp_path / "模型"
    shutil.copytree(saved / "best", model)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "rows.parquet"):
        (model / name).unlink()
    check_manifest(model)
    assert find_fault(model) == "optimizer.pt is missing", "and none to resume from"
    (model / "config.json").unlink()
    with pytest.raises(UserError, match="changed since it was written") as caught:
        check_manifest(model)
    assert caught.value.got == "config.json is missing"


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json"])
def test_a_pipe_in_a_run_is_not_waited_for(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = stopped(llama, tmp_path, monkeypatch, after=3)
    (run / name).unlink()
    os.mkfifo(run / name)
    if name == "metrics.jsonl":
        assert resumed(llama, tmp_path)[0].finished
        return
    with pytest.raises(UserError, match="record of a run is damaged") as caught:
        resumed(llama, tmp_path)
    assert caught.value.where == str(run / name), "the folder itself, not the link `latest`"


def test_a_run_without_its_record_is_named(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped(llama, tmp_path, monkeypatch, after=3)
    (run / "run.json").unlink()
    with pytest.raises(UserError, match="no unfinished run") as caught:
        resumed(llama, tmp_path)
    assert caught.value.got == f"{run.name} has checkpoints and no run.json"
