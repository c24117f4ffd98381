"""The losses of rows, and their means by ability: what training records and evaluation measures, said once."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deft.errors import UserError
from deft.files import write_text

OVERALL = "all"
"""The name under which the mean over all rows stands beside the abilities."""
NO_ABILITY = "other"
"""The name under which rows without an ability count, as in a run's record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLoss:
    """The loss of one row, or of one of its sequences, which `part` counts; `ability` None counts as `other`.

    `nll` is in nats, summed over its `num_supervised` tokens, each times its loss weight; `weight` is the sum of these
    weights, None where all are 1.
    """

    id: str
    ability: str | None
    nll: float
    num_supervised: int
    weight: float | None = None
    part: int = 0

    @property
    def total_weight(self) -> float:
        """What the row's `nll` is divided by for a mean: the sum of its weights."""
        return self.num_supervised if self.weight is None else self.weight


@dataclass(frozen=True, kw_only=True, slots=True)
class AbilityLoss:
    """The mean NLL per supervised token of an ability, in nats: long rows count by their tokens and weights."""

    ability: str
    loss: float
    num_rows: int
    num_supervised: int


# --- means ----------------------------------------------------------------------------------------------------------


def mean_loss(rows: Sequence[RowLoss]) -> float:
    """Return the mean NLL per supervised token over `rows` (at least one), in nats: Σ weight · nll / Σ weight."""
    return sum(row.nll for row in rows) / sum(row.total_weight for row in rows)


def by_row(losses: Iterable[RowLoss]) -> list[RowLoss]:
    """Return the loss of each row by its id and ability, those of its sequences added up: the row is the sample.

    What was measured twice of the same part of a row counts once.
    """
    parts = {(one.id, one.ability, one.part): one for one in losses}
    rows: dict[tuple[str, str | None], RowLoss] = {}
    for (row_id, ability, _), one in parts.items():
        before = rows.get((row_id, ability))
        rows[row_id, ability] = one if before is None else added(before, one)
    return list(rows.values())


def added(left: RowLoss, right: RowLoss) -> RowLoss:
    """Return the loss of two sequences of one row together."""
    is_plain = left.weight is None and right.weight is None
    return RowLoss(
        id=left.id,
        ability=left.ability,
        nll=left.nll + right.nll,
        num_supervised=left.num_supervised + right.num_supervised,
        weight=None if is_plain else left.total_weight + right.total_weight,
    )


def losses_by_ability(rows: Iterable[RowLoss]) -> dict[str, AbilityLoss]:
    """Return the mean loss of each ability by name, and at the end that of all rows as `all`.

    Raises:
        UserError: if there are no rows, or an ability is called `all`.
    """
    groups = by_ability(rows)
    groups |= {OVERALL: [row for group in groups.values() for row in group]}
    return {
        ability: AbilityLoss(
            ability=ability,
            loss=mean_loss(group),
            num_rows=len(group),
            num_supervised=sum(row.num_supervised for row in group),
        )
        for ability, group in groups.items()
    }


def by_ability(rows: Iterable[RowLoss]) -> dict[str, list[RowLoss]]:
    """Return the rows of each ability, abilities by name.

    Raises:
        UserError: if there are no rows, or an ability is called `all`.
    """
    groups = grouped(rows)
    if not groups:
        raise UserError("there are no rows to average a loss over", fix="give files with at least one usable row")
    if OVERALL in groups:
        raise UserError("an ability may not be called `all`: that is the mean over all abilities", fix="rename it")
    return groups


def grouped(rows: Iterable[RowLoss]) -> dict[str, list[RowLoss]]:
    """Return the rows of each ability, abilities by name, whatever they are called."""
    groups: dict[str, list[RowLoss]] = {}
    for row in rows:
        groups.setdefault(row.ability or NO_ABILITY, []).append(row)
    return dict(sorted(groups.items()))


# --- kept in a file -------------------------------------------------------------------------------------------------


def read_rows_kept(file: Path) -> list[RowLoss]:
    """Return the losses in a file of JSON lines up to the first that is not whole; none if there is no file."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(RowLoss(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return found


def write_rows(file: Path, rows: Sequence[RowLoss]) -> None:
    """Write losses as JSON lines, the file whole or not at all."""
    write_text(file, "".join(as_line(row) for row in rows))


def as_line(row: RowLoss) -> str:
    """Return a row's loss as a line of JSON."""
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"
