"""How surprised a model is by examples it never trained on, by one plain call.

In: the name of a model, and examples. Out: the mean loss of each ability with its interval, the losses of the rows
behind it, and the examples that could not be measured, with the reasons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.errors import UserError
from deft.evaluation.loss import row_losses
from deft.hub.find import find
from deft.intervals import MeanLoss, mean_losses
from deft.losses import RowLoss, added
from deft.model.load import load_model
from deft.model.size import reach
from deft.model.start import Start, start_from
from deft.model.vocabulary import make_room
from deft.prompt.encode import encode_examples
from deft.prompt.formats.kinds import TrainReasoning
from deft.types import Dropped, Example

if TYPE_CHECKING:
    from deft.model.load import LoadedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class LossResult:
    """What `evaluate_loss` measured.

    `abilities` are the mean losses by name of the ability, that of all rows, called `all`, last; `rows` the losses
    they are means of, in the order of the examples; `dropped` the examples that were left out, and why.
    """

    abilities: tuple[MeanLoss, ...]
    rows: tuple[RowLoss, ...]
    dropped: tuple[Dropped, ...]


def evaluate_loss(
    model: str | Path,
    examples: Sequence[Example],
    *,
    max_length_tokens: int = 2048,
    dtype: str = "auto",
    device: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    train_reasoning: TrainReasoning = "last",
) -> LossResult:
    """Measure how surprised a model is by the replies of examples, which it should not have been trained on.

    Losses are negative log-likelihoods in nats per supervised token; each mean comes with the interval in which it
    would lie with other rows of the same kind (95 %, NaN for fewer than six rows). Two models measured on the same
    examples are compared by `deft.paired_changes(before.rows, after.rows)`.

    `model` is an alias, a folder or a hub id. Examples longer than `max_length_tokens`, or than the model's positions,
    lose their oldest turns, as in training. `dtype` and `device` "auto" and None: bfloat16 on a GPU, else float32.
    `template_kwargs` are given to its chat template, by default those stored with it; `train_reasoning` says in which
    replies reasoning counts, as in training.

    Example:
        >>> result = deft.evaluate_loss("smollm2-135m", deft.read_examples("test.jsonl").examples)
        >>> for mean in result.abilities:
        ...     print(mean.ability, round(mean.loss, 3), mean.num_rows)

    Raises:
        UserError: if the model is not found or cannot be loaded, or no example can be measured.
    """
    start = start_from(find(model), template_kwargs=template_kwargs)
    loaded = load_to_measure(start, dtype=dtype, device=device)
    limit = reach(loaded.path, max_length_tokens)
    encoded = encode_examples(examples, start.chat_format, max_length_tokens=limit, train_reasoning=train_reasoning)
    if not encoded.sequences:
        got = f"{len(encoded.dropped)} of {len(examples)} examples dropped"
        if encoded.dropped:
            got += f"; the first: {encoded.dropped[0].reason}: {encoded.dropped[0].detail}"
        raise UserError("there is no example to measure a loss on", got=got, fix="see what `deft.audit` says of them")
    rows: dict[int, RowLoss] = {}  # by the place of the example: a row may have several sequences
    losses = row_losses(loaded.model, encoded.sequences, pack_length_tokens=limit)
    for place, loss in zip(encoded.places, losses, strict=True):
        rows[place] = added(rows[place], loss) if place in rows else loss
    return LossResult(abilities=mean_losses(list(rows.values())), rows=tuple(rows.values()), dropped=encoded.dropped)


def load_to_measure(start: Start, *, dtype: str = "auto", device: str | None = None) -> "LoadedModel":
    """Load a model that was found with its weights, and give it room for the tokens that its chat format added."""
    loaded = load_model(start.found, dtype=dtype, device=device, tokenizer=start.tokenizer)
    if start.num_added_tokens:
        make_room(loaded)
    return loaded
