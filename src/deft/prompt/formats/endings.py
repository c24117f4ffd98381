"""How a template ends a reply: all that has to be generated after the reply's own text, up to the token to stop at.

In: a renderer. Out: an `Ending` for replies of text, and one for replies that call tools. It is learned from a reply
that is the last turn, and from the same reply with a turn after it, because templates differ there: what both write is
the end of the reply; some end the last turn in another way than earlier ones; and some write nothing after the last
turn, so that the end is what the next turn opens with (GLM-4), or what stands between (Qwen1.5).
"""

from collections.abc import Sequence
from typing import NamedTuple

from deft.errors import NotTrainable
from deft.prompt.formats.kinds import Tools
from deft.prompt.formats.rendering import PROBE_TOOL, REMEDY, Renderer
from deft.prompt.formats.turns import Turn, num_common
from deft.prompt.guard import Guard
from deft.types import ToolCall

MARK, LATER, EARLIER = "\ue000Said\ue001", "\ue000Later\ue001", "\ue000Earlier\ue001"


class Ending(NamedTuple):
    """How a reply ends.

    `written`: the end that the template gives it when it is the last turn; `closing`: what is trained in that place,
    its last token `stop_id` being the one that generation stops at.
    """

    written: str
    closing: str
    stop_id: int


class Endings:
    """Finds how one template ends replies."""

    def __init__(self, renderer: Renderer, guard: Guard, eos: str | None) -> None:
        self._renderer = renderer
        self._guard = guard
        self._eos = eos

    def of_text(self) -> Ending:
        """Return how a reply of text ends.

        Raises:
            NotTrainable: if the template refuses one exchange, or nothing special ever follows a reply.
        """
        turns = [Turn("user", EARLIER), Turn("assistant", MARK)]
        return self._learned(turns, Turn("user", LATER), tools=())

    def of_calls(self) -> Ending:
        """Return how a reply that calls a tool ends.

        Raises:
            NotTrainable: as `of_text` does.
        """
        call = ToolCall(name="markfunction", arguments=f'{{"key": "{MARK}"}}', id="call00000")
        turns = [Turn("user", EARLIER), Turn("assistant", "", calls=(call,))]
        result = Turn("tool", LATER, name="markfunction", call_id="call00000")
        return self._learned(turns, result, tools=[PROBE_TOOL] if self._renderer.shows_tools else [])

    def _learned(self, turns: Sequence[Turn], later: Turn, *, tools: Tools) -> Ending:
        """Return how the last of `turns`, whose text is `MARK`, ends; `later` is a turn that may follow it."""
        as_last = self._renderer.text(turns, tools, for_reply=False).rpartition(MARK)[2]
        try:
            text = self._renderer.text([*turns, later], tools, for_reply=False)
        except NotTrainable:  # some templates know one exchange only
            text = ""
        between = text.rpartition(MARK)[2].partition(LATER)[0] if LATER in text else ""
        closing = closing_of(as_last, between, text.partition(EARLIER)[0], self._guard)
        if closing is None:
            raise NotTrainable(
                "no_end_of_turn",
                "the template writes no special token after a reply, so the model would never learn to stop",
                got=as_last[:40] or between[:40],
                fix="add the template's end-of-turn token to the tokenizer's special tokens, or " + REMEDY,
            )
        before_eos, found, _ = closing.partition(self._eos or "\0")
        closing = before_eos + found  # generation stops there, whatever the template writes after it
        leading = min(self._guard.special_spans(closing)[0][0], num_common(as_last, closing))  # the reply's own end
        return Ending(as_last[leading:], closing[leading:], self._guard.special_ids(closing)[-1])


def closing_of(as_last: str, between: str, opening: str, guard: Guard) -> str | None:
    """Return what ends a reply, or None if no special token follows it.

    `as_last` follows it in the last turn, `between` stands before the next turn's text, `opening` before the first's.
    """
    both = as_last[: num_common(as_last, between)] if between else ""
    if ends := special_ends(both, guard):
        return both[: ends[-1]]
    if ends := special_ends(as_last, guard):  # the last turn ends in its own way
        return as_last[: first_run(as_last, guard)]
    if not (ends := special_ends(between, guard)):
        return None
    num_opening = num_common(between[::-1], opening[::-1])
    ending = between[: len(between) - num_opening]
    if own := special_ends(ending, guard):
        return ending[: own[-1]]
    return between[: ends[0]]


def special_ends(text: str, guard: Guard) -> list[int]:
    """Return where the special tokens that `text` spells end."""
    return [end for _, end in guard.special_spans(text)]


def first_run(text: str, guard: Guard) -> int:
    """Return where the first special tokens end that follow each other with nothing between them."""
    spans = guard.special_spans(text)
    end = spans[0][1]
    for start, next_end in spans[1:]:
        if start != end:
            break
        end = next_end
    return end
