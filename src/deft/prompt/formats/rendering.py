"""What a chat template makes of turns: text, and where in it each text that a message brought in stands.

In: turns and tools. Out: `Rendered`. The places are found by rendering once more with marks in place of the texts, and
proven by putting the texts back.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from deft.errors import NotTrainable
from deft.prompt.formats.calls import check_calls_shown, check_tools_shown, typed_json
from deft.prompt.formats.kinds import Tools
from deft.prompt.formats.turns import Turn
from deft.prompt.formats.wants import RENDERING_ERRORS, Wants
from deft.prompt.guard import Content, Guard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEDY = "take the row out, or give the tokenizer another chat template (a newer revision of the model may have one)"
BESIDE = "\ue002Beside\ue003"

Part = Literal["content", "reasoning"]


class Slot(NamedTuple):
    """One text of one turn."""

    turn: int
    part: Part


class Skeleton(NamedTuple):
    """A rendered conversation with some texts left out: `literals` around them, and which stands between two."""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]

    def filled(self, turns: Sequence[Turn]) -> tuple[str, dict[Slot, Content]]:
        """Return the text with the texts of the turns put in, and where each of them stands."""
        length = len(self.literals[0])
        contents: dict[Slot, Content] = {}
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            end = length + len(text_of(turns[slot.turn], slot))
            contents[slot] = Content(length, end, turns[slot.turn].role == "assistant")
            length = end + len(literal)
        return self.filled_text(turns), contents

    def filled_text(self, turns: Sequence[Turn]) -> str:
        """Return the text with the texts of the turns put in."""
        parts = [self.literals[0]]
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            parts += (text_of(turns[slot.turn], slot), literal)
        return "".join(parts)


class Rendered(NamedTuple):
    """A text, and where in it those texts of the turns stand that it shows as they are."""

    text: str
    contents: dict[Slot, Content]

    @property
    def in_order(self) -> list[Content]:
        """The places from left to right."""
        return sorted(self.contents.values())


class Renderer:
    """Renders turns with one template; what it shows and hides is remembered for each pattern of turns."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", template: str, template_kwargs: Mapping[str, Any], guard: Guard
    ) -> None:
        self._tokenizer = tokenizer
        self.template = template
        self._kwargs = dict(template_kwargs)
        self._guard = guard
        self._skeletons: dict[tuple[Any, ...], Skeleton] = {}
        self.wants = Wants(tokenizer, template, template_kwargs)

    # --- texts --------------------------------------------------------------------------------------------------------

    def text(self, turns: Sequence[Turn], tools: Tools = (), *, for_reply: bool) -> str:
        """Return what the template writes for the turns, with the prompt for a reply if `for_reply`.

        Raises:
            NotTrainable: `template_refuses_messages`.
        """
        options: dict[str, Any] = dict(self._kwargs)
        if tools:
            options["tools"] = [dict(tool) for tool in tools]
        try:
            text = self._tokenizer.apply_chat_template(
                self.wants.given(turns),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=for_reply,
                **options,
            )
        except RENDERING_ERRORS as error:
            fault = "the chat template rejects the conversation"
            fix = f"change the row as the template asks, {REMEDY}"
            raise NotTrainable("template_refuses_messages", fault, got=str(error), fix=fix) from error
        assert isinstance(text, str)
        return text

    # --- places -------------------------------------------------------------------------------------------------------

    def rendered(self, turns: Sequence[Turn], tools: Tools = (), *, for_reply: bool) -> Rendered:
        """Return the text of the turns and where each of their texts stands in it.

        Texts of replies that the template writes in another way are left out, as is the reasoning that it drops, and
        what tools say where it is written as JSON. In a prompt (`for_reply`) all other texts have to be there; where
        the last turn is a reply, only that one.

        Raises:
            NotTrainable: if a text is not shown as it is, or brings in control tokens that cannot be told apart.
        """
        text = self.text(turns, tools, for_reply=for_reply)
        key = (
            tuple((turn.role, turn.content == "", turn.reasoning == "", len(turn.calls)) for turn in turns),
            for_reply,
        )
        plain = not (tools or any(turn.calls or turn.role == "tool" for turn in turns))
        skeleton = self._skeletons.get(key) if plain else None
        if skeleton is None:
            skeleton = self.skeleton(turns, tools, slots_of(turns), for_reply=for_reply)
            if plain:
                self._skeletons[key] = skeleton
        filled, contents = skeleton.filled(turns)
        if filled != text:
            contents = self._placed_one_by_one(turns, tools, text, for_reply=for_reply)
            self._check_no_new_specials(skeleton, text, contents)
        if not plain:
            self._check_typed(turns, tools)
            self.check_calls(turns if for_reply else [], text)
            check_tools_shown(tools if for_reply else (), text)
        return Rendered(text, contents)

    def skeleton(self, turns: Sequence[Turn], tools: Tools, slots: Collection[Slot], *, for_reply: bool) -> Skeleton:
        """Render the turns with marks in place of the texts of `slots`, and cut the text at the marks.

        Raises:
            NotTrainable: if the template does not show a text, or shows it twice; it may drop reasoning.
        """
        text = self.text(marked(turns, slots), tools, for_reply=for_reply)
        shown = []
        for slot in slots:
            count = text.count(mark(slot))
            needed = slot.part == "content" and (for_reply or slot.turn == len(turns) - 1)
            if count > 1 or (count == 0 and needed):
                reason = "template_repeats_content" if count else "template_hides_content"
                role = turns[slot.turn].role
                what = f"the template shows the {role} message {count} times instead of once, as it is"
                raise NotTrainable(reason, what, got=text, fix=REMEDY)
            shown += [slot] * count
        return skeleton_of(text, shown)

    def _placed_one_by_one(
        self, turns: Sequence[Turn], tools: Tools, text: str, *, for_reply: bool
    ) -> dict[Slot, Content]:
        """Return where those texts stand that are shown as they are, all others being as they are."""
        found: dict[Slot, Content] = {}
        for slot in slots_of(turns):
            with suppress(NotTrainable):
                filled, contents = self.skeleton(turns, tools, [slot], for_reply=for_reply).filled(turns)
                if filled == text and slot in contents:
                    found[slot] = contents[slot]
                    continue
            if at := self._placed_by_its_side(turns, tools, slot, text, for_reply=for_reply):
                found[slot] = at
                continue
            if for_reply and turns[slot.turn].role not in ("assistant", "tool"):
                raise rewrites("the template does not show the messages as they are", text)
        return found

    def _placed_by_its_side(
        self, turns: Sequence[Turn], tools: Tools, slot: Slot, text: str, *, for_reply: bool
    ) -> Content | None:
        """Return where a text stands that the template looks into (`'/no_think' in …`): a mark beside it tells."""
        own = text_of(turns[slot.turn], slot)
        for before, after in ((BESIDE, ""), ("", BESIDE)):
            changed = with_text(turns, slot, before + own + after)
            with suppress(NotTrainable):
                beside = self.text(changed, tools, for_reply=for_reply)
                start = beside.find(BESIDE) - (len(own) if after else 0)
                if beside.count(BESIDE) == 1 and beside.replace(BESIDE, "") == text and text.startswith(own, start):
                    return Content(start, start + len(own), turns[slot.turn].role == "assistant")
        return None

    def _check_no_new_specials(self, skeleton: Skeleton, text: str, contents: Mapping[Slot, Content]) -> None:
        """Check that no rewritten text brought a special token, which the guard would take for the template's."""
        own = list(text)
        for content in contents.values():
            own[content.start : content.end] = "\0" * (content.end - content.start)
        written = self._guard.special_texts("".join(own))
        if written != self._guard.special_texts("\0".join(skeleton.literals)):
            raise NotTrainable(
                "control_token_in_text",
                "a text that the template rewrites contains a special token",
                got=" ".join(written),
                fix="take the special token out of it",
            )

    def check_calls(self, turns: Sequence[Turn], text: str) -> None:
        """Check that a text shows the calls of some turns.

        Raises:
            NotTrainable: as `check_calls_shown` does.
        """
        check_calls_shown(turns, text, names=self.wants.shows_names)

    def _check_typed(self, turns: Sequence[Turn], tools: Tools) -> None:
        """Check that tools and calls, whose places in the text are not known, spell no special token."""
        written = self._guard.special_texts(typed_json(turns, tools))
        if written:
            what = "a tool, a call or a result contains a special token"
            raise NotTrainable("control_token_in_text", what, got=" ".join(written), fix="take it out of the row")


