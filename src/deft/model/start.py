"""What a model is before its weights: where it lies, its tokenizer, and how a chat is written for training on it.

In: a model found already, or its name. Out: a `Start`, with which rows are encoded, and from which the model is loaded
without finding anything twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.hub.find import FoundModel, find
from deft.model.load import load_tokenizer
from deft.prompt.detect import chat_format_to_train
from deft.prompt.formats.kinds import ChatFormat, FormatKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """A model to train on or to measure, without its weights.

    `num_added_tokens` were given to the tokenizer for the chat format, and the model has no embeddings for them yet:
    tokenizer, format and number go together, since a second look at the same tokenizer would find none to add.
    """

    found: FoundModel
    tokenizer: "PreTrainedTokenizerBase"
    chat_format: ChatFormat
    num_added_tokens: int


def start_from(
    model: str | Path | FoundModel,
    kind: FormatKind = "auto",
    *,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Start:
    """Return a model's tokenizer and the chat format that training on it uses; its weights need not be here.

    `template_kwargs` are what its chat template is given beside the messages; None: what is stored with the model.

    Raises:
        UserError: if the model is not found, its tokenizer cannot be loaded, or its chat format cannot be masked.
    """
    found = find(model, weights=False)
    tokenizer = load_tokenizer(found)
    chat_format, num_added_tokens = chat_format_to_train(tokenizer, found.folder, kind, template_kwargs)
    return Start(found=found, tokenizer=tokenizer, chat_format=chat_format, num_added_tokens=num_added_tokens)
