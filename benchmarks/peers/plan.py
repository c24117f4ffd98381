"""What every contender is told, and what it answers: the same rows in the same steps, timed by the same clock.

The parent process makes a `Plan` and writes it to a folder; a contender reads it, trains, saves its weights beside it
and prints one line of JSON, a `Report`.
"""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from deft.types import TokenSequence

NUM_WARM_UP_STEPS = 2
"""Steps at the start that are not timed: the first allocates the optimizer's states, the second settles the caches."""

ADAM_BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training run: `steps` are the numbers of the rows of each optimizer step, in order.

    `pack_length_tokens` is no less than the tokens of any step, so that whoever packs needs one pack a step.
    """

    model: str
    folder: str
    rows: tuple[TokenSequence, ...]
    steps: tuple[tuple[int, ...], ...]
    rows_per_step: int
    pack_length_tokens: int
    learning_rate: float
    end_learning_rate: float
    num_threads: int
    seed: int

    def num_tokens(self, steps: slice = slice(None)) -> int:
        """Return the real tokens, without padding, of some steps."""
        return sum(len(self.rows[row]) for step in self.steps[steps] for row in step)

    def num_supervised(self, steps: slice = slice(None)) -> int:
        """Return the tokens that carry loss in some steps."""
        return sum(self.rows[row].num_supervised for step in self.steps[steps] for row in step)

    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by in a step, counted from 0: a straight line down."""
        end_ratio = self.end_learning_rate / self.learning_rate
        return end_ratio + (1 - end_ratio) * (1 - step / len(self.steps))


def write_plan(plan: Plan) -> None:
    """Write a plan into its folder."""
    rows = [{"id": row.id, "input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()} for row in plan.rows]
    values = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)} | {"rows": rows}
    (Path(plan.folder) / "plan.json").write_text(json.dumps(values), encoding="utf-8")


def read_plan(folder: Path) -> Plan:
    """Read the plan in a folder."""
    values = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    values["rows"] = tuple(
        TokenSequence(
            id=row["id"],
            input_ids=np.array(row["input_ids"], dtype=np.int32),
            labels=np.array(row["labels"], dtype=np.int32),
        )
        for row in values["rows"]
    )
    values["steps"] = tuple(tuple(step) for step in values["steps"])
    return Plan(**values)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a contender measured; times and tokens are those of the steps after the warm-up.

    `positions` went through the layers, `tokens` of them were real; `head_positions` went through the head.
    `peak_bytes` is the largest resident set of the whole process, `training_bytes` what training added to the resident
    set that the imports and the loaded model had left.
    """

    name: str
    seconds: float
    num_steps: int
    tokens: int
    supervised: int
    positions: int
    head_positions: int
    peak_bytes: int
    training_bytes: int
    layer_parameters: int
    head_parameters: int
    checkpoint: str


class Clock(TrainerCallback):
    """Counts and times steps, for transformers' Trainer as a callback, for a plain loop by its two methods."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ended_at: list[float] = []
        self.positions = self.head_positions = 0
        self.loaded_bytes = self.loading_peak_bytes = self.peak_bytes = 0

    def watch(self, model: Any) -> None:
        """Count the positions that pass through a model from now on."""
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        layers = sum(parameter.numel() for parameter in model.parameters()) - embedding.weight.numel()
        is_tied = head.weight is embedding.weight
        self.layer_parameters = layers if is_tied else layers - head.weight.numel()
        self.head_parameters = head.weight.numel()

        def count(_: Any, arguments: tuple[Any, ...]) -> None:
            if self.is_timed:
                self.positions += arguments[0].numel()

        embedding.register_forward_pre_hook(count)

    @property
    def is_timed(self) -> bool:
        """Whether the step that is under way counts."""
        return len(self.ended_at) >= NUM_WARM_UP_STEPS

    def begin(self) -> None:
        """Start: the model is loaded, no step has been done."""
        self.loaded_bytes, self.loading_peak_bytes = status_bytes("VmRSS"), status_bytes("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def step_done(self) -> None:
        """Note the end of an optimizer step."""
        self.ended_at.append(time.perf_counter())
        self.peak_bytes = status_bytes("VmHWM")

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start, called by transformers."""
        self.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the end of an optimizer step, called by transformers."""
        self.step_done()

    def report(self, name: str, checkpoint: Path, head_positions: int | None = None, **changes: Any) -> Report:
        """Return what was measured; `head_positions` None means as many as were supervised.

        Raises:
            SystemExit: if the run was not the one that the plan asks for.
        """
        timed = slice(NUM_WARM_UP_STEPS, len(self.ended_at))
        tokens, supervised = self.plan.num_tokens(timed), self.plan.num_supervised(timed)
        found = Report(
            name=name,
            seconds=self.ended_at[-1] - self.ended_at[NUM_WARM_UP_STEPS - 1],
            num_steps=len(self.ended_at) - NUM_WARM_UP_STEPS,
            tokens=tokens,
            supervised=supervised,
            positions=self.positions,
            head_positions=supervised if head_positions is None else head_positions,
            peak_bytes=max(self.loading_peak_bytes, self.peak_bytes),
            training_bytes=self.peak_bytes - self.loaded_bytes,
            layer_parameters=self.layer_parameters,
            head_parameters=self.head_parameters,
            checkpoint=str(checkpoint),
        )
        found = dataclasses.replace(found, **changes)
        if found.positions < found.tokens:
            raise SystemExit(f"{name}: {found.positions} positions ran, the plan has {found.tokens} tokens")
        return found


def status_bytes(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def start(arguments: Sequence[str]) -> Plan:
    """Return the plan whose folder is the first argument, the threads set."""
    plan = read_plan(Path(arguments[0]))
    set_threads(plan.num_threads)
    return plan


def set_threads(num_threads: int) -> None:
    """Have PyTorch compute with so many threads.

    Raises:
        SystemExit: if OpenMP was told otherwise, which libraries beside PyTorch would follow.
    """
    torch.set_num_threads(num_threads)
    if os.environ.get("OMP_NUM_THREADS") != str(num_threads):
        raise SystemExit(f"start this with OMP_NUM_THREADS={num_threads}, as benchmarks.train_throughput does")


def tell(report: Report) -> None:
    """Print a report as the last line of stdout."""
    print(json.dumps(dataclasses.asdict(report)), flush=True)
