"""A conversation as formats see it: stripped contents, and no system turn where the format has no place for one.

In: messages. Out: turns, which are messages without their checks, because a format also makes turns of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

from deft.types import Message, Role

SYSTEM_SEPARATOR = "\n\n"
"""What stands between the system message and the first user message where they share a turn."""
PROBE = (
    Message(role="user", content="请用一句话解释：光合作用是什么？"),
    Message(role="assistant", content="植物用光能把 CO₂ 和水变成糖和氧气。\n(That is all.)"),
    Message(role="user", content="What is 3.5 × 12 — in words?"),
    Message(role="assistant", content="Forty-two，也就是四十二。"),
)
"""A conversation that every format must be able to encode, in the two languages most rows are in."""


class Turn(NamedTuple):
    """A role and what it says."""

    role: Role
    content: str


def turns_of(messages: Sequence[Message], *, has_system_role: bool) -> list[Turn]:
    """Return the turns of a conversation, white space around each content removed.

    White space at the ends is removed because a tokenizer joins it with what the format writes next to it: a reply
    that begins with a space would begin with another token than the one that follows the prompt at inference.
    Without a system role the system message goes in front of the first user message, where it carries no loss.
    """
    turns = [Turn(message.role, message.content.strip()) for message in messages]
    if has_system_role or turns[0].role != "system":
        return turns
    system, first, *rest = turns
    return [Turn("user", system.content + SYSTEM_SEPARATOR + first.content), *rest]
