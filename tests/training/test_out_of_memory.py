"""Running out of memory: the step is done again in shorter packs, and the run is the one it would have been."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from deft.errors import UserError
from deft.model import likelihood
from deft.model.likelihood import PackedRows
from deft.model.memory import is_out_of_memory
from deft.testing.tiny import save_tiny
from deft.training import run
from deft.training.config import TrainConfig
from deft.training.out_of_memory import shorter_capacity
from deft.types import Example, Message

LIMIT_TOKENS = 130


def examples(num_rows: int = 12) -> list[Example]:
    """Rows of several lengths, some of which weigh less or more in the loss."""
    made = []
    for number in range(num_rows):
        question = f"第 {number} 题：" + "请算。" * (number % 4)
        reply = f"{number} 的答案 is {number * number}."
        answer = Message(role="assistant", content=reply, weight=(1, 0.25, 1, 3)[number % 4])
        made.append(Example.create([Message(role="user", content=question), answer]))
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", seed=3)


def train(model: Path, folder: Path, console: Console | None = None, **changes) -> run.TrainResult:
    settings = {"batch_size": 3, "gradient_accumulation": 2, "num_epochs": 2, "learning_rate": 1e-3, "show_rows": 0}
    config = TrainConfig(model=str(model), output_dir=folder, valid=(folder,), **(settings | changes))
    return run.train(config, examples(), examples(7), console or Console(quiet=True))


def metrics(result: run.TrainResult) -> list[dict]:
    return [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("where", [pytest.param("forward", marks=pytest.mark.slow), "backward"])
def test_a_run_that_runs_out_of_memory_is_the_run_it_would_have_been(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    whole = train(model, tmp_path / "whole")
    plain = likelihood.supervised_nll
    seen: list[int] = []

    def exhausted(_: torch.Tensor) -> None:
        if seen[-1] > LIMIT_TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def limited(one_model, packed: PackedRows) -> likelihood.SupervisedNLL:
        if not seen and where == "backward":  # the second layer's gradients are there when the first layer's fail
            one_model.model.layers[0].mlp.down_proj.weight.register_hook(exhausted)
        seen.append(packed.num_tokens)
        if torch.is_grad_enabled() and packed.num_tokens > LIMIT_TOKENS and where == "forward":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return plain(one_model, packed)

    monkeypatch.setattr(likelihood, "supervised_nll", limited)
    console = Console(record=True, width=200, quiet=False, file=(tmp_path / "log").open("w", encoding="utf-8"))
    short = train(model, tmp_path / "short", console)

    assert "out of memory with a pack of" in (text := console.export_text()), text
    shortened = [line["pack_capacity_tokens"] for line in metrics(short) if "pack_capacity_tokens" in line]
    assert shortened, "nothing ran out of memory"
    losses = [[line["loss"] for line in metrics(result) if "loss" in line] for result in (whole, short)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    tensors = [load_file(result.best / "model.safetensors") for result in (whole, short)]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, atol=1e-5, rtol=1e-4)
    rows = [[(row["id"], row["epoch"], row["split"]) for row in read_rows(result)] for result in (whole, short)]
    assert sorted(rows[0]) == sorted(rows[1]), "each row is recorded once an epoch"


def read_rows(result: run.TrainResult) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(result.folder / "rows.parquet").to_pylist()


def test_validation_runs_again_in_shorter_packs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(model, tmp_path / "whole", num_epochs=1)
    plain = likelihood.supervised_nll

    def limited(one_model, packed: PackedRows) -> likelihood.SupervisedNLL:
        if one_model.training is False and packed.num_tokens > LIMIT_TOKENS:
            raise torch.OutOfMemoryError("HIP out of memory")
        return plain(one_model, packed)

    monkeypatch.setattr("deft.training.prepare.check_packing", lambda *_: 0.0)
    monkeypatch.setattr(likelihood, "supervised_nll", limited)
    short = train(model, tmp_path / "short", num_epochs=1)
    assert whole.valid_loss is not None
    assert any("pack_capacity_tokens" in line for line in metrics(short))
    assert short.valid_loss == pytest.approx(whole.valid_loss, abs=1e-5)


def test_a_single_row_that_does_not_fit_ends_the_run_with_a_remedy(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("deft.training.prepare.check_packing", lambda *_: 0.0)
    monkeypatch.setattr(likelihood, "supervised_nll", never)
    with pytest.raises(UserError, match=r"out of memory with a pack of .* in 1 rows") as caught:
        train(model, tmp_path)
    assert "--gradient-checkpointing" in str(caught.value)
    assert "--pack-length-tokens" not in str(caught.value)


def test_half_of_a_pack() -> None:
    def pack(num_tokens: int, num_rows: int) -> PackedRows:
        nothing = torch.zeros(0)
        ids = tuple(f"行{n}" for n in range(num_rows))
        return PackedRows(
            row_ids=ids,
            row_lengths=(num_tokens,),
            input_ids=torch.zeros(1, num_tokens),
            position_ids=nothing,
            predicting=nothing,
            targets=nothing,
            row_of=nothing,
        )

    assert shorter_capacity(pack(101, 2), alone=True) == 51
    with pytest.raises(UserError, match="2 rows") as caught:
        shorter_capacity(pack(101, 2), alone=False)
    assert "--max-length-tokens 51 --pack-length-tokens 51" in str(caught.value)


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("any"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
