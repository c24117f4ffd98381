"""The kernel of a run's products is said, recorded, kept when the run is resumed, and not lost to libraries."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from deft.errors import UserError
from deft.model.matmul import Choice, Kernel, Measured
from deft.testing.tiny import save_tiny
from deft.training import kernel, trainer
from deft.training.config import TrainConfig
from deft.training.progress import Progress
from deft.training.run import TrainResult, train
from deft.types import Example, Message

ROWS = [
    Example.create([Message(role="user", content=f"{n} 加一?"), Message(role="assistant", content=f"是 {n + 1}。")])
    for n in range(8)
]


def run(folder: Path, console: Console | None = None, **changes: object) -> TrainResult:
    model = folder / "模型"
    values = {"model": str(model), "output_dir": folder / "runs", "batch_size": 4, "num_epochs": 2} | changes
    if not model.exists():
        save_tiny(model, "llama", seed=5)
    return train(TrainConfig(**values), ROWS, ROWS[:2], console or Console(quiet=True))  # type: ignore[arg-type]


def choosing(name: Kernel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have this kernel be the fastest; return the list of what is asked for."""
    asked: list[str] = []
    rates = {"plain": 200e9, "onednn": 445e9, "bfloat16": 890e9}
    measured = {way: Measured(flop_per_s=rate, error=4e-7) for way, rate in rates.items()}

    def choose(model: object, num_tokens: int, wanted: str = "auto", **_: object) -> Choice:
        asked.append(wanted)
        return Choice(kernel=name if wanted == "auto" else wanted, measured=measured)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel, "choose_kernel", choose)
    monkeypatch.setattr(kernel, "exact_kernels", lambda: ("plain", "onednn"))  # on processors of all kinds
    return asked


@pytest.mark.parametrize("name", ["plain", "onednn"])
def test_the_kernel_is_used_in_every_pass_whatever_libraries_set(
    name: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choosing(name, monkeypatch)
    met: list[tuple[str, str]] = []
    meddled: list[str] = []
    plain_forward = torch.nn.functional.silu

    def silu(*args: object, **options: object) -> torch.Tensor:
        met.append(("forward", torch.backends.mkldnn.matmul.fp32_precision))
        out = plain_forward(*args, **options)  # type: ignore[arg-type]
        if out.requires_grad:
            out.register_hook(lambda _: met.append(("backward", torch.backends.mkldnn.matmul.fp32_precision)))
        return out

    class Meddling(trainer.SupervisedTrainer):
        def run_batch(self, *args: object) -> object:
            meddled.append(name)
            torch.set_float32_matmul_precision("medium" if name == "plain" else "highest")
            return super().run_batch(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "silu", silu)
    monkeypatch.setattr("deft.training.run.SupervisedTrainer", Meddling)
    before = torch.backends.mkldnn.matmul.fp32_precision
    result = run(tmp_path, max_steps=2)
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.matmul.fp32_precision = before
    assert json.loads((result.folder / "run.json").read_text())["products"] == name
    wanted = {"plain": "ieee", "onednn": "bf16"}[name]
    assert len(meddled) == 2
    assert {"forward", "backward"} <= {place for place, _ in met}
    of_training = [precision for _, precision in met[-12:]]
    assert set(of_training) == {wanted}


def test_a_resumed_run_goes_on_with_the_kernel_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choosing("onednn", monkeypatch)
    stepped = Progress.stepped

    def stop(self: Progress, step: int) -> None:
        stepped(self, step)
        self.stop_asked = step == 1

    monkeypatch.setattr(Progress, "stepped", stop)
    stopped = run(tmp_path)
    assert not stopped.finished
    monkeypatch.setattr(Progress, "stepped", stepped)
    asked = choosing("plain", monkeypatch)
    resumed = run(tmp_path, resume_training=True)
    assert resumed.finished and resumed.folder == stopped.folder
    assert asked == ["onednn"]
    assert json.loads((resumed.folder / "run.json").read_text())["products"] == "onednn"


def test_the_choice_is_said_with_what_bfloat16_would_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choosing("onednn", monkeypatch)
    said = StringIO()
    run(tmp_path, Console(file=said, width=200), max_steps=1)
    text = said.getvalue()
    assert "matrix products by oneDNN: 445 GFLOP/s (MKL 200), relative error 4e-07" in text
    assert "in bfloat16 they are 2.0 times as fast: --fast" in text


def test_fast_means_bfloat16_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "multiplies_in_bfloat16", lambda: True)
    assert kernel.with_fast_dtype(TrainConfig(fast=True)).dtype == "bfloat16"
    assert kernel.with_fast_dtype(TrainConfig()).dtype == "auto"
    with pytest.raises(UserError, match="fast means bfloat16"):
        kernel.with_fast_dtype(TrainConfig(fast=True, dtype="float32"))
    monkeypatch.setattr(kernel, "multiplies_in_bfloat16", lambda: False)
    assert kernel.with_fast_dtype(TrainConfig(fast=True)).dtype == "auto"
