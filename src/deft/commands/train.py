"""`deft train`: a recipe and flags in; a run, or with `--dry-run` what it would take."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from deft.commands.exits import INTERRUPTED
from deft.commands.flags import AT_LEAST_1
from deft.commands.rows import read_configured
from deft.errors import UserError
from deft.language.catalogue import spoken
from deft.screen import console, say
from deft.training.config import TrainConfig

if TYPE_CHECKING:
    from deft.language.choose import Lang
    from deft.training.run import TrainResult


def train(
    recipe: Path | None = None,
    *,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
    dry_run: bool = False,
    devices: Annotated[int | None, AT_LEAST_1] = None,
    device_memory: str | None = None,
) -> None:
    """Fine-tune a model; flags win over the recipe.

    Parameters
    ----------
    recipe
        A YAML file with a section `train`.
    dry_run
        Train nothing and write nothing: print the rows, steps, time and memory that the run would take.
    devices
        With --dry-run: how many devices share the work.
    device_memory
        With --dry-run: the memory of one device, such as 80GB; says what fits.
    """
    if dry_run:
        estimate_files(config, num_devices=devices or 1, device_memory=device_memory)
    elif devices is not None or device_memory is not None:
        flag = "--devices" if devices is not None else "--device-memory"
        raise UserError("this flag belongs to a dry run", got=flag, fix="add --dry-run, or leave it out")
    else:
        train_files(config, spoken())


def estimate_files(config: TrainConfig, *, num_devices: int, device_memory: str | None) -> None:
    """Read the rows that `config` names, and print what fine-tuning on them would take."""
    train_examples, valid_examples = read_configured(config)
    from deft.estimate.dry_run import dry_run

    dry_run(config, train_examples, valid_examples, console(), num_devices=num_devices, device_memory=device_memory)


def train_files(config: TrainConfig, lang: "Lang" = "en") -> "TrainResult":
    """Read the rows that `config` names, fine-tune on them, and print what that changed and where the result lies.

    Raises:
        SystemExit: with 130, if the user stopped the run, so that a script does not take it for finished.
    """
    screen = console()
    train_examples, valid_examples = read_configured(config)
    from deft.training.run import train as run_training

    began_at = time.monotonic()
    result = run_training(config, train_examples, valid_examples, screen)
    if screen.quiet:  # the first process speaks for all
        return result
    if not result.finished:
        what = "stopped; continue with the same command and --resume-training ({folder})"
        if result.config.trainer.get("save_only_model"):
            what = "stopped; its checkpoints hold the model alone (save_only_model), so it cannot be resumed ({folder})"
        say(screen, what, folder=result.folder)
        raise SystemExit(INTERRUPTED)
    from deft.training.outcome import show_trained

    say(screen, "[green]✓[/] trained: {best}", best=result.best)
    time_s = time.monotonic() - began_at
    show_trained(result.folder, result.config, screen, lang=lang, time_s=time_s, resumed=config.resume_training)
    return result
