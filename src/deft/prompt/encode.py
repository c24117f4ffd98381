"""Chats as token ids: the interface every format has, and the rows and prompts made with it.

In: examples or messages. Out: `TokenSequence`s for training, token ids and fitted messages for inference. Training,
evaluation, chat and API all pass through here, so that a model is asked in exactly the way it was taught.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deft.errors import NotTrainable, UserError
from deft.prompt.formats.kinds import ChatFormat, Encoded, Tools, TrainReasoning
from deft.types import IGNORED_LABEL, Dropped, EncodedExample, Example, Message, TokenSequence, check_conversation

ROWS_AT_ONCE = 1024
"""Enough for all cores to be busy, and a few megabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeResult:
    """Rows ready to train on, those that cannot be, and how many lost their oldest exchanges to fit.

    A row has one sequence, or, where its chat template rewrites earlier turns, one for each reply; they follow each
    other and share its id. `places` gives for each sequence the place of its example, counted from 0.
    """

    sequences: tuple[TokenSequence, ...]
    places: tuple[int, ...]
    dropped: tuple[Dropped, ...]
    num_shortened: int

    @property
    def num_rows(self) -> int:
        """The rows that the sequences are of."""
        return len(set(self.places))


def encode_example(
    example: Example, chat_format: ChatFormat, *, max_length_tokens: int, train_reasoning: TrainReasoning = "last"
) -> list[TokenSequence]:
    """Return the sequences of an example, each at most `max_length_tokens` long.

    A longer one loses whole exchanges, the oldest first, and keeps its system message; no turn is ever cut.

    Raises:
        NotTrainable: `too_long`, if no reply fits even alone with its question, or the format's own reasons.
    """
    encoded = chat_format.encode_conversation(example.messages, example.tools, train_reasoning=train_reasoning)
    return fitted_example(
        example, encoded, chat_format, max_length_tokens=max_length_tokens, train_reasoning=train_reasoning
    ).sequences


def encode_examples(
    examples: Sequence[Example],
    chat_format: ChatFormat,
    *,
    max_length_tokens: int,
    train_reasoning: TrainReasoning = "last",
) -> EncodeResult:
    """Encode every example that can be trained exactly, and say of each other one why it cannot."""
    sequences: list[TokenSequence] = []
    places: list[int] = []
    dropped: list[Dropped] = []
    num_shortened = 0
    rows = encoded_rows(examples, chat_format, max_length_tokens=max_length_tokens, train_reasoning=train_reasoning)
    for place, (example, row) in enumerate(zip(examples, rows, strict=True)):
        if isinstance(row, NotTrainable):
            detail = str(row)
            dropped.append(
                Dropped(id=example.id, stage="encode", reason=row.reason, detail=detail, source=example.source)
            )
            continue
        sequences += row.sequences
        places += [place] * len(row.sequences)
        num_shortened += row.num_exchanges_left_out > 0
    return EncodeResult(
        sequences=tuple(sequences), places=tuple(places), dropped=tuple(dropped), num_shortened=num_shortened
    )


def encoded_rows(
    examples: Sequence[Example],
    chat_format: ChatFormat,
    *,
    max_length_tokens: int,
    train_reasoning: TrainReasoning = "last",
) -> Iterator[EncodedExample | NotTrainable]:
    """Yield for each example its sequences, or why it cannot be trained; a few are in memory at a time."""
    for start in range(0, len(examples), ROWS_AT_ONCE):
        some = examples[start : start + ROWS_AT_ONCE]
        conversations = [(one.messages, one.tools) for one in some]
        encoded = chat_format.encode_conversations(conversations, train_reasoning=train_reasoning)
        for example, row in zip(some, encoded, strict=True):
            if isinstance(row, NotTrainable):
                yield row
                continue
            try:
                yield fitted_example(
                    example, row, chat_format, max_length_tokens=max_length_tokens, train_reasoning=train_reasoning
                )
            except NotTrainable as error:
                yield error


