"""How surprised a model is by rows it never trained on, per ability.

In: a model and token sequences. Out: the negative log-likelihood (NLL, in nats) of every row, and its mean per
supervised token over each ability and over all rows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deft.losses import NO_ABILITY, RowLoss, as_line, read_rows_kept, write_rows
from deft.model.vocabulary import check_rows
from deft.prompt.pack import pack_rows
from deft.types import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def row_losses(
    model: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    *,
    pack_length_tokens: int,
    on_progress: Callable[[list[RowLoss]], None] | None = None,
) -> list[RowLoss]:
    """Return the loss of every sequence, in the order given; they run in packs of at most `pack_length_tokens`.

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

    check_rows(model, sequences)
    found: dict[int, RowLoss] = {}
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
    on_progress: Callable[[list[RowLoss]], None] | None = None,
) -> list[RowLoss]:
    """Return what `row_losses` returns, and keep each pack in `file`; rows that are found there are not run again.

    The file is one of JSON lines, and belongs to one model and one way of encoding: that is the caller's to see to.
    `on_progress` is called with what was computed now.
    """
    done = {(row.id, row.part): row for row in read_rows_kept(file)}
    write_rows(file, list(done.values()))  # a line that an interruption cut off goes
    missing = [row for row in sequences if (row.id, row.part) not in done]
    with file.open("a", encoding="utf-8") as stream:

        def keep(pack: list[RowLoss]) -> None:
            stream.write("".join(as_line(row) for row in pack))
            stream.flush()
            if on_progress is not None:
                on_progress(pack)

        found = row_losses(model, missing, pack_length_tokens=pack_length_tokens, on_progress=keep)
    done |= {(row.id, row.part): row for row in found}
    return [done[row.id, row.part] for row in sequences]


def evaluated(row: TokenSequence, nll: float) -> RowLoss:
    """Return the loss of a row as it is kept."""
    return RowLoss(
        id=row.id,
        ability=row.ability or NO_ABILITY,
        nll=nll,
        num_supervised=row.num_supervised,
        weight=None if row.weights is None else row.total_weight,
        part=row.part,
    )
