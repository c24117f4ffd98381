"""What `import deft` offers where the function of a single room asks for more than a user has at hand.

In: examples, settings, the name of a model. Out: an audit, or a trained checkpoint. Tokenizer, chat format and
terminal, which the functions behind it are given, are found here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.data.audit import Audit
from deft.data.audit import audit as audit_encoded
from deft.model.size import reach
from deft.model.start import start_from
from deft.prompt.encode import encoded_rows
from deft.prompt.formats.kinds import TrainReasoning
from deft.screen import console as terminal
from deft.training.config import TrainConfig
from deft.types import Example

if TYPE_CHECKING:
    from rich.console import Console

    from deft.training.run import TrainResult


def audit(
    examples: Sequence[Example],
    *,
    model: str | Path,
    max_length_tokens: int = 2048,
    template_kwargs: Mapping[str, Any] | None = None,
    train_reasoning: TrainReasoning = "last",
) -> Audit:
    """Count rows and tokens per ability, and find what would make training on them pointless or wrong.

    `model` is an alias, a folder or a hub id; only its tokenizer is loaded. Examples longer than `max_length_tokens`,
    or than the model's positions, lose their oldest turns, as in training; `template_kwargs` and `train_reasoning` are
    those of a `TrainConfig`.

    Example:
        >>> found = deft.audit(deft.read_examples("rows.jsonl").examples, model="smollm2-135m")
        >>> print(found.total.num_supervised, found.stop_reasons, found.warnings)

    Raises:
        UserError: if the model is not found, or its chat format cannot be masked exactly.
    """
    start = start_from(model, template_kwargs=template_kwargs)
    limit = reach(start.found.folder, max_length_tokens)
    return audit_encoded(
        examples,
        encoded_rows(examples, start.chat_format, max_length_tokens=limit, train_reasoning=train_reasoning),
        max_length_tokens=limit,
        end_of_turn_ids=start.chat_format.end_of_turn_ids,
    )


def train(
    config: TrainConfig,
    examples: Sequence[Example],
    valid_examples: Sequence[Example] = (),
    *,
    console: "Console | None" = None,
) -> "TrainResult":
    """Fine-tune a model on examples, and return where the result lies.

    `config` names the model and says how to train it; its `train` and `valid` are not read, since the examples are
    here. The loss of `valid_examples` is measured before training and after every epoch, and the best checkpoint is the
    one where it is lowest; without any, nothing is held out and the last checkpoint is the best one. The first Ctrl-C
    ends the run after its step (`finished` is then false), and `resume_training=True` in the same `config` goes on.
    Progress goes to `console`, by default the terminal; `rich.console.Console(quiet=True)` says nothing.

    Example:
        >>> config = deft.TrainConfig(model="smollm2-135m", num_epochs=1, learning_rate=1e-4)
        >>> result = deft.train(config, deft.read_examples("rows.jsonl").examples)
        >>> deft.Assistant(result.best)

    Raises:
        UserError: before anything is written, where the settings or the data make the run impossible.
    """
    from deft.training.run import train as run_training

    return run_training(config, examples, valid_examples, console or terminal())
