"""Rows whose lists are written as text, as tables have to, go in; rows with lists come out."""

import ast
import re
from collections.abc import Iterable
from typing import Any

from deft.data.arrow import json_value
from deft.data.jsonrows import parsed
from deft.data.loss_weights import is_loss_weight
from deft.errors import UserError, shorten

LIST_FIELDS = ("messages", "conversations", "conversation", "history")
"""The fields that hold lists in every format."""
PAIR_FIELDS = ("prompt", "completion", "response", "chosen")
"""The fields that hold text, or lists of turns."""
TURNS = re.compile(r"\s*\[\s*\{\s*[\"'](role|content|from|value)[\"']\s*:")
MAX_LITERAL_CHARACTERS = 1_000_000


def with_lists(row: dict[str, Any], *, named: Iterable[str] = ()) -> dict[str, Any]:
    """Return the row with the lists that stand in it as text (JSON, or as Python prints them) read.

    `named` are the row's own columns of lists, besides those that every format calls so. Empty text stands for none.

    Raises:
        UserError: if such a text cannot be read.
    """
    changed = {}
    for name in (*LIST_FIELDS, *named):
        text = row.get(name)
        if isinstance(text, str) and (not text.strip() or text.lstrip().startswith(("[", "{"))):
            changed[name] = listed(name, text) if text.strip() else None
    for name in filter(is_loss_weight, row):
        text = row[name]
        if isinstance(text, str) and text.lstrip().startswith("["):
            changed[name] = listed(name, text)
    for name in PAIR_FIELDS:
        text = row.get(name)
        if isinstance(text, str) and TURNS.match(text):
            changed[name] = listed(name, text)
    if not changed:
        return row
    read = row | changed
    return {name: value for name, value in read.items() if value is not None or name not in changed}


def listed(name: str, text: str) -> Any:
    """Return the list that a text holds."""
    value = parsed(text)
    if not isinstance(value, UserError):
        return value
    if len(text) <= MAX_LITERAL_CHARACTERS:
        try:
            return json_value(ast.literal_eval(text.strip()))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass
    fix = "write the cells of this column with json.dumps(…, ensure_ascii=False)"
    raise UserError(f"`{name}` holds text that is not a list in JSON or Python", got=shorten(text), fix=fix)
