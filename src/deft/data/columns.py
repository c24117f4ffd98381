"""What a user decides by hand of a row's fields: which do not count, and which column is the prompt or the reply.

In: `--ignore-fields` and `--fields`, and a row. Out: the row as a known format has it, and the fields that are left.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deft.data.fields import is_lines
from deft.data.loss_weights import is_loss_weight
from deft.data.names import REASONING_FIELDS
from deft.data.tools import TOOL_FIELDS
from deft.errors import UserError, did_you_mean
from deft.types import Example

TARGETS = {
    "system": "system",
    "prompt": "instruction",
    "input": "input",
    "response": "output",
    "messages": "messages",
    "history": "history",
    "ability": "type",
    "id": "id",
}
"""What a column can be named as by `--fields`, and the field of a known format that it then stands in for."""
COMMA = re.compile("[,，]")
CONVERSATION = frozenset({"prompt", "input", "response", "messages"})
"""Targets that make the conversation: where one is named, no other column is taken for a part of it."""
NEEDED = frozenset({"prompt", "response", "messages"})
JOINED = frozenset({"system", "prompt", "input", "response"})
STANDING = ("system", "system_prompt", "system_message", "history", "type", "ability", "id")
ABILITY_COLUMNS = (
    *("category", "task", "task_type", "skill", "subject", "domain", "topic", "kind"),
    *("能力", "类别", "类型", "任务", "科目", "领域"),
)
"""Columns that often say what a row trains, in the order in which they are looked at."""
MOST_ABILITIES = 50


def ability_column(examples: Sequence[Example]) -> tuple[str, int] | None:
    """Return the column that may name abilities, where no row has one, and how many values it has; None without one.

    It is named to the user, and not used unasked: a topic need not be an ability.
    """
    if not examples or any(example.ability for example in examples):
        return None
    for column in ABILITY_COLUMNS:
        values = [example.meta.get(column) for example in examples]
        if all(isinstance(value, str) and value.strip() for value in values) and 1 < len(set(values)) <= MOST_ABILITIES:
            return column, len(set(values))
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldChoice:
    """`ignored` fields count as absent, in rows and in messages; `columns` gives each target its columns.

    Several columns of one target make one text, line after line, and so do the texts of a list. Rows may lack columns
    as long as they have a prompt and a reply.
    """

    ignored: frozenset[str] = frozenset()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set, compare=False)
    """The names of the rows' columns so far."""

    @property
    def list_columns(self) -> tuple[str, ...]:
        """The columns that hold lists, which a table can only write as text."""
        return (*self.columns.get("messages", ()), *self.columns.get("history", ()))

    @classmethod
    def parse(cls, ignore_fields: Iterable[str] = (), fields: Iterable[str] = ()) -> "FieldChoice":
        """Read `a,b` and `prompt=title+question,response=answer`, as the two flags have them.

        Raises:
            UserError: for a target that is none or is named twice, or a prompt without a response.
        """
        ignored = [name.strip() for one in ignore_fields for name in COMMA.split(one) if name.strip()]
        columns: dict[str, tuple[str, ...]] = {}
        for pair in (one for text in fields for one in COMMA.split(text) if one.strip()):
            target, _, names = (part.strip() for part in pair.partition("="))
            found = tuple(name.strip() for name in names.split("+") if name.strip())
            if not found:
                raise UserError(
                    "--fields takes TARGET=COLUMN", got=pair, fix="--fields prompt=question,response=answer"
                )
            if target not in TARGETS:
                raise UserError("unknown target for --fields", got=target, fix=did_you_mean(target, TARGETS))
            if target in columns:
                fix = f"join the columns: {target}={'+'.join((*columns[target], *found))}"
                raise UserError("--fields names a target twice", got=pair, fix=fix)
            columns[target] = found
        asked = columns.keys() & CONVERSATION
        if asked and "messages" not in asked and not {"prompt", "response"} <= asked:
            fix = "--fields prompt=question,response=answer"
            raise UserError("--fields needs a prompt and a response", got=", ".join(sorted(asked)), fix=fix)
        return cls(ignored=frozenset(ignored), columns=columns)

    def apply(self, row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a row, `without` what is ignored, as a known format has it, and the fields that stay outside of it.

        Raises:
            UserError: if the row lacks a column that is named, or text is asked of one that holds none.
        """
        if not self.columns:
            return row, {}
        self.seen.update(row)
        named = {TARGETS[target]: self.value(row, target) for target in self.columns}
        named = {name: value for name, value in named.items() if value is not None}
        gone = {column for columns in self.columns.values() for column in columns}
        rest = {name: value for name, value in row.items() if name not in gone}
        if not self.columns.keys() & CONVERSATION:
            return rest | named, {}
        standing = {name: rest.pop(name) for name in list(rest) if is_standing(name) and name not in named}
        return standing | named, rest

    def value(self, row: Mapping[str, Any], target: str) -> Any:
        """Return what the columns of one target hold, None if the row has none of them.

        Raises:
            UserError: if the target is a part that every row needs, or one of several columns is no text.
        """
        columns = self.columns[target]
        there = [column for column in columns if row.get(column) is not None]
        if not there and target in NEEDED:
            raise lacking(columns[0], row)
        if target not in JOINED or (len(columns) == 1 and not isinstance(row.get(columns[0]), list)):
            return row.get(columns[0])
        for column in there:
            if not is_lines(row[column]):
                fix = "name columns of text, or leave the row out"
                raise UserError(f"`{column}` is not text", got=row[column], fix=fix)
        lines = [line for column in there for line in ([row[column]] if isinstance(row[column], str) else row[column])]
        return "\n".join(line for line in lines if line.strip())

    def extended(self, mapping: str) -> str:
        """Return what `--fields` would say to use one more column, {}, where `mapping` is that without this choice."""
        said = {target: "+".join(names) for target, names in self.columns.items()}
        if not said or not mapping:
            return mapping
        for target, _, names in (pair.partition("=") for pair in mapping.split(",")):
            said[target] = f"{said[target]}+{{}}" if target in said and "{}" in names else said.get(target, names)
        return ",".join(f"{target}={names}" for target, names in said.items())

    def check_seen(self) -> None:
        """Refuse a column that no row has.

        Raises:
            UserError: naming the first such column, and the nearest name.
        """
        for columns in self.columns.values():
            for column in columns:
                if self.seen and column not in self.seen:
                    raise lacking(column, sorted(self.seen))


def is_standing(name: str) -> bool:
    """Say whether a field keeps its meaning beside a conversation out of named columns."""
    return name in STANDING or name in TOOL_FIELDS or name in REASONING_FIELDS or is_loss_weight(name)


def lacking(column: str, names: Iterable[str]) -> UserError:
    """Return the error for a column that is named and is not among the names of a row."""
    names = list(names)
    near = difflib.get_close_matches(column, names, n=1)
    advice = f"did you mean {near[0]!r}? " if near else ""
    fix = f"{advice}there are: {', '.join(names) or 'none'}"
    return UserError("the row lacks a column that --fields names", got=column, fix=fix)


def without(value: Any, ignored: Collection[str]) -> Any:
    """Return a row, and the messages in it, without the fields of these names."""
    if not ignored:
        return value
    if isinstance(value, Mapping):
        return {name: without(inner, ignored) for name, inner in value.items() if name not in ignored}
    return [without(inner, ignored) for inner in value] if isinstance(value, list) else value
