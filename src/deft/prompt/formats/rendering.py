"""What a chat template makes of turns: text, and where in it each text that a message brought in stands.

In: turns and tools. Out: `Rendered`. The places are found by rendering once more with marks in place of the texts, and
proven by putting the texts back. What the template wants to be given (under which key reasoning, calls as objects or
as text) is found by trying.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jinja2

from deft.errors import NotTrainable
from deft.prompt.formats.calls import check_calls_shown, typed_json, with_call_ids
from deft.prompt.formats.kinds import Tools
from deft.prompt.formats.turns import THINK, Turn, turns_of, with_reasoning_inside
from deft.prompt.guard import Content, Guard
from deft.types import Message, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEDY = "take the row out, or give the tokenizer another chat template (a newer revision of the model may have one)"
RENDERING_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
INSIDE, HIDDEN = "inside", "hidden"
LONG_ID = "call_of_a_function"
LAYOUTS = (
    THINK,
    ("<|channel>thought\n", "\n<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<mm:think>\n", "\n</mm:think>\n\n"),
    ("<longcat_think>\n", "\n</longcat_think>\n"),
    ("<thought>\n", "\n</thought>\n"),
    ("<thinking>\n", "\n</thinking>\n"),
    ("<reasoning>\n", "\n</reasoning>\n"),
)
"""What stands around reasoning, in those templates that do not write it themselves where it is to be trained."""

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
        self._arguments_as_text = False
        self._empty_content: str | None = ""
        self._short_ids = False
        self._takes_parts = False
        if "?mark" not in self._tried([{"role": "user", "content": "?mark"}]):  # templates of models that see images
            parts = [{"type": "text", "text": "?mark"}]
            self._takes_parts = "?mark" in self._tried([{"role": "user", "content": parts}])

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
                [self._message(turn) for turn in with_call_ids(turns, short=self._short_ids)],
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

    def as_given(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return plain messages as the template is given them."""
        return [self._message(turn) for turn in turns_of(messages, has_system_role=True)]

    def _message(self, turn: Turn) -> dict[str, Any]:
        """Return a turn as templates are given it; keys are there only where they say something."""
        if turn.role == "assistant" and turn.reasoning and self.reasoning == INSIDE:
            turn = with_reasoning_inside(turn)
        content = [{"type": "text", "text": turn.content}] if self._takes_parts else turn.content
        message: dict[str, Any] = {"role": turn.role, "content": content}
        if turn.reasoning and self.reasoning in REASONING_KEYS:
            message[self.reasoning] = turn.reasoning
        if turn.calls:
            message["tool_calls"] = [self._call(call) for call in turn.calls]
            message["content"] = content if turn.content else self._empty_content
        if turn.role == "tool":
            message |= {"name": turn.name} if turn.name else {}
            message |= {"tool_call_id": turn.call_id} if turn.call_id else {}
        return message

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = call.arguments if self._arguments_as_text else json.loads(call.arguments)
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

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
            check_calls_shown(turns if for_reply else [], text)
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

    def _check_typed(self, turns: Sequence[Turn], tools: Tools) -> None:
        """Check that tools and calls, whose places in the text are not known, spell no special token."""
        written = self._guard.special_texts(typed_json(turns, tools))
        if written:
            what = "a tool, a call or a result contains a special token"
            raise NotTrainable("control_token_in_text", what, got=" ".join(written), fix="take it out of the row")

    # --- what the template can show -----------------------------------------------------------------------------------

    @cached_property
    def reasoning(self) -> str:
        """How the template is given reasoning: under one of `REASONING_KEYS`; `INSIDE` the content, where it finds it
        or knows nothing of it; or not at all (`HIDDEN`), where it removes it even from the last reply.
        """
        thought, said = mark(Slot(1, "reasoning")), mark(Slot(1, "content"))
        asked, reply = self._message(Turn("user", "?")), self._message(Turn("assistant", said))
        for key in REASONING_KEYS:
            text = self._tried([asked, reply | {key: thought}])
            if thought in text and said in text:
                return key
        if any(close.strip() in self.template for _, close in LAYOUTS if close != THINK[1]):
            return HIDDEN  # it has tags of its own, and writes them only at times
        inside = with_reasoning_inside(Turn("assistant", said, thought))
        return INSIDE if inside.content in self._tried([asked, self._message(inside)]) else HIDDEN

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template writes the definitions of tools into the prompt."""
        return "markfunction" in self._tried(
            [{"role": "user", "content": "?"}], tools=[PROBE_TOOL], add_generation_prompt=True
        )

    @cached_property
    def shows_calls(self) -> bool:
        """Whether the template writes calls and their results; finds in which form it wants them.

        Arguments are an object, or their JSON text; a message without content has empty content, or none.
        """
        turns = [
            Turn("user", "?"),
            Turn(
                "assistant",
                "",
                calls=(ToolCall(name="markfunction", arguments='{"key": "markvalue"}', id="call00001"),),
            ),
            Turn("tool", "markresult", name="markfunction", call_id="call00001"),
        ]
        given: dict[str, Any] = {"tools": [PROBE_TOOL]} if self.shows_tools else {}
        for self._arguments_as_text in (False, True):
            for self._empty_content in ("", None):
                text = self._tried([self._message(turn) for turn in turns], **given)
                escaped = r"\"key\"" in text  # JSON text that the template wrote as JSON once more
                if all(part in text for part in ("markfunction", "markvalue", "markresult")) and not escaped:
                    long = [turn._replace(call_id=turn.call_id and LONG_ID) for turn in turns]
                    long[1] = long[1]._replace(calls=(turns[1].calls[0].with_id(LONG_ID),))
                    self._short_ids = not self._tried([self._message(turn) for turn in long], **given)
                    return True
        self._arguments_as_text, self._empty_content = False, ""
        return False

    def _tried(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Return what the template makes of messages; nothing if it refuses them."""
        try:
            text = self._tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, **{**self._kwargs, **options}
            )
        except RENDERING_ERRORS:
            return ""
        assert isinstance(text, str)
        return text


PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "markfunction",
        "description": "?",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string", "description": "?"}},
            "required": ["key"],
        },
    },
}


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
