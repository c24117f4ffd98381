"""The folder of a run: what identifies the run, and the unfinished run that a resumed one takes up."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deft.errors import UserError, did_you_mean
from deft.files import cannot_write, read_object, read_regular, remove, write_json, write_text
from deft.fingerprint import fingerprint, folder_fingerprint, versions
from deft.prompt.encode import EncodeResult
from deft.training.checkpoint import (
    POSITION_FILE,
    checkpoint_step,
    checkpoints,
    last_whole,
    link_to,
    remove_leftovers,
    set_aside,
)
from deft.training.config import TrainConfig
from deft.training.order import Position
from deft.types import TokenSequence

NOT_PART_OF_A_RUN = (
    "resume_training",
    "allow_changed",
    "verify",
    "show_rows",
    "output_dir",
    "batch_size",
    "gradient_accumulation",
)
"""Settings that may differ when a run is resumed; the number of rows in a step, which the last two make together with
the number of processes, may not."""
NOT_COMPARED = (
    "settings",
    "num_train_rows",
    "num_train_sequences",
    "num_valid_rows",
    "held_out",
    "products",
    "versions",
    "finished",
)
"""What a `run.json` holds besides; which rows there are, and how many, is in the rows' fingerprints."""
BEFORE_THERE_WERE_SETTINGS: dict[str, Any] = {"template_kwargs": None, "train_reasoning": "last"}
"""What runs of earlier versions, which do not name these settings, did."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resumption:
    """Where a run goes on: from a checkpoint (None: from its start), and at which of the rows."""

    checkpoint: Path | None = None
    position: Position = dataclasses.field(default_factory=Position)


def run_identity(
    config: TrainConfig, model: Path, train_rows: EncodeResult, valid_rows: EncodeResult | None
) -> dict[str, Any]:
    """Return what decides a run's result: its settings, fingerprints of its rows and of the folder `model`."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_PART_OF_A_RUN}
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    held_out = [row.id for row in valid_rows.sequences if row.part == 0] if valid_rows and not config.valid else []
    num_sequences = len(train_rows.sequences)
    return {
        "settings": json.loads(json.dumps(settings, default=str)),
        "rows_per_step": config.batch_size * config.gradient_accumulation * num_processes,
        "train_rows": rows_fingerprint(train_rows.sequences),
        "valid_rows": rows_fingerprint(valid_rows.sequences if valid_rows else ()),
        "num_train_rows": train_rows.num_rows,
        **({"num_train_sequences": num_sequences} if num_sequences != train_rows.num_rows else {}),
        "num_valid_rows": valid_rows.num_rows if valid_rows else 0,
        "model": folder_fingerprint(model),
        **({"held_out": held_out} if held_out else {}),
    }


def rows_fingerprint(rows: Sequence[TokenSequence]) -> str:
    """Return a fingerprint of ids, labels and weights: it changes with the data, the tokenizer, the format, the limit.

    Rows without weights have the one that earlier versions gave them.
    """
    return fingerprint(
        array.tobytes() for row in rows for array in (row.input_ids, row.labels, row.weights) if array is not None
    )


def open_run(config: TrainConfig, identity: dict[str, Any], unfinished: Path | None) -> Path:
    """Make a new run folder, or make the `unfinished` one ready to go on; return it.

    A run that goes on although something changed is from then on what it was changed to.

    Raises:
        UserError: if the folder cannot be written; a new one is then removed again.
    """
    folder = unfinished or new_run_folder(config.output_dir)
    try:
        if unfinished:
            remove_leftovers(folder)
        if not unfinished or config.allow_changed:
            write_json(folder / "run.json", identity | {"versions": versions(), "finished": False})
            write_recipe(folder, config)
        link_to(config.output_dir / "latest", folder.name)
    except BaseException:
        if not unfinished:
            remove(folder)
        raise
    return folder


def find_unfinished(runs: Path, identity: dict[str, Any], allow_changed: Sequence[str] = ()) -> Path:
    """Return the newest unfinished run; what `allow_changed` names may differ from it.

    Raises:
        UserError: if there is none, or it was started with other settings or data.
    """
    known = set(flat(identity))
    if unknown := [name for name in allow_changed if name not in known]:
        raise UserError("allow_changed names nothing of a run", got=unknown[0], fix=did_you_mean(unknown[0], known))
    folders = [path for path in sorted(runs.glob("*/"), reverse=True) if not path.is_symlink()]
    recorded = [path for path in folders if os.path.lexists(path / "run.json")]
    unfinished = [(path, read_identity_of_run(path / "run.json")) for path in recorded]
    unfinished = [(path, stored) for path, stored in unfinished if not stored["finished"]]
    if not unfinished:
        lost = next((path.name for path in folders if path not in recorded and checkpoints(path)), None)
        got = f"{lost} has checkpoints and no run.json" if lost else None
        fix = "start without --resume-training"
        raise UserError("there is no unfinished run to resume", got=got, where=str(runs), fix=fix)
    folder, stored = unfinished[0]
    before, now = flat(stored), flat(identity)
    changed = [name for name in now if before.get(name) != now[name] and name not in allow_changed]
    if changed:
        listed = (f"{name} (was {before.get(name)}, is {now[name]})" for name in changed)
        raise UserError(
            "the unfinished run was started differently, so continuing it would mix two runs",
            where=str(folder),
            got="changed: " + ", ".join(listed),
            fix="use its settings and data again (recipe.yaml in its folder), start without --resume-training, "
            "or accept it: --allow-changed " + " ".join(changed),
        )
    return folder


