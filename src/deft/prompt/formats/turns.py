"""A conversation as formats see it: stripped texts, and no system turn where the format has no place for one.

In: messages. Out: turns, which are messages without their checks, because a format also makes turns of its own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from deft.errors import NotTrainable
from deft.types import Message, Role, ToolCall, split_reasoning

SYSTEM_SEPARATOR = "\n\n"
"""What stands between the system message and the first user message where they share a turn."""
THINK = ("<think>\n", "\n</think>\n\n")
"""What stands around reasoning where it is written into the text of a reply, as most models write it."""
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
