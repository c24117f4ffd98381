"""One reply as it is served: the prompt that inference feeds, what the model has to write after it, and how that ends.

In: the turns up to and with the reply. Out: a `Served` reply, which is text and places in it; `template` makes ids of
it. The reply is what the template writes for it as the last turn. Where the prompt that asks for it ends otherwise than
the turn begins (an empty thinking block that history lacks, an opened one), the prompt counts: it is what is served.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from deft.errors import NotTrainable
from deft.prompt.formats.endings import Ending
from deft.prompt.formats.kinds import Tools
from deft.prompt.formats.rendering import REMEDY, Rendered, Renderer, Slot, mark, marked, rewrites
from deft.prompt.formats.turns import THINK, Turn
from deft.prompt.formats.wants import INSIDE, LAYOUTS
from deft.prompt.guard import Content

OPENING, CLOSING = ("|".join(re.escape(tags[part].strip()) for tags in LAYOUTS) for part in (0, 1))
ENDS_WITH_THINKING = re.compile(rf"(?P<opened>(?:{OPENING})\s*)?(?P<closed>(?:{CLOSING})\s*)?\Z")
BEGINS_WITH_THINKING = re.compile(rf"\s*(?P<opened>(?:{OPENING})\s*)?(?P<closed>(?:{CLOSING})\s*)?")
CLOSE_OF = {opening.strip(): close.strip() for opening, close in LAYOUTS}


class Served(NamedTuple):
    """A reply behind its prompt, `text[:start]`; all of the rest is what the model has to write.

    `contents` are the texts of the row in it; `said` is where the reply's text begins that is not reasoning.
    """

    text: str
    start: int
    said: int
    contents: list[Content]


class Ask(NamedTuple):
    """A reply to be built: the turns up to and with it, the prompt for it, and all turns with it as the last."""

    renderer: Renderer
    turns: Sequence[Turn]
    tools: Tools
    prompt: Rendered
    whole: Rendered

    @property
    def reply(self) -> int:
        """The place of the reply among the turns."""
        return len(self.turns) - 1

    @property
    def turn(self) -> Turn:
        """The reply."""
        return self.turns[-1]


def served(renderer: Renderer, turns: Sequence[Turn], tools: Tools, ending: Ending) -> Served:
    """Return the last of `turns`, a reply, as it is served.

    Raises:
        NotTrainable: with the reason, if the template does not show what was written, or does not let it follow the
            prompt.
    """
    prompt = renderer.rendered(turns[:-1], tools, for_reply=True)
    whole = renderer.rendered(turns, tools, for_reply=False)
    ask = Ask(renderer, turns, tools, prompt, whole)
    own = own_texts(ask)
    begins = beginning(ask, own)
    others = [content for slot, content in whole.contents.items() if slot.turn != ask.reply]
    if any(begins.place <= one.start < content.start for content in own.values() for one in others):
        raise rewrites("another message stands between the prompt and the reply", whole.text[begins.place :])
    written = whole.text[begins.place :]
    if not written.endswith(ending.written):
        raise no_end(written)
    check_order(ask, begins.place, written, own)
    thought = thinking(ask, begins, written, is_shown="reasoning" in own)
    text = prompt.text + thought.before + thought.text + thought.after
    written = written[thought.num_replaced :]
    shift = len(text) - begins.place - thought.num_replaced
    contents = [Content(one.start + shift, one.end + shift, True) for one in own.values()]
    said = own["content"].start + shift if "content" in own else len(text)
    if thought.text:
        start = len(prompt.text) + len(thought.before)
        contents.append(Content(start, start + len(thought.text), True))
    elif "reasoning" in own and "content" not in own:
        said = own["reasoning"].end + shift
    text += written[: len(written) - len(ending.written)] + ending.closing
    return Served(text=text, start=len(prompt.text), said=said, contents=sorted([*prompt.contents.values(), *contents]))


def own_texts(ask: Ask) -> dict[str, Content]:
    """Return where the content and the reasoning of the reply stand.

    Raises:
        NotTrainable: `template_rewrites_reply`, if the content is not shown as it is.
    """
    own: dict[str, Content] = {slot.part: at for slot, at in ask.whole.contents.items() if slot.turn == ask.reply}
    if ask.turn.content and "content" not in own:
        raise NotTrainable(
            "template_rewrites_reply",
            "the template does not show a reply as it is, so what is trained would not be what was written",
            got=ask.turn.content,
            fix="write the reply as the template does (thinking belongs in front of it, or in `reasoning_content`)",
        )
    return own


def check_order(ask: Ask, place: int, written: str, own: dict[str, Content]) -> None:
    """Check that `written`, which begins at `place`, shows the calls of the reply, and none before its texts.

    Raises:
        NotTrainable: `template_hides_content` or `template_rewrites_reply`.
    """
    ask.renderer.check_calls([ask.turn], written)
    *earlier, last = sorted(own.values()) or [Content(place, place, True)]
    before = written[: last.start - place]
    for text in earlier:
        before = before.replace(written[text.start - place : text.end - place], "", 1)
    if any(call.name in before for call in ask.turn.calls):
        what = "the template writes a call before the text or the thinking that led to it"
        fix = f"take the text and the reasoning beside calls out, {REMEDY}"
        raise NotTrainable("template_rewrites_reply", what, got=written, fix=fix)


class Beginning(NamedTuple):
    """Where in `whole` that begins, at `place`, which follows the prompt.

    `closes` is what the turn has to close its thinking with, before `place`, where the prompt has only opened it.
    """

    place: int
    closes: str = ""


def beginning(ask: Ask, own: dict[str, Content]) -> Beginning:
    """Return where the reply begins behind the prompt.

    Thinking blocks count for nothing here: some prompts open or close one that the turn lacks, or has in another way.

    Raises:
        NotTrainable: `template_rewrites_history`, if the turn begins in another way than the prompt for it.
    """
    if ask.whole.text.startswith(ask.prompt.text):
        return Beginning(len(ask.prompt.text))
    asks = after_last_text(ask, for_reply=True)
    turn = after_last_text(ask, for_reply=False)
    begins = len(ask.whole.text) - len(turn)
    lead = turn[: min((content.start for content in own.values()), default=len(ask.whole.text)) - begins]
    ends = ENDS_WITH_THINKING.search(asks)
    base = asks[: ends.start()] if ends else asks
    place = aligned(base, lead)
    if base != asks and place is not None:
        thought = BEGINS_WITH_THINKING.match(lead, place)
        assert thought is not None  # it matches nothing as well
        return Beginning(begins + thought.end(), thought["closed"] or "")
    place = len(lead) if asks.startswith(lead) else aligned(asks, lead)
    if place is not None:
        return Beginning(begins + place)
    raise NotTrainable(
        "template_rewrites_history",
        "the prompt that the template writes for a reply is not how the turn with the reply begins",
        got=f"the prompt ends with {asks[-80:]!r}, the turn begins with {turn[:80]!r}",
        fix="try other --template-kwargs (such as enable_thinking), " + REMEDY,
    )


def aligned(asks: str, lead: str) -> int | None:
    """Return where in `lead` that ends which `asks` says; None if `lead` does not begin with it.

    White space within counts for nothing: some templates lay out a prompt in another way than a turn.
    """
    if lead.startswith(asks):
        return len(asks)
    place = 0
    for character in "".join(asks.split()):
        while place < len(lead) and lead[place].isspace():
            place += 1
        if place == len(lead) or lead[place] != character:
            return None
        place += 1
    if asks == asks.rstrip():
        return place
    rest = lead[place:]
    return len(lead) - len(rest.lstrip()) if not rest or rest[0].isspace() else None


def after_last_text(ask: Ask, *, for_reply: bool) -> str:
    """Return what stands behind the text of the turn before the reply, in the prompt or in all turns.

    Raises:
        NotTrainable: `template_rewrites_content`, if that cannot be told.
    """
    rendered, turns = (ask.prompt, ask.turns[:-1]) if for_reply else (ask.whole, ask.turns)
    slot = Slot(ask.reply - 1, "content")
    if slot in rendered.contents:
        return rendered.text[rendered.contents[slot].end :]
    behind = ask.renderer.text(marked(turns, [slot]), ask.tools, for_reply=for_reply).rpartition(mark(slot))[2]
    if not rendered.text.endswith(behind):
        raise rewrites("the template does not show the messages as they are", rendered.text)
    return behind


class Thought(NamedTuple):
    """What the model has to write of a thinking block that `whole` lacks: tags around the reasoning, if any.

    It takes the place of the first `num_replaced` characters that the template writes: of an empty block.
    """

    before: str = ""
    text: str = ""
    after: str = ""
    num_replaced: int = 0


def thinking(ask: Ask, begins: Beginning, written: str, *, is_shown: bool) -> Thought:
    """Return the part of the thinking block that stands between a prompt and what the template writes for a reply.

    Raises:
        NotTrainable: `reasoning_not_served`, if the row has reasoning and the prompt leaves no room for it.
    """
    prompt, reasoning = ask.prompt.text, ask.turn.reasoning
    typed = ask.prompt.contents.get(Slot(ask.reply - 1, "content"))
    ends = ENDS_WITH_THINKING.search(prompt, typed.end if typed else 0)  # what the user typed opens no thinking
    opened, closed = (ends["opened"], ends["closed"]) if ends else (None, None)
    follows = ask.whole.text.startswith(prompt)
    if reasoning and closed and not (is_shown and follows):
        raise NotTrainable(
            "reasoning_not_served",
            "the prompt that the template writes closes the thinking, and the row has reasoning",
            got=prompt[-80:],
            fix="--template-kwargs '{\"enable_thinking\": true}' (the name may differ), or take the reasoning out",
        )
    if opened and not closed:
        closes = begins.closes or closing_tag(opened)
        closes_itself = written.lstrip().startswith(CLOSE_OF[opened.strip()])
        if reasoning and not is_shown:
            return Thought(text=reasoning, after="" if closes_itself else closes)
        return Thought(after="" if reasoning or follows or closes_itself else closes)
    if reasoning and not is_shown and ask.renderer.wants.reasoning == INSIDE:
        what = "the template writes reasoning as a part of the reply, and does not write it here"
        raise NotTrainable("template_hides_content", what, got=written, fix=f"take the reasoning out, {REMEDY}")
    if reasoning and not is_shown:
        empty = BEGINS_WITH_THINKING.match(written)
        if empty is None or not (empty["opened"] and empty["closed"]):
            before, after = tags_of(ask.renderer.template)
            return Thought(before, reasoning, after)
        line_break = "\n" if "\n" in empty["opened"] else ""  # the template's empty block is filled in its own layout
        before = written[: empty.start("opened")] + empty["opened"].rstrip() + line_break
        return Thought(before, reasoning, line_break + empty["closed"], empty.end())
    return Thought()


def closing_tag(opened: str) -> str:
    """Return what closes thinking, in the layout in which it was opened: on a line of its own, or not."""
    close = CLOSE_OF[opened.strip()]
    return f"\n{close}\n\n" if opened.endswith("\n") else close


def tags_of(template: str) -> tuple[str, str]:
    """Return what stands around reasoning that a template does not write itself: the tags that it names."""
    return next(((opening, close) for opening, close in LAYOUTS if close.strip() in template), THINK)


def no_end(written: str) -> NotTrainable:
    """Return the refusal of a reply that ends in another way than the template's replies do."""
    return NotTrainable(
        "no_end_of_turn",
        "the template ends this reply in another way than replies before a next turn, so its end cannot be told",
        got=written[-40:],
        fix="shorten the conversation to this reply, " + REMEDY,
    )
