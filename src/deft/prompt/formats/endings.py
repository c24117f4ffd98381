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
from deft.prompt.formats.rendering import Renderer
from deft.prompt.formats.turns import Turn, num_common
from deft.prompt.formats.wants import PROBE_TOOL
from deft.prompt.guard import Guard
from deft.types import ToolCall

MARK, LATER, EARLIER = "MarkOfReply", "MarkOfLater", "MarkOfEarlier"
"""Letters alone: calls and results may be written as JSON that escapes others."""


NO_END_FIX = "add the template's end-of-turn token to the special tokens, or give the tokenizer another chat template"


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

    def __init__(self, renderer: Renderer, guard: Guard, *, bos: str | None, eos: str | None) -> None:
        self._renderer = renderer
        self._guard = guard
        self._bos = bos or ""
        self._eos = eos or "\0"

    def of_text(self) -> Ending:
        """Return how a reply of text ends.

        Raises:
            NotTrainable: if the template refuses one exchange, or nothing special ever follows a reply.
        """
        turns = [Turn("user", EARLIER), Turn("assistant", MARK)]
        return self._learned(turns, Turn("user", LATER), tools=())

    def of_calls(self, of_text: Ending) -> Ending:
        """Return how a reply that calls a tool ends: as one of text does, if the template ends both alike.

        Raises:
            NotTrainable: as `of_text` does.
        """
        call = ToolCall(name="markfunction", arguments=f'{{"key": "{MARK}"}}', id="call00000")
        turns = [Turn("user", EARLIER), Turn("assistant", "", calls=(call,))]
        result = Turn("tool", LATER, name="markfunction", call_id="call00000")
        tools = [PROBE_TOOL] if self._renderer.wants.shows_tools else []
        if of_text.written.strip() and self._renderer.text(turns, tools, for_reply=False).endswith(of_text.written):
            return of_text
        return self._learned(turns, result, tools=tools)

    def _learned(self, turns: Sequence[Turn], later: Turn, *, tools: Tools) -> Ending:
        """Return how the last of `turns`, whose text is `MARK`, ends; `later` is a turn that may follow it."""
        as_last = self._renderer.text(turns, tools, for_reply=False).rpartition(MARK)[2]
        try:
            text = self._renderer.text([*turns, later], tools, for_reply=False)
        except NotTrainable:  # some templates know one exchange only
            text = ""
        between = text.rpartition(MARK)[2].partition(LATER)[0] if LATER in text else ""
        closing = closing_of(as_last, between, text.partition(EARLIER)[0], guard=self._guard, bos=self._bos)
        if closing is None or (not turns[-1].calls and self._guard.has_plain_control(closing)):
            raise NotTrainable(
                "no_end_of_turn",
                "the template writes no special token after a reply, so the model would never learn to stop",
                got=closing or as_last[:40] or between[:40],
                fix=NO_END_FIX,
            )
        before_eos, found, _ = closing.partition(self._eos)
        closing = before_eos + found  # generation stops there, whatever the template writes after it
        stop, _ = self._guard.special_spans(closing)[-1]
        leading = min(stop, num_common(as_last, closing))  # what leads to the last token is the reply's own
        return Ending(as_last[leading:], closing[leading:], self._guard.special_ids(closing)[-1])


def closing_of(as_last: str, between: str, opening: str, *, guard: Guard, bos: str) -> str | None:
    """Return what ends a reply, or None if no special token follows it.

    `as_last` follows it in the last turn, `between` stands before the next turn's text, `opening` before the first's: a
    token that opens turns ends none.
    """
    num_both = num_common(as_last, between) if between else 0
    if ends := special_ends(as_last[:num_both], guard):
        if num_both < len(as_last.rstrip()):  # it goes on in another way: with a turn of the assistant, perhaps
            opens = next(iter(guard.special_texts(opening.removeprefix(bos))), "\0")
            ends = [end for end in ends if not as_last[:end].endswith(opens)] or ends
        return as_last[: ends[-1]]
    if special_ends(as_last, guard):  # the last turn ends in its own way
        return as_last[: first_run(as_last, guard)]
    before_opening = len(between) - num_common(between[::-1], opening[::-1])
    if ends := special_ends(between[:before_opening], guard):
        return between[: ends[-1]]
    if ends := special_ends(between, guard):
        return between[: ends[0]]
    return None


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
