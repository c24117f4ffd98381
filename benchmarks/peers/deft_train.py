"""deft as its users run it: `deft.training.run.train`, from the rows of a file to a checkpoint."""

import sys
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # so that its code does not count as the memory of training
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

from benchmarks.peers.plan import ADAM_BETAS, MAX_GRAD_NORM, NUM_WARM_UP_STEPS, WEIGHT_DECAY, Clock, Plan, start, tell
from deft.data.read import read_examples
from deft.training import run
from deft.training.config import TrainConfig
from deft.training.trainer import SupervisedTrainer


def config_of(plan: Plan, dtype: str) -> TrainConfig:
    """Return the settings of the run that the plan describes."""
    return TrainConfig(
        model=plan.model,
        output_dir=Path(plan.folder) / "runs",
        max_length_tokens=plan.pack_length_tokens,
        num_epochs=1,
        batch_size=plan.rows_per_step,
        learning_rate=plan.learning_rate,
        end_learning_rate=plan.end_learning_rate,
        weight_decay=WEIGHT_DECAY,
        adam_beta1=ADAM_BETAS[0],
        adam_beta2=ADAM_BETAS[1],
        max_grad_norm=MAX_GRAD_NORM,
        dtype=dtype,  # type: ignore[arg-type]  # checked by the settings themselves
        seed=plan.seed,
    )


def main() -> None:
    """Train as the plan says and print a report."""
    plan = start(sys.argv[1:])
    clock = Clock(plan)

    class TimedTrainer(SupervisedTrainer):
        """deft's trainer with the clock among its callbacks."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            clock.watch(options["model"])
            self.add_callback(clock)

    run.SupervisedTrainer = TimedTrainer  # type: ignore[misc]
    examples = read_examples(Path(plan.folder) / "rows.jsonl").examples
    if [row.id for row in examples] != [row.id for row in plan.rows]:
        raise SystemExit("deft read other rows than the plan has")
    dtype = sys.argv[2] if len(sys.argv) > 2 else "float32"
    result = run.train(config_of(plan, dtype), examples, [], Console(quiet=True))
    report = clock.report("deft" if dtype == "float32" else f"deft, {dtype}", result.best.resolve())
    if report.num_steps + NUM_WARM_UP_STEPS != len(plan.steps) or report.positions != report.tokens:
        raise SystemExit(f"deft ran other steps than the plan has: {report}")
    tell(report)


if __name__ == "__main__":
    main()
