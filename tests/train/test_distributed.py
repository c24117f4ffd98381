"""Two processes (gloo, on the CPU) train to the same loss as one, however unequal their shares are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from deft.data.read import read_examples
from deft.data.write import write_examples
from deft.errors import UserError
from deft.model.tiny import save_tiny
from deft.train.checkpoint import checkpoints
from deft.train.config import TrainConfig
from deft.train.record import read_metrics
from deft.train.run import train
from deft.train.trainer import SupervisedTrainer
from deft.types import Example, Message

MODES = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 23 rows (so that the last step has fewer than the others), and a run of one process."""
    folder = tmp_path_factory.mktemp("分布")
    save_tiny(folder / "model", "llama", seed=1)
    rows = []
    for number in range(23):
        reply = f"{number} 的平方是 {number * number}。" * (1 + number % 3)
        messages = [Message(role="user", content=f"{number} 的平方?" * (1 + number % 4))]
        rows.append(Example.create([*messages, Message(role="assistant", content=reply)], ability=f"能力{number % 2}"))
    write_examples(folder / "rows.jsonl", rows)
    run(folder, "one", batch_size=6)
    return folder


def run(folder: Path, name: str, *flags: str, num_processes: int = 1, **changes: object) -> Path:
    """Train by the command line and return the run's folder."""
    settings = {
        "model": "model",
        "train": ["rows.jsonl"],
        "valid": ["rows.jsonl"],
        "num_epochs": 2,
        "learning_rate": 1e-3,
        "max_length_tokens": 512,
        "pack_length_tokens": 512,
        "output_dir": name,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"train": settings | changes}), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--standalone"]
    command = [sys.executable, *(launcher if num_processes > 1 else []), "-m", "deft", "train", f"{name}.yaml", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("✓ trained") == 1, "one process speaks for all"
    return (folder / name / "latest").resolve()


def losses(folder: Path, key: str = "loss") -> list[float]:
    return [line[key] for line in read_metrics(folder) if key in line]


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_follow_the_curve_of_one(mode: str, place: Path) -> None:
    one = (place / "one/latest").resolve()
    two = run(place, mode, num_processes=2, batch_size=3, trainer=MODES[mode])
    assert (two / "best/pytorch_model_fsdp.bin").exists() == (mode == "fsdp2"), "a file that FSDP alone writes"
    assert len(losses(one)) == 8
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert losses(two, "eval_loss_能力1") == pytest.approx(losses(one, "eval_loss_能力1"), abs=1e-5)
    tables = [pq.read_table(folder / "rows.parquet").to_pylist() for folder in (one, two)]
    met = [{(row["id"], row["split"], row["epoch"]): row["nll"] for row in table} for table in tables]
    assert [len(table) for table in tables] == [len(met[0])] * 2, "every row is met once, by one of the processes"
    assert met[1] == pytest.approx(met[0], rel=1e-4)


def test_a_checkpoint_of_two_processes_goes_on_in_one(place: Path) -> None:
    two = run(place, "parts", num_processes=2, batch_size=3)
    stored = json.loads((two / "run.json").read_text(encoding="utf-8"))
    (two / "run.json").write_text(json.dumps(stored | {"finished": False}), encoding="utf-8")
    for late in checkpoints(two)[1:]:
        late.rename(two / "later")
    resumed = run(place, "parts", "--resume-training", batch_size=6)
    assert resumed == two
    assert losses(resumed) == pytest.approx(losses((place / "one/latest").resolve()), abs=1e-5)


@pytest.mark.slow
def test_a_sharded_run_goes_on_from_its_checkpoint(place: Path) -> None:
    two = run(place, "shards", num_processes=2, batch_size=3, trainer=MODES["fsdp2"])
    weights = load_file(two / "best/model.safetensors")
    stored = json.loads((two / "run.json").read_text(encoding="utf-8"))
    (two / "run.json").write_text(json.dumps(stored | {"finished": False}), encoding="utf-8")
    for late in checkpoints(two)[1:]:
        late.rename(two / "later")
    resumed = run(place, "shards", "--resume-training", num_processes=2, batch_size=3, trainer=MODES["fsdp2"])
    assert resumed == two
    assert losses(resumed) == pytest.approx(losses((place / "one/latest").resolve()), abs=1e-5)
    for name, tensor in load_file(two / "best/model.safetensors").items():
        assert torch.allclose(tensor, weights[name], atol=1e-6), name


@pytest.mark.slow
def test_sharded_losses_are_not_rounded_to_16_bits(place: Path) -> None:
    two = run(place, "halves", num_processes=2, batch_size=3, trainer=MODES["fsdp2"], dtype="bfloat16")
    sums = [row["nll"] * 256 for row in pq.read_table(two / "rows.parquet").to_pylist()]
    assert sum(value.is_integer() for value in sums) < len(sums) / 10, "bfloat16 counts in 1/256 from 0.5 nats on"
    assert losses(two) == pytest.approx(losses((place / "one/latest").resolve()), abs=0.03)


def test_fsdp_in_one_process_is_refused(place: Path) -> None:
    config = TrainConfig(model=str(place / "model"), output_dir=place / "alone", trainer={"fsdp": True})
    with pytest.raises(UserError, match="there is one alone") as caught:
        train(config, read_examples([place / "rows.jsonl"]).examples, [], Console(quiet=True))
    assert "torchrun" in str(caught.value.fix)
    assert not list((place / "alone").glob("*"))


def test_only_the_process_that_writes_saves_weights(tmp_path: Path) -> None:
    """The others come to the same place with no weights to save."""
    other = SimpleNamespace(args=SimpleNamespace(should_save=False))
    SupervisedTrainer._save(other, str(tmp_path / "checkpoint"), state_dict={})  # type: ignore[arg-type]
    assert not (tmp_path / "checkpoint").exists()
