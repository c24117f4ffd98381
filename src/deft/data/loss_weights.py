"""What rows say of the loss on their replies, in the many words that tools have for it.

In: fields of a message, or beside a row. Out: weights: 0 for a reply that stays as context, 1 for one that is trained,
anything between and above as it is.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from deft.errors import UserError
from deft.types import Message

TRAINED_NAMES = re.compile(
    r"train|trainable|training|loss|weight|loss_mask|loss_scale|output_with_loss|(loss|message|turn)_weights?"
)
"""On a message, and beside a row: what is on, or a number, gives loss."""
ROW_NAMES = re.compile(r"(sample|example|row)_weights?")
"""The same, of a row as a whole."""
MASKED_NAMES = re.compile(r"mask|masked|is_masked")
"""What is on takes the loss away."""
MOST = 10.0
"""A larger weight is a number of another kind: a mass in kilograms, a count."""
WORDS = {"true": 1.0, "yes": 1.0, "on": 1.0, "false": 0.0, "no": 0.0, "off": 0.0}


def is_loss_weight(name: str) -> bool:
    """Say whether a field of this name decides on loss."""
    plain = name.strip().lower().replace("-", "_")
    return any(names.fullmatch(plain) for names in (TRAINED_NAMES, ROW_NAMES, MASKED_NAMES))


def weight_of(name: str, value: Any) -> float | None:
    """Return the loss weight that a field gives, None where it says nothing.

    Raises:
        UserError: if the value is neither a flag nor a weight.
    """
    number = number_of(value)
    if number is None:
        return None
    if MASKED_NAMES.fullmatch(name.strip().lower().replace("-", "_")):
        if number in (0, 1):
            return 1.0 - number
    elif 0 <= number <= MOST:
        return number
    raise UserError(
        f"`{name}` gives no loss weight: it is neither a flag nor a number from 0 to {MOST:g}",
        got=value,
        fix=f"write true or false (or a weight), or, if it means something else, --ignore-fields {name}",
    )


def number_of(value: Any) -> float | None:
    """Return a flag or a number as a number, NaN of anything else, None of nothing."""
    if isinstance(value, str):
        plain = value.strip().lower()
        if plain in ("", "null", "none"):
            return None
        if plain in WORDS:
            return WORDS[plain]
        try:
            number = float(plain)
        except ValueError:
            return math.nan
        return number if math.isfinite(number) else math.nan
    if value is None:
        return None
    return float(value) if isinstance(value, bool | int | float) and math.isfinite(value) else math.nan


def weight_in(fields: Mapping[str, Any], *, of_message: bool) -> float | None:
    """Return the loss weight that fields of a message, or single values beside a row, give; None if they give none.

    A number under `loss` that is no flag is a measurement, beside a row always.

    Raises:
        UserError: if a value gives none, or two of them disagree.
    """
    found: dict[str, float] = {}
    for name, value in fields.items():
        if not is_loss_weight(name) or isinstance(value, list) or is_measurement(name, value, of_message=of_message):
            continue
        weight = weight_of(name, value)
        if weight is not None:
            found[name] = weight
    if len(set(found.values())) > 1:
        names = " and ".join(f"`{name}`" for name in found)
        raise UserError(f"{names} give different loss weights", got=dict(found), fix="keep one of them")
    return next(iter(found.values()), None)


def is_measurement(name: str, value: Any, *, of_message: bool) -> bool:
    """Say whether a field is a loss that was measured, and no flag."""
    if name.strip().lower() != "loss" or isinstance(value, bool):
        return False
    number = number_of(value)
    return number is not None and not (0 <= number <= 1 if of_message else number in (0, 1))


def with_weights(messages: Sequence[Message], beside: Mapping[str, Any]) -> list[Message]:
    """Return the messages with the loss weights that fields beside the row give: one for all, or a list.

    A list has an entry for each message, or for each reply.

    Raises:
        UserError: if a list is as long as neither, or a weight is wrong.
    """
    changed = list(messages)
    for name, values in beside.items():
        if is_loss_weight(name) and isinstance(values, list) and values:
            changed = weighted(changed, name, values)
    weight = weight_in(beside, of_message=False)
    if weight is None:
        return changed
    return [replace(one, weight=one.weight * weight) if one.role == "assistant" else one for one in changed]


def weighted(messages: Sequence[Message], name: str, values: Sequence[Any]) -> list[Message]:
    """Return the messages with the loss weights of one list."""
    replies = [place for place, one in enumerate(messages) if one.role == "assistant"]
    if len(values) == len(messages):
        places: Iterable[int] = range(len(messages))
    elif len(values) == len(replies):
        places = replies
    else:
        what = f"`{name}` has {len(values)} entries: neither one for each message nor one for each reply"
        got = f"{len(messages)} messages, {len(replies)} replies"
        raise UserError(what, got=got, fix="write one entry for each reply")
    changed = list(messages)
    for place, value in zip(places, values, strict=True):
        weight = weight_of(name, value)
        if changed[place].role == "assistant" and weight is not None:
            changed[place] = replace(changed[place], weight=weight)
    return changed
