"""The types that pass between stages: frozen, keyword-only, and validated where they are made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deft.errors import UserError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
IGNORED_LABEL = -100
"""The label of a token that carries no loss (the convention of PyTorch's cross-entropy)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation; `content` is text with at least one character that is not white space."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError("unknown role", got=self.role, fix="roles are system, user and assistant")
        if not isinstance(self.content, str):
            fault = f"the content of the {self.role} message is not text"
            raise UserError(fault, got=self.content, fix="put the text in quotes, or leave the row out")
        if not self.content.strip():
            what = "empty reply" if self.role == "assistant" else f"empty {self.role} message"
            raise UserError(what, fix="give it text, or leave the row out")
        try:
            self.content.encode("utf-8")
        except UnicodeEncodeError as error:
            fault = f"the {self.role} message holds half of a surrogate pair, which is not a character"
            raise UserError(fault, got=self.content, fix="write the file again as valid UTF-8") from error


def check_conversation(messages: Sequence[Message], *, ends_with: Role) -> None:
    """Check that a conversation is [system], then user and assistant in turn, closed by `ends_with`.

    Raises:
        UserError: naming the first message that is out of place, counted from 1.
    """
    if not messages:
        raise UserError("the conversation has no messages", fix="give it a question and a reply, or leave the row out")
    turns = messages[1:] if messages[0].role == "system" else messages
    offset = len(messages) - len(turns)
    for position, message in enumerate(turns):
        expected = "user" if position % 2 == 0 else "assistant"
        if message.role != expected:
            raise UserError(
                f"message {position + offset + 1} should be from the {expected}",
                got=f"{message.role}: {message.content}",
                fix="a system message may come first; after it user and assistant take turns",
            )
    if messages[-1].role != ends_with:
        fault = f"the last message should be from the {ends_with}"
        raise UserError(fault, got=messages[-1].role, fix=f"add the {ends_with}'s message, or take the last one out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One instruction row: a conversation that ends with the reply to learn, and the ability it teaches.

    `id` is a hash of the messages, so the same conversation has the same id wherever it is stored.
    `meta` holds what else the row carried (`question_format`, `choices`, `answer`, …), JSON values only.
    `source` says where it was read: `file:line`.
    """

    id: str
    messages: tuple[Message, ...]
    ability: str | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_conversation(self.messages, ends_with="assistant")

    @classmethod
    def create(
        cls,
        messages: Sequence[Message],
        *,
        ability: str | None = None,
        source: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> "Example":
        """Make an example, its id computed from its messages.

        Raises:
            UserError: if the messages are not a conversation that ends with a reply.
        """
        messages = tuple(messages)
        return cls(id=content_id(messages), messages=messages, ability=ability, source=source, meta=dict(meta or {}))


def content_id(messages: Sequence[Message]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the messages' roles and contents."""
    text = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """A row that a stage left out, and why: `reason` is a short name that reports count, `detail` a sentence."""

    id: str
    stage: str
    reason: str
    detail: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSequence:
    """An example as a model sees it.

    `input_ids` and `labels` are int32 `[length]`; a label is the token itself where the token carries loss (or what is
    taught in its place, `ChatFormat.trained_as`) and `IGNORED_LABEL` elsewhere. Labels are not shifted: position t is
    predicted from position t - 1. `place` tells rows of equal content apart: it counts the rows of a split from 0.
    """

    id: str
    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    ability: str | None = None
    place: int = 0

    def __post_init__(self) -> None:
        if self.input_ids.shape != self.labels.shape or self.input_ids.ndim != 1:
            raise ValueError(f"input_ids {self.input_ids.shape} and labels {self.labels.shape} must be one equal row")
        if self.labels[0] != IGNORED_LABEL:
            raise ValueError("the first token has nothing before it to be predicted from")
        if self.num_supervised == 0:
            raise ValueError(f"row {self.id} has no supervised token")

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """The number of tokens that carry loss."""
        return int((self.labels != IGNORED_LABEL).sum())