def fitted_example(
    example: Example,
    encoded: Sequence[Encoded],
    chat_format: ChatFormat,
    *,
    max_length_tokens: int,
    train_reasoning: TrainReasoning,
) -> EncodedExample:
    """Return the sequences of an example, those that are too long encoded again without their oldest exchanges.

    Raises:
        NotTrainable: `too_long`, if none of them fits even with its last exchange alone.
    """
    found: list[TokenSequence] = []
    refused: NotTrainable | None = None
    most_left_out = 0
    is_alone = len(encoded) == 1
    for whole in encoded:
        one, num_left_out = whole, 0
        if len(whole.ids) > max_length_tokens:
            part = example.messages[: whole.num_messages]
            versions = shortened_versions(part if is_alone else only_last_taught(part))

            def shortened(number: int, versions: Sequence[Sequence[Message]] = versions) -> Encoded:
                given = versions[number], example.tools
                return chat_format.encode_conversation(*given, train_reasoning=train_reasoning)[-1]

            num_left_out = num_to_leave_out(len(versions), lambda n: len(shortened(n).ids), max_length_tokens)
            one = shortened(num_left_out)
        if len(one.ids) > max_length_tokens:
            refused = too_long(len(whole.ids), len(one.ids), max_length_tokens)
            continue
        most_left_out = max(most_left_out, num_left_out)
        found.append(sequence_of(example, one, chat_format, part=len(found)))
    if refused is not None and not found:
        raise refused
    return EncodedExample(found, most_left_out)


def sequence_of(example: Example, encoded: Encoded, chat_format: ChatFormat, *, part: int) -> TokenSequence:
    """Return ids and weights as the arrays that training takes; `part` counts the sequences of the example."""
    input_ids = np.array(encoded.ids, dtype=np.int32)
    weights = np.array(encoded.weights, dtype=np.float32)
    labels = input_ids.copy()
    for token_id, taught in chat_format.trained_as.items():
        labels[input_ids == token_id] = taught
    labels[weights == 0] = IGNORED_LABEL
    is_plain = bool(((weights == 0) | (weights == 1)).all())
    return TokenSequence(
        id=example.id,
        input_ids=input_ids,
        labels=labels,
        ability=example.ability,
        weights=None if is_plain else weights,
        part=part,
    )


def only_last_taught(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with loss on the last reply alone."""
    silent = [replace(one, weight=0.0) if one.role == "assistant" else one for one in messages[:-1]]
    return [*silent, messages[-1]]


def too_long(full_length: int, last_exchange_length: int, max_length_tokens: int) -> NotTrainable:
    """Return the refusal of a row whose last exchange alone does not fit."""
    return NotTrainable(
        "too_long",
        f"the row is longer than {max_length_tokens} tokens, even with its last exchange alone",
        got=f"{full_length} tokens, {last_exchange_length} with the last exchange alone",
        fix=f"raise max_length_tokens to {last_exchange_length}, or shorten the row",
    )


def fit_prompt(
    messages: Sequence[Message], chat_format: ChatFormat, *, max_prompt_tokens: int, tools: Tools = ()
) -> list[Message]:
    """Return the messages of a prompt of at most `max_prompt_tokens`: whole exchanges are left out, oldest first.

    The system message counts and is kept.

    Raises:
        UserError: if the last user message does not fit even alone.
    """
    check_conversation(messages, ends_with="user")
    versions = shortened_versions(messages)

    def length_of(number: int) -> int:
        return len(chat_format.encode_prompt(versions[number], tools))

    fitting = num_to_leave_out(len(versions), length_of, max_prompt_tokens)
    length = length_of(fitting)
    if length > max_prompt_tokens:
        raise UserError(
            f"the last message is too long: it makes a prompt of {length} tokens, and {max_prompt_tokens} are allowed",
            got=messages[-1].content,
            fix="shorten the message, or raise the context limit",
        )
    return list(versions[fitting])


def num_to_leave_out(num_versions: int, length_of: Callable[[int], int], max_tokens: int) -> int:
    """Return the number of the first of ever shorter versions that fits, or of the last if none does."""
    found = bisect_left(range(num_versions), True, key=lambda number: length_of(number) <= max_tokens)
    return min(found, num_versions - 1)


def shortened_versions(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """Return the conversation whole, then without its oldest exchange, and so on down to the last exchange.

    An exchange begins with a message of the user; calls of tools and their results belong to it.
    """
    num_system = int(messages[0].role == "system")
    system = tuple(messages[:num_system])
    return [(*system, *messages[start:]) for start, one in enumerate(messages) if one.role == "user"]
