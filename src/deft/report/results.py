"""What a run measured, as its report shows it, and as JSON values and back."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deft.intervals import Change


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyPair:
    """What the model answered to one prompt before and after the training, and whether that is right, in words."""

    prompt: str
    before: str
    after: str
    before_verdict: str = ""
    after_verdict: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What a run measured, as its report shows it.

    `changes` by ability, with `all`; `training` and `validation` are (optimizer step, loss in nats per token);
    `stage_times_s` are seconds by stage; `next_commands` are (command, what it does).
    """

    model: str
    num_train_rows: int
    changes: Mapping[str, Change]
    replies: Sequence[ReplyPair] = ()
    training: Sequence[tuple[int, float]] = ()
    validation: Sequence[tuple[int, float]] = ()
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    fingerprints: Mapping[str, str]
    stage_times_s: Mapping[str, float]
    next_commands: Sequence[tuple[str, str]] = ()


def to_json(results: Results) -> dict[str, Any]:
    """Return results as JSON values; bounds that are not known become null."""
    return without_nan(dataclasses.asdict(results))


def without_nan(value: Any) -> Any:
    """Return JSON values with null in place of what is not a number, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(stored: Mapping[str, Any]) -> Results:
    """Return the results that `to_json` wrote."""
    values = dict(stored)
    values["changes"] = {
        ability: Change(**{name: math.nan if value is None else value for name, value in change.items()})  # type: ignore[arg-type]
        for ability, change in stored["changes"].items()
    }
    values["replies"] = tuple(ReplyPair(**pair) for pair in stored["replies"])
    for name in ("training", "validation", "next_commands"):
        values[name] = tuple((first, second) for first, second in stored[name])
    return Results(**values)
