"""The losses of rows, and their means by ability: what training records and evaluation measures, said once."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deft.errors import UserError
from deft.files import write_text
from deft.types import TokenSequence

OVERALL = "all"
"""The name under which the mean over all rows stands beside the abilities."""
NO_ABILITY = "other"
"""The name under which rows without an ability count, as in a run's record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedRow:
    """The loss of one held-out row: `nll` in nats, summed over its `num_supervised` tokens."""

    id: str
    ability: str
    nll: float
    num_supervised: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AbilityLoss:
    """The mean NLL per supervised token of an ability, in nats: long rows count by their tokens."""

    ability: str
    loss: float
    num_rows: int
    num_supervised: int


def read_rows_kept(file: Path) -> list[EvaluatedRow]:
    """Return the losses in a file up to the first line that is not whole; none if there is no file."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(EvaluatedRow(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return found


def write_rows(file: Path, rows: Sequence[EvaluatedRow]) -> None:
    """Write losses as JSON lines, the file whole or not at all."""
    write_text(file, "".join(as_line(row) for row in rows))


def as_line(row: EvaluatedRow) -> str:
    """Return a row's loss as a line of JSON."""
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def evaluated(row: TokenSequence, nll: float) -> EvaluatedRow:
    """Return the loss of a row as it is recorded."""
    return EvaluatedRow(id=row.id, ability=row.ability or NO_ABILITY, nll=nll, num_supervised=row.num_supervised)


def losses_by_ability(rows: Iterable[EvaluatedRow]) -> dict[str, AbilityLoss]:
    """Return the mean loss of each ability by name, and at the end that of all rows as `all`.

    Raises:
        UserError: if there are no rows, or an ability is called `all`.
    """
    groups = by_ability(rows)
    everything = [row for group in groups.values() for row in group]
    return {name: mean_loss(name, group) for name, group in groups.items()} | {OVERALL: mean_loss(OVERALL, everything)}


def by_ability(rows: Iterable[EvaluatedRow]) -> dict[str, list[EvaluatedRow]]:
    """Return the rows of each ability, abilities by name.

    Raises:
        UserError: if there are no rows, or an ability is called `all`.
    """
    groups: dict[str, list[EvaluatedRow]] = {}
    for row in rows:
        groups.setdefault(row.ability, []).append(row)
    if not groups:
        raise UserError("there are no rows to average a loss over", fix="give files with at least one usable row")
    if OVERALL in groups:
        raise UserError("an ability may not be called `all`: that is the mean over all abilities", fix="rename it")
    return dict(sorted(groups.items()))


def mean_loss(ability: str, rows: Sequence[EvaluatedRow]) -> AbilityLoss:
    """Return the mean NLL per supervised token over `rows` (at least one)."""
    num_supervised = sum(row.num_supervised for row in rows)
    nll = sum(row.nll for row in rows)
    return AbilityLoss(ability=ability, loss=nll / num_supervised, num_rows=len(rows), num_supervised=num_supervised)
