"""Parts by name: each package has one visible table of `name -> "module:attribute"`, imported when asked for."""

import importlib
from collections.abc import Mapping
from typing import Any

from deft.errors import UserError, did_you_mean


def resolve(table: Mapping[str, str], name: str, *, kind: str) -> Any:
    """Import and return the part called `name` from a `table` of `"module:attribute"` values.

    Raises:
        UserError: if the table has no such part; the nearest name is suggested. `kind` names what is looked for.
    """
    if name not in table:
        raise UserError(f"unknown {kind}", got=name, fix=did_you_mean(name, table))
    module_name, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module_name), attribute)
