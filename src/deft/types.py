"""The types that pass between stages: frozen, keyword-only, and validated where they are made."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deft.errors import UserError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
THINK_BLOCK = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>\s*", re.DOTALL)
IGNORED_LABEL = -100
"""The label of a token that carries no loss (the convention of PyTorch's cross-entropy)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A function that an assistant's message calls: its name, and its arguments as the JSON text of one object.

    `id` is what the result refers to, where the row has one.
    """

    name: str
    arguments: str
    id: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise UserError("a tool call names no function", got=self.name, fix="give it a name, or leave the row out")
        try:
            is_object = isinstance(json.loads(self.arguments), dict)
        except (ValueError, TypeError, RecursionError) as error:
            fix = "write the arguments as one JSON object, or leave the row out"
            what = f"the arguments of the call of {self.name} are not JSON ({error})"
            raise UserError(what, got=self.arguments, fix=fix) from error
        if not is_object:
            what = f"the arguments of the call of {self.name} are no JSON object"
            raise UserError(what, got=self.arguments, fix="write them as one JSON object, or leave the row out")
        check_characters(f"the call of {self.name}", self.name + self.arguments + self.id)

    def with_id(self, call_id: str) -> "ToolCall":
        """Return the same call with another id."""
        return replace(self, id=call_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation.

    `content` is text with at least one character that is not white space; only a tool's result, and a message that
    calls tools, may have none. An assistant's message may hold the `reasoning` before its content and `tool_calls`
    after it, and a loss `weight` from 0 (no loss: it stays as context) to 1, or above. A tool's message is the result
    of a call: `name` is the function's and `call_id` the call's, where the row says so.
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    weight: float = 1.0
    name: str = ""
    call_id: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError("unknown role", got=self.role, fix="roles are system, user, assistant and tool")
        for text in (self.content, self.reasoning):
            if not isinstance(text, str):
                fault = f"the content of the {self.role} message is not text"
                raise UserError(fault, got=text, fix="put the text in quotes, or leave the row out")
        if not self.content.strip() and self.role != "tool" and not self.tool_calls:
            what = "empty reply" if self.role == "assistant" else f"empty {self.role} message"
            raise UserError(what, fix="give it text, or leave the row out")
        if self.role != "assistant" and (self.reasoning or self.tool_calls or self.weight != 1):
            fault = f"a {self.role} message has reasoning, tool calls or a loss weight, which only replies have"
            raise UserError(fault, got=self.content, fix="take them out, or leave the row out")
        # What float32 holds without trouble.
        if not (isinstance(self.weight, int | float) and (self.weight == 0 or 1e-6 <= self.weight <= 1e6)):
            what = "the loss weight of a reply is neither 0 nor a number from 0.000001 to 1,000,000"
            raise UserError(what, got=self.weight, fix="write 0 or 1")
        check_characters(f"the {self.role} message", self.content + self.reasoning)


def split_reasoning(content: str) -> tuple[str, str]:
    """Return the reasoning that stands at the head of a reply as `<think>…</think>`, and the reply after it.

    An empty block is no reasoning; a block that is not closed is text.
    """
    found = THINK_BLOCK.match(content)
    return (found["reasoning"].strip(), content[found.end() :]) if found else ("", content)


def check_characters(what: str, text: str) -> None:
    """Check that a text can be written as UTF-8.

    Raises:
        UserError: if it holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        fault = f"{what} holds half of a surrogate pair, which is not a character"
        raise UserError(fault, got=text, fix="write the file again as valid UTF-8") from error


def check_conversation(messages: Sequence[Message], *, ends_with: Literal["user", "assistant"]) -> None:
    """Check that a conversation is [system], then user and assistant in turn, closed by `ends_with`.

    After a message that calls tools, their results may come before the assistant speaks again; where a conversation
    has to end with the user, it may end with them.

    Raises:
        UserError: naming the first message that is out of place, counted from 1.
    """
    if not messages:
        raise UserError("the conversation has no messages", fix="give it a question and a reply, or leave the row out")
    results_due = 0  # of the calls made last
    before: Role = "system"
    for position, message in enumerate(messages, start=1):
        if position == 1 and message.role == "system":
            continue
        expected: Role = "assistant" if before in ("user", "tool") else "user"
        if message.role == "tool" and results_due:
            results_due -= 1
        elif message.role != expected:
            raise UserError(
                f"message {position} should be from the {expected}",
                got=f"{message.role}: {message.content}",
                fix="a system message may come first; after it user and assistant take turns, and results follow calls",
            )
        else:
            results_due = len(message.tool_calls)
        before = message.role
    last = messages[-1].role
    if last != ends_with and not (last == "tool" and ends_with == "user"):
        fault = f"the last message should be from the {ends_with}"
        raise UserError(fault, got=last, fix=f"add the {ends_with}'s message, or take the last one out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One instruction row: a conversation that ends with the reply to learn, and the ability it teaches.

    `id` is a hash of the messages and tools, so the same conversation has the same id wherever it is stored.
    `tools` are the functions that the assistant may call, each a JSON object as OpenAI writes it
    (`{"type": "function", "function": {"name", "description", "parameters"}}`).
    `meta` holds what else the row carried (`question_format`, `choices`, `answer`, …), JSON values only.
    `source` says where it was read: `file:line`.
    """

    id: str
    messages: tuple[Message, ...]
    ability: str | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_conversation(self.messages, ends_with="assistant")
        if not any(message.weight for message in self.messages if message.role == "assistant"):
            fix = "take such rows out, or give a reply the loss weight 1"
            raise UserError("no reply of the row is to be trained: all are marked so", fix=fix)

    @classmethod
    def create(
        cls,
        messages: Sequence[Message],
        *,
        ability: str | None = None,
        source: str = "",
        meta: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> "Example":
        """Make an example, its id computed from its messages and tools.

        Raises:
            UserError: if the messages are not a conversation that ends with a reply.
        """
        messages = tuple(messages)
        return cls(
            id=content_id(messages, tools),
            messages=messages,
            ability=ability,
            source=source,
            meta=dict(meta or {}),
            tools=tuple(tools),
        )


def content_id(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of all that messages and tools hold.

    What few rows have (reasoning, calls, weights, tools) counts only where it is there: a plain conversation has the
    id that earlier versions gave it.
    """
    parts: list[Any] = [[message.role, message.content, *further_parts(message)] for message in messages]
    text = json.dumps([*parts, {"tools": list(tools)}] if tools else parts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def further_parts(message: Message) -> list[dict[str, Any]]:
    """Return what a message holds beside its role and content, in one object; an empty list if nothing."""
    calls = [[call.name, call.arguments, call.id] for call in message.tool_calls]
    further = {
        "reasoning": message.reasoning,
        "tool_calls": calls,
        "weight": float(message.weight) if message.weight != 1 else None,
        "name": message.name,
        "call_id": message.call_id,
    }
    found = {name: value for name, value in further.items() if value not in ("", [], None)}
    return [found] if found else []


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
    """An example as a model sees it, or one reply of an example whose chat template rewrites earlier turns.

    `input_ids` and `labels` are int32 `[length]`; a label is the token itself where the token carries loss (or what is
    taught in its place, `ChatFormat.trained_as`) and `IGNORED_LABEL` elsewhere. Labels are not shifted: position t is
    predicted from position t - 1. `weights` float32 `[length]` are the loss weights of the tokens, where they are not
    all 1: the loss is Σ weight · nll / Σ weight. `place` tells rows of equal content apart: it counts the sequences of
    a split from 0. `part` counts the sequences of one row.
    """

    id: str
    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    ability: str | None = None
    place: int = 0
    weights: NDArray[np.float32] | None = None
    part: int = 0

    def __post_init__(self) -> None:
        if self.weights is not None and self.weights.shape != self.labels.shape:
            raise ValueError(f"weights {self.weights.shape} and labels {self.labels.shape} must be one equal row")
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

    @property
    def total_weight(self) -> float:
        """The loss weights of these tokens, added up: their number where all weights are 1."""
        supervised = self.labels != IGNORED_LABEL
        return (
            float(supervised.sum()) if self.weights is None else float(self.weights[supervised].sum(dtype=np.float64))
        )


class EncodedExample(NamedTuple):
    """The sequences of an example, and how many of its oldest exchanges did not fit into one of them at most."""

    sequences: list[TokenSequence]
    num_exchanges_left_out: int
