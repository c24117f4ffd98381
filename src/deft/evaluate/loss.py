"""How surprised a model is by rows it never trained on, per ability.

In: a model and token sequences. Out: the negative log-likelihood (NLL, in nats) of every row, and its mean per
supervised token over each ability and over all rows.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deft.errors import UserError
from deft.rundir import write_text
from deft.types import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


def row_losses(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    *,
    pack_length_tokens: int,
    on_progress: Callable[[list[EvaluatedRow]], None] | None = None,
) -> list[EvaluatedRow]:
    """Return the loss of every row, in the order given; rows run in packs of at most `pack_length_tokens`.

    A row's loss does not depend on the rows beside it. `on_progress` is called after each pack with that pack's rows:
    to move a bar, or to keep what is done so far. The model comes back in the mode it was in.

    Raises:
        ValueError: if a row is longer than a pack.
        UserError: if a row has an id that the model has no embedding for.
    """
    import torch

    from deft.model.attention import rows_apart
    from deft.model.generate import evaluating
    from deft.model.likelihood import PackedRows, supervised_nll
    from deft.model.matmul import choose_kernel, products_by
    from deft.model.vocabulary import check_rows
    from deft.prompt.pack import pack_rows

    check_rows(model, sequences)
    found: dict[int, EvaluatedRow] = {}
    kernel = choose_kernel(model, min(pack_length_tokens, sum(map(len, sequences)))).kernel
    with torch.no_grad(), rows_apart(model), evaluating(model), products_by(kernel):
        for pack in pack_rows([len(row) for row in sequences], pack_length_tokens):
            packed = PackedRows.lay([sequences[index] for index in pack])
            sums = supervised_nll(model, packed).per_row(packed).tolist()
            done = [evaluated(sequences[index], nll) for index, nll in zip(pack, sums, strict=True)]
            found |= dict(zip(pack, done, strict=True))
            if on_progress is not None:
                on_progress(done)
    return [found[index] for index in range(len(sequences))]


def row_losses_kept(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    *,
    file: Path,
    pack_length_tokens: int,
    on_progress: Callable[[list[EvaluatedRow]], None] | None = None,
) -> list[EvaluatedRow]:
    """Return what `row_losses` returns, and keep each pack in `file`; rows that are found there are not run again.

    The file is one of JSON lines, and belongs to one model and one way of encoding: that is the caller's to see to.
    `on_progress` is called with what was computed now.
    """
    done = {row.id: row for row in read_rows_kept(file)}
    write_rows(file, list(done.values()))  # a line that an interruption cut off goes
    missing = [row for row in sequences if row.id not in done]
    with file.open("a", encoding="utf-8") as stream:

        def keep(pack: list[EvaluatedRow]) -> None:
            stream.write("".join(as_line(row) for row in pack))
            stream.flush()
            if on_progress is not None:
                on_progress(pack)

        found = row_losses(model, missing, pack_length_tokens=pack_length_tokens, on_progress=keep)
    done |= {row.id: row for row in found}
    return [done[row.id] for row in sequences]


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
