"""Which token ids a model can read: every one that occurs is checked, none that its tokenizer merely has; and room
for tokens that a chat format adds.

Gemma 3 1B's tokenizer has one id (of images) more than the model has embeddings; no text makes it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deft.errors import UserError
from deft.types import TokenSequence

if TYPE_CHECKING:
    from deft.model.load import LoadedModel


def check_ids(model: Any, ids: Iterable[int], *, where: str) -> None:
    """Check that a model has an embedding for each of some ids, before a look-up fails in the middle of a run.

    Raises:
        UserError: naming the largest id and `where` it stands.
    """
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    largest = max(ids, default=0)
    if largest >= num_embeddings:
        raise UserError(
            f"the tokenizer gives ids that the model has no embedding for: it has {num_embeddings}",
            got=f"id {largest}",
            where=where,
            fix="use the tokenizer that belongs to the model",
        )


def check_rows(model: Any, rows: Iterable[TokenSequence]) -> None:
    """Check the ids of whole rows, as `check_ids` does; the row is named."""
    for row in rows:
        check_ids(model, [int(row.input_ids.max())], where=row.id)


def make_room(loaded: "LoadedModel", *, seed: int = 0) -> None:
    """Give a model an embedding for every token that its tokenizer has; the new rows are random, by `seed`."""
    import torch

    torch.manual_seed(seed)
    if len(loaded.tokenizer) > loaded.model.get_input_embeddings().weight.shape[0]:
        loaded.model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=False)
