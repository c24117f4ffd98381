"""A conversation as formats see it: stripped texts, and no system turn where the format has no place for one.

In: messages. Out: turns, which are messages without their checks, because a format also makes turns of its own.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from deft.errors import NotTrainable
from deft.types import Message, Role, ToolCall, split_reasoning

SYSTEM_SEPARATOR = "\n\n"
"""What stands between the system message and the first user message where they share a turn."""
THINK = ("<think>\n", "\n</think>\n\n")
"""What stands around reasoning where it is written into the text of a reply, as most models write it."""
SHORT_ID = "call{number:05d}"
"""Of nine letters and digits, as Mistral's templates want them."""
CALL_ID = "functions.{name}:{number}"
"""What Kimi's templates write; others that show an id show any."""
PROBE = (
    Message(role="user", content="请用一句话解释：光合作用是什么？"),
    Message(role="assistant", content="植物用光能把 CO₂ 和水变成糖和氧气。\n(That is all.)"),
    Message(role="user", content="What is 3.5 × 12 — in words?"),
    Message(role="assistant", content="Forty-two，也就是四十二。"),
)
"""A conversation that every format must be able to encode, in the two languages most rows are in."""


class Turn(NamedTuple):
    """A role and what it says; see `Message` for the parts."""

    role: Role
    content: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    weight: float = 1.0
    name: str = ""
    call_id: str = ""


def turns_of(messages: Sequence[Message], *, has_system_role: bool) -> list[Turn]:
    """Return the turns of a conversation, white space around each text removed.

    White space at the ends is removed because a tokenizer joins it with what the format writes next to it: a reply
    that begins with a space would begin with another token than the one that follows the prompt at inference.
    Without a system role the system message goes in front of the first user message, where it carries no loss. Thinking
    at the head of a reply is its reasoning.
    """
    turns = [turn_of(message) for message in messages]
    if has_system_role or turns[0].role != "system":
        return turns
    system, first, *rest = turns
    return [first._replace(content=system.content + SYSTEM_SEPARATOR + first.content), *rest]


def turn_of(message: Message) -> Turn:
    """Return a message as a turn."""
    reasoning, content = message.reasoning, message.content
    if message.role == "assistant" and not reasoning and "<think>" in content:
        reasoning, content = split_reasoning(content)
    return Turn(
        message.role,
        content.strip(),
        reasoning.strip(),
        message.tool_calls,
        message.weight,
        message.name,
        message.call_id,
    )


def as_text(turns: Sequence[Turn], tools: Sequence[Any]) -> list[Turn]:
    """Return the turns for a format that knows texts only: reasoning goes into the reply it leads to.

    Raises:
        NotTrainable: `no_tool_support`, if there are tools or calls.
    """
    if tools or any(turn.calls or turn.role == "tool" for turn in turns):
        what = "this chat format has no place for tools"
        raise NotTrainable("no_tool_support", what, fix="use a model whose chat template writes tools, or drop the row")
    return [with_reasoning_inside(turn) for turn in turns]


def with_reasoning_inside(turn: Turn) -> Turn:
    """Return a turn whose reasoning is written into its content, between `THINK`."""
    return turn._replace(content=(reasoning_block(turn) + turn.content).strip(), reasoning="")


def reasoning_block(turn: Turn) -> str:
    """Return the reasoning of a turn between `THINK`, or nothing."""
    return THINK[0] + turn.reasoning + THINK[1] if turn.reasoning else ""


def taught(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages up to and with the last reply that carries loss: what follows it teaches nothing."""
    ends = [place for place, one in enumerate(messages, start=1) if one.role == "assistant" and one.weight]
    return messages[: max(ends, default=0)]


def masks_reasoning(turns: Sequence[Turn], reply: int, train_reasoning: str) -> bool:
    """Say whether the reasoning of a reply carries no loss; `turns` end with the last reply that is trained."""
    is_last = reply == len(turns) - 1
    return bool(turns[reply].reasoning) and (train_reasoning == "none" or (train_reasoning == "last" and not is_last))


def num_common(left: Sequence[object], right: Sequence[object]) -> int:
    """Return how many items two sequences begin with alike."""
    shorter = min(len(left), len(right))
    return next((place for place in range(shorter) if left[place] != right[place]), shorter)


def typed_json(turns: Sequence[Turn], tools: Sequence[Any]) -> str:
    """Return what a row brings in beside its texts, tools and calls, as one text that holds all their characters."""
    calls = [text for turn in turns for call in turn.calls for text in (call.name, call.arguments, call.id)]
    names = [text for turn in turns for text in (turn.name, turn.call_id)]
    return (
        "\n".join([json.dumps(list(tools), ensure_ascii=False), *calls, *names]) if tools or calls or any(names) else ""
    )


def with_call_ids(turns: Sequence[Turn], *, short: bool) -> Sequence[Turn]:
    """Return the turns with an id for each call, and with its id and its function's name for each result.

    Results without an id answer the calls in their order. With `short`, all ids are nine letters and digits long.
    """
    if not any(turn.calls for turn in turns):
        return turns
    found: list[Turn] = []
    number = 0
    pending: list[ToolCall] = []
    for turn in turns:
        changed = turn
        if turn.calls:
            pending = []
            for call in turn.calls:
                made = (SHORT_ID if short else CALL_ID).format(name=call.name, number=number)
                pending.append(call.with_id(made if short or not call.id else call.id))
                number += 1
            changed = turn._replace(calls=tuple(pending))
            asked = {call.id: made for call, made in zip(turn.calls, pending, strict=True) if call.id}
        elif turn.role == "tool" and pending:
            answered = asked.get(turn.call_id, pending[0])
            pending = [call for call in pending if call is not answered] or pending[-1:]
            changed = turn._replace(call_id=answered.id, name=turn.name or answered.name)
        found.append(changed)
    return found