def choose_checkpoint(run: Path, *, num_rows: int, verify: bool, tell: Callable[[str], None]) -> Resumption:
    """Return where an unfinished run goes on: its newest whole checkpoint, or its start if it has saved none.

    Newer checkpoints that are damaged are told, and renamed, since their steps will be saved again.

    Raises:
        UserError: if it has checkpoints and none is whole.
    """
    checkpoint, faulty = last_whole(run, verify=verify)
    for damaged, fault in faulty:
        tell(f"{damaged.name} is passed over: {fault}")
    if checkpoint is None and faulty:
        damaged, fault = faulty[0]
        fix = "start without --resume-training; what is there stays, each with the weights it holds"
        raise UserError("the run cannot resume from any of its checkpoints", got=fault, where=str(damaged), fix=fix)
    for damaged, _ in faulty:
        set_aside(damaged)
    return Resumption(checkpoint=checkpoint, position=position_of(checkpoint, num_rows) if checkpoint else Position())


def position_of(checkpoint: Path, num_rows: int) -> Position:
    """Return where a run stood when it saved a checkpoint; the beginning of an epoch rather than the end of another.

    A checkpoint of an earlier version does not say, but all steps of its run had equally many rows.
    """
    stored = read_object(checkpoint / POSITION_FILE)
    try:
        found = Position(**{name: int(stored[name]) for name in ("step", "epoch", "num_met")})
    except (KeyError, TypeError, ValueError):
        step = checkpoint_step(checkpoint)
        rows_per_step = int(read_object(checkpoint.parent / "run.json").get("rows_per_step") or 1)
        epoch, steps = divmod(step, math.ceil(num_rows / rows_per_step))
        found = Position(step=step, epoch=epoch, num_met=steps * rows_per_step)
    return found if found.num_met < num_rows else Position(step=found.step, epoch=found.epoch + 1)


def flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same, by name; `weights` is the fingerprint of the first ones, `model` their name."""
    settings = BEFORE_THERE_WERE_SETTINGS | identity["settings"]
    found = identity | {"weights": identity.get("model")} | settings
    return {name: value for name, value in found.items() if name not in NOT_COMPARED}


def read_identity_of_run(file: Path) -> dict[str, Any]:
    """Return what a `run.json` holds.

    Raises:
        UserError: if it is damaged, or is no record of a run.
    """
    try:
        stored = json.loads(read_regular(file))
        if isinstance(stored["finished"], bool) and isinstance(stored["settings"], dict):
            return stored
        problem = "`finished` or `settings` is of the wrong type"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    fix = "move that run's folder out of the way"
    raise UserError("the record of a run is damaged", got=problem, where=str(file), fix=fix)


def write_recipe(folder: Path, config: TrainConfig) -> None:
    """Write the resolved settings as a recipe that repeats the run: `deft train runs/…/recipe.yaml`."""
    import yaml

    whole = dataclasses.replace(config, resume_training=False, allow_changed=())
    values = json.loads(json.dumps(dataclasses.asdict(whole), default=str))
    write_text(folder / "recipe.yaml", yaml.safe_dump({"train": values}, allow_unicode=True, sort_keys=False))


def write_dropped(folder: Path, *results: EncodeResult | None) -> None:
    """Write every row that was left out, with its reason, to `dropped.jsonl`."""
    rows = [row for result in results if result for row in result.dropped]
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in rows]
    write_text(folder / "dropped.jsonl", "".join(line + "\n" for line in lines))


def new_run_folder(parent: Path) -> Path:
    """Create `parent/<date-time>/` and return it; a counter is added where two runs start in one second.

    Raises:
        UserError: if the folder cannot be made.
    """
    name = time.strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 100):
            folder = parent / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise cannot_write(parent, error) from error
    raise UserError(f"too many runs began in {parent} within this second", fix="wait a second and start again")
