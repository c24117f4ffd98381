"""A run whose loss or gradient is no longer sane stops, and names its rows."""

import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from deft.errors import UserError
from deft.testing.tiny import save_tiny
from deft.training import run
from deft.training.config import TrainConfig
from deft.training.divergence import DivergenceWatch
from deft.types import Example, Message

SANE = {"num_tokens": 100, "step": 7, "row_ids": ["行一", "行二"]}


def test_a_loss_that_is_no_number_names_step_and_rows() -> None:
    with pytest.raises(UserError, match="the loss became nan at step 7") as caught:
        DivergenceWatch(1000).check_loss(math.nan, **SANE)
    assert "行一, 行二" in str(caught.value)


def test_twice_the_loss_of_guessing_is_an_explosion() -> None:
    """ln(1000) is 6.908: 13.8 nats pass, 13.9 do not."""
    watch = DivergenceWatch(1000)
    watch.check_loss(3.0, **SANE)
    watch.check_loss(13.8, **SANE)
    with pytest.raises(UserError, match=r"the loss exploded to 13\.9 nats per token"):
        watch.check_loss(13.9, **SANE)


def test_a_model_that_begins_worse_than_guessing_is_held_against_its_beginning() -> None:
    watch = DivergenceWatch(1000)
    watch.check_loss(20.0, **SANE)
    watch.check_loss(39.9, **SANE)
    with pytest.raises(UserError, match="exploded"):
        watch.check_loss(40.1, **SANE)


def test_few_tokens_may_be_rare_ones() -> None:
    watch = DivergenceWatch(10)
    watch.check_loss(50.0, num_tokens=15, step=1, row_ids=["少"])
    with pytest.raises(UserError, match="inf"):
        watch.check_loss(math.inf, num_tokens=15, step=1, row_ids=["少"])


def test_long_lists_of_rows_are_cut() -> None:
    with pytest.raises(UserError, match="and 3 more"):
        DivergenceWatch(10).check_gradient(math.nan, step=2, row_ids=[f"行{n}" for n in range(11)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", seed=5)


def examples() -> list[Example]:
    rows = [(f"{n} 加一等于几？", f"答案是 {n + 1}，对吗？") for n in range(8)]
    return [
        Example.create([Message(role="user", content=asked), Message(role="assistant", content=answered)])
        for asked, answered in rows
    ]


def settings(model: Path, folder: Path, learning_rate: float) -> TrainConfig:
    return TrainConfig(
        model=str(model), output_dir=folder, batch_size=4, num_epochs=20, learning_rate=learning_rate, show_rows=0
    )


def test_a_run_that_explodes_ends_with_the_rows(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exploded|became") as caught:
        run.train(settings(model, tmp_path, 5.0), examples(), [], Console(quiet=True))
    ids = {row.id for row in examples()}
    named = caught.value.got.removeprefix("rows ").split(", ")
    assert named and set(named) <= ids


def test_a_gradient_that_is_no_number_does_not_reach_the_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.nn.Module] = []
    plain = run.make_trainer

    def spoiled(config, ready, **options):
        made.append(ready.loaded.model)
        ready.loaded.model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * math.nan)
        return plain(config, ready, **options)

    monkeypatch.setattr(run, "make_trainer", spoiled)
    with pytest.raises(UserError, match="the gradient became nan at step 1"):
        run.train(settings(model, tmp_path, 1e-3), examples(), [], Console(quiet=True))
    assert all(torch.isfinite(weight).all() for weight in made[0].parameters())
    stored = next(tmp_path.glob("*/run.json"))
    assert json.loads(stored.read_text(encoding="utf-8"))["finished"] is False
