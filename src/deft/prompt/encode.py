"""Chats as token ids: the interface every format has, and the rows and prompts made with it.

In: examples or messages. Out: `TokenSequence`s for training, token ids and fitted messages for inference. Training,
evaluation, chat and API all pass through here, so that a model is asked in exactly the way it was taught.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deft.errors import NotTrainable, UserError
from deft.prompt.formats.kinds import ChatFormat
from deft.types import IGNORED_LABEL, Dropped, Example, Message, TokenSequence, check_conversation


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeResult:
    """Rows ready to train on, those that cannot be, and how many lost their oldest exchanges to fit."""

    sequences: tuple[TokenSequence, ...]
    dropped: tuple[Dropped, ...]
    num_shortened: int


def encode_example(example: Example, chat_format: ChatFormat, *, max_length_tokens: int) -> TokenSequence:
    """Return an example as token ids and labels, at most `max_length_tokens` long.

    A longer row loses whole exchanges, the oldest first, and keeps its system message; no turn is ever cut.

    Raises:
        NotTrainable: `too_long`, if the last exchange alone does not fit, or the format's own reasons.
    """
    return _encode_fitted(example, chat_format, max_length_tokens).sequence


def encode_examples(examples: Sequence[Example], chat_format: ChatFormat, *, max_length_tokens: int) -> EncodeResult:
    """Encode every example that can be trained exactly, and say of each other one why it cannot."""
    fitted: list[FittedExample] = []
    dropped: list[Dropped] = []
    for example in examples:
        try:
            fitted.append(_encode_fitted(example, chat_format, max_length_tokens))
        except NotTrainable as error:
            detail = str(error)
            dropped.append(
                Dropped(id=example.id, stage="encode", reason=error.reason, detail=detail, source=example.source)
            )
    return EncodeResult(
        sequences=tuple(row.sequence for row in fitted),
        dropped=tuple(dropped),
        num_shortened=sum(row.num_exchanges_left_out > 0 for row in fitted),
    )


class FittedExample(NamedTuple):
    """An encoded example, and how many of its oldest exchanges did not fit."""

    sequence: TokenSequence
    num_exchanges_left_out: int


def _encode_fitted(example: Example, chat_format: ChatFormat, max_length_tokens: int) -> FittedExample:
    ids, trained = chat_format.encode_conversation(example.messages)
    full_length, num_left_out = len(ids), 0
    if full_length > max_length_tokens:
        versions = shortened_versions(example.messages)
        num_left_out = num_to_leave_out(
            versions, lambda version: len(chat_format.encode_conversation(version)[0]), max_length_tokens
        )
        ids, trained = chat_format.encode_conversation(versions[num_left_out])
        if len(ids) > max_length_tokens:
            raise too_long(full_length, len(ids), max_length_tokens)
    input_ids = np.array(ids, dtype=np.int32)
    taught = np.array([chat_format.trained_as.get(token_id, token_id) for token_id in ids], dtype=np.int32)
    labels = np.where(np.array(trained, dtype=bool), taught, np.int32(IGNORED_LABEL)).astype(np.int32)
    sequence = TokenSequence(id=example.id, input_ids=input_ids, labels=labels, ability=example.ability)
    return FittedExample(sequence, num_left_out)


def too_long(full_length: int, last_exchange_length: int, max_length_tokens: int) -> NotTrainable:
    """Return the refusal of a row whose last exchange alone does not fit."""
    return NotTrainable(
        "too_long",
        f"the row is longer than {max_length_tokens} tokens, even with its last exchange alone",
        got=f"{full_length} tokens, {last_exchange_length} with the last exchange alone",
        fix=f"raise max_length_tokens to {last_exchange_length}, or shorten the row",
    )


def fit_prompt(messages: Sequence[Message], chat_format: ChatFormat, *, max_prompt_tokens: int) -> list[Message]:
    """Return the messages of a prompt of at most `max_prompt_tokens`: whole exchanges are left out, oldest first.

    The system message counts and is kept.

    Raises:
        UserError: if the last user message does not fit even alone.
    """
    check_conversation(messages, ends_with="user")
    versions = shortened_versions(messages)

    def length_of(version: Sequence[Message]) -> int:
        return len(chat_format.encode_prompt(version))

    fitting = versions[num_to_leave_out(versions, length_of, max_prompt_tokens)]
    length = length_of(fitting)
    if length > max_prompt_tokens:
        raise UserError(
            f"the last message is too long: it makes a prompt of {length} tokens, and {max_prompt_tokens} are allowed",
            got=messages[-1].content,
            fix="shorten the message, or raise the context limit",
        )
    return list(fitting)


def num_to_leave_out(
    versions: Sequence[Sequence[Message]], length_of: Callable[[Sequence[Message]], int], max_tokens: int
) -> int:
    """Return the number of the first of ever shorter versions that fits, or of the last if none does."""
    found = bisect_left(versions, True, key=lambda version: length_of(version) <= max_tokens)
    return min(found, len(versions) - 1)


def shortened_versions(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """Return the conversation whole, then without its oldest exchange, and so on down to the last exchange."""
    num_system = int(messages[0].role == "system")
    system = tuple(messages[:num_system])
    return [(*system, *messages[start:]) for start in range(num_system, len(messages), 2)]
