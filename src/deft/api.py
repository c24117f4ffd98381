"""The whole path by plain calls: what `import deft` offers beside the functions of single rooms.

In: examples, settings, the name of a model. Out: an audit, a trained checkpoint, the losses of rows.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from deft.data.audit import Audit
from deft.data.audit import audit as audit_encoded
from deft.evaluation.loss import row_losses
from deft.hub.find import find_folder
from deft.losses import RowLoss
from deft.model.load import load_model, load_tokenizer
from deft.prompt.detect import chat_format_to_train, find_chat_format
from deft.prompt.encode import encode_example, encode_examples
from deft.screen import console as terminal
from deft.training.config import TrainConfig
from deft.training.run import TrainResult
from deft.training.run import train as run_training
from deft.types import Example

MAX_LENGTH_TOKENS = 2048
"""Of a row, where the caller names no other limit."""


def audit(examples: Sequence[Example], *, model: str | Path, max_length_tokens: int = MAX_LENGTH_TOKENS) -> Audit:
    """Count rows and tokens per ability, and find what would make training on them pointless or wrong.

    `model` is an alias, a folder or a hub id; only its tokenizer is loaded. Rows that are longer than
    `max_length_tokens` lose their oldest turns, as in training.

    Raises:
        UserError: if the model is not found, or its chat format cannot be masked exactly.
    """
    tokenizer = load_tokenizer(model)
    chat_format, _ = chat_format_to_train(tokenizer, find_folder(model, weights=False))
    return audit_encoded(
        examples,
        encode=lambda row: encode_example(row, chat_format, max_length_tokens=max_length_tokens),
        max_length_tokens=max_length_tokens,
        end_of_turn_ids=chat_format.end_of_turn_ids,
    )


def train(
    config: TrainConfig,
    examples: Sequence[Example],
    valid_examples: Sequence[Example] = (),
    *,
    console: Console | None = None,
) -> TrainResult:
    """Fine-tune a model on examples, and return where the result lies.

    `config` names the model and how to train it; `config.train` and `config.valid` are not read, the rows come from
    the caller. The loss of `valid_examples` is measured before training and after every epoch, and the best checkpoint
    is the one where it is lowest. A run of the same settings that was interrupted goes on where it stopped with
    `resume_training=True`. Progress goes to `console`, by default the terminal.

    Example:
        >>> config = deft.TrainConfig(model="smollm2-135m", num_epochs=1, learning_rate=1e-4)
        >>> result = deft.train(config, deft.read_examples("rows.jsonl").examples)
        >>> print(result.best)

    Raises:
        UserError: before anything is written, where the settings or the data make the run impossible.
    """
    return run_training(config, examples, valid_examples, console or terminal())


def evaluate_loss(
    model: str | Path,
    examples: Sequence[Example],
    *,
    max_length_tokens: int = MAX_LENGTH_TOKENS,
    dtype: str = "auto",
    device: str | None = None,
) -> list[RowLoss]:
    """Measure how surprised a model is by the replies of examples it was not trained on: the loss of each row.

    `deft.losses_by_ability` gives their means, in nats per supervised token, and `deft.paired_changes` compares two
    models on the same rows, with intervals. Rows that cannot be encoded exactly are left out.

    Raises:
        UserError: if the model is not found or cannot be loaded, or no row can be encoded.
    """
    loaded = load_model(model, dtype=dtype, device=device)
    chat_format = find_chat_format(loaded.tokenizer, loaded.path)
    rows = encode_examples(examples, chat_format, max_length_tokens=max_length_tokens).sequences
    return row_losses(loaded.model, rows, pack_length_tokens=max_length_tokens)