def skeleton_of(text: str, slots: Collection[Slot]) -> Skeleton:
    """Cut a text at the marks of `slots`, each of which it has once."""
    in_order = sorted(slots, key=lambda slot: text.index(mark(slot)))
    literals = re.split("|".join(re.escape(mark(slot)) for slot in slots), text) if slots else [text]
    return Skeleton(tuple(literals), tuple(in_order))


def text_of(turn: Turn, slot: Slot) -> str:
    """Return the text of a turn that stands in a slot."""
    return turn.content if slot.part == "content" else turn.reasoning


def slots_of(turns: Sequence[Turn]) -> list[Slot]:
    """Return the texts of turns that there are."""
    thoughts = [Slot(place, "reasoning") for place, turn in enumerate(turns) if turn.reasoning]
    return sorted([*thoughts, *(Slot(place, "content") for place, turn in enumerate(turns) if turn.content)])


def marked(turns: Sequence[Turn], slots: Collection[Slot]) -> list[Turn]:
    """Return the turns with marks in place of the texts of `slots`."""
    changed = list(turns)
    for slot in slots:
        changed = with_text(changed, slot, mark(slot))
    return changed


def with_text(turns: Sequence[Turn], slot: Slot, text: str) -> list[Turn]:
    """Return the turns with another text in a slot."""
    turn = turns[slot.turn]
    changed = turn._replace(content=text) if slot.part == "content" else turn._replace(reasoning=text)
    return [changed if place == slot.turn else each for place, each in enumerate(turns)]


def mark(slot: Slot) -> str:
    """Return the text that stands for a text of a turn in a skeleton.

    It has letters in both cases, so that a template that changes case is seen, and private-use characters around
    them, so that no text says the same.
    """
    return f"\ue000{'Turn' if slot.part == 'content' else 'Thought'}{slot.turn}\ue001"


def rewrites(what: str, text: str) -> NotTrainable:
    """Return the refusal of a conversation whose contents are not found in the rendered text as they were given."""
    return NotTrainable("template_rewrites_content", what, got=text, fix=REMEDY)
