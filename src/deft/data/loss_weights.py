"""What rows say of the loss on their replies, in the many words that tools have for it.

In: fields of a message, or beside a row. Out: weights: 0 for a reply that stays as context, 1 for one that is trained,
anything between and above as it is.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from deft.data.fields import plain_name
from deft.errors import UserError
from deft.types import Role

TRAINED_NAMES = re.compile(
    r"train|trainable|training|loss|weight|loss_mask|loss_scale|output_with_loss|(loss|message|turn)_weights?"
)
"""On a message, and beside a row: what is on, or a number, gives loss."""
ROW_NAMES = re.compile(r"(sample|example|row)_weights?")
"""The same, of a row as a whole."""
MASKED_NAMES = re.compile(r"mask|masked|is_masked")
"""What is on takes the loss away."""
ASKING_NAMES = ("train", "trainable", "training")
"""What asks for loss on a user's message where it is on; the others mean nothing there."""
MOST = 10.0
"""A larger weight is a number of another kind: a mass in kilograms, a count."""
WORDS = {"true": 1.0, "yes": 1.0, "on": 1.0, "false": 0.0, "no": 0.0, "off": 0.0}


@lru_cache(maxsize=4096)
def is_loss_weight(name: str) -> bool:
    """Say whether a field of this name decides on loss."""
    plain = plain_name(name)
    return any(names.fullmatch(plain) for names in (TRAINED_NAMES, ROW_NAMES, MASKED_NAMES))


def weight_of(name: str, value: Any) -> float | None:
    """Return the loss weight that a field gives, None where it says nothing.

    Raises:
        UserError: if the value is neither a flag nor a weight.
    """
    number = number_of(value)
    if number is None:
        return None
    if MASKED_NAMES.fullmatch(plain_name(name)):
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
    plain = value.strip().lower() if isinstance(value, str) else value
    if plain in ("", "null", "none", None):
        return None
    if isinstance(plain, str):
        plain = WORDS.get(plain, plain)
    try:
        number = float(plain) if isinstance(plain, str | bool | int | float) else math.nan
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def message_weight(fields: Mapping[str, Any]) -> float:
    """Return the loss weight that the fields of a reply give.

    Raises:
        UserError: if a value gives none, or two of them disagree.
    """
    return agreed(
        {
            name: weight_of(name, value)
            for name, value in fields.items()
            if is_loss_weight(name) and not is_message_measurement(name, value)
        }
    )


def agreed(found: Mapping[str, float | None]) -> float:
    """Return the one weight that several fields give; those that say nothing do not count.

    Raises:
        UserError: if they give different ones.
    """
    given = {name: weight for name, weight in found.items() if weight is not None}
    if len(set(given.values())) > 1:
        names = " and ".join(f"`{name}`" for name in given)
        raise UserError(f"{names} give different loss weights", got=given, fix="keep one of them")
    return next(iter(given.values()), 1.0)


def is_message_measurement(name: str, value: Any) -> bool:
    """Say whether a number on a message is a loss that was measured: one above 1 can be no flag."""
    number = number_of(value)
    return plain_name(name) == "loss" and number is not None and number > 1


def is_row_measurement(name: str, value: Any) -> bool:
    """Say whether what stands beside a row is a loss that was measured: numbers that are no flags."""
    if plain_name(name) != "loss":
        return False
    values = value if isinstance(value, list) else [value]
    return not all(number_of(one) in (0, 1, None) for one in values)


def weights_beside(row: Mapping[str, Any], roles: Sequence[Role]) -> list[float]:
    """Return what the fields beside a row multiply the loss weight of each of its turns by, as the row lists them.

    A field gives one value for all replies, or a list of them: one for each turn, or one for each reply.

    Raises:
        UserError: if a list is as long as neither, or a value is wrong, or two fields disagree.
    """
    given = {
        name: spread(name, value, roles)
        for name, value in row.items()
        if is_loss_weight(name) and not is_row_measurement(name, value)
    }
    of_rows = {name: weights for name, weights in given.items() if ROW_NAMES.fullmatch(plain_name(name))}
    of_turns = {name: weights for name, weights in given.items() if name not in of_rows}
    return [
        math.prod(agreed({name: weights[place] for name, weights in level.items()}) for level in (of_rows, of_turns))
        for place in range(len(roles))
    ]


def spread(name: str, value: Any, roles: Sequence[Role]) -> list[float | None]:
    """Return the weight that a field beside a row gives each turn, None where it says nothing."""
    replies = [place for place, role in enumerate(roles) if role == "assistant"]
    if not isinstance(value, list):
        weight = weight_of(name, value)
        return [weight if role == "assistant" else None for role in roles]
    if len(value) not in (0, len(roles), len(replies)):
        what = f"`{name}` has {len(value)} entries: neither one for each message nor one for each reply"
        got = f"{len(roles)} messages, {len(replies)} replies"
        raise UserError(what, got=got, fix="write one entry for each reply")
    entries = dict(zip(range(len(roles)) if len(value) == len(roles) else replies, value, strict=False))
    for place, entry in entries.items():
        check_asked({name: entry}, roles[place])
    return [weight_of(name, entries.get(place)) if role == "assistant" else None for place, role in enumerate(roles)]


def check_asked(fields: Mapping[str, Any], role: Role) -> None:
    """Refuse a user's message that is to be trained itself.

    Raises:
        UserError: naming the field that asks for it.
    """
    for name, value in fields.items():
        if role == "user" and plain_name(name) in ASKING_NAMES and (number_of(value) or 0) > 0:
            what = f"`{name}` asks for loss on a message of the user, and only replies are trained"
            raise UserError(what, got=value, fix=f"take it out of that message, or --ignore-fields {name}")
