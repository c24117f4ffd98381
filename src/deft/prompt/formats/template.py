"""Any Jinja chat template, with an exact loss mask whether or not the template marks what the model generates.

In: turns. Out: token ids, and for each token whether it carries loss. The mask is found by rendering, never guessed:
the prompt of a reply is what inference would feed at that point, so the reply is what stands behind it, up to and with
the token that ends the turn. What cannot be shown to be exact is refused with a reason.
"""

import re
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jinja2

from deft.errors import NotTrainable, UserError
from deft.prompt.formats.bounds import check_template
from deft.prompt.formats.turns import PROBE, Turn, turns_of
from deft.prompt.guard import Content, Control, Guard
from deft.types import Message, check_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FROZEN_DATE = date(2024, 7, 26)
"""The day that templates print in place of today (Llama 3's own default), so that a prompt is the same every day."""
REMEDY = "use `chat_format: role_tokens`, or give the tokenizer another chat template"
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


class Skeleton(NamedTuple):
    """A rendered conversation with some contents left out.

    `literals` are the template's own text around the contents, `slots` which turn's content stands between two of them.
    """

    literals: tuple[str, ...]
    slots: tuple[int, ...]

    def filled(self, turns: Sequence[Turn]) -> tuple[str, dict[int, Content]]:
        """Return the text with the contents put in, and where each of them stands."""
        text = self.literals[0]
        contents: dict[int, Content] = {}
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            end = len(text) + len(turns[slot].content)
            contents[slot] = Content(len(text), end, turns[slot].role == "assistant")
            text += turns[slot].content + literal
        return text, contents


class Prompt(NamedTuple):
    """What asks for a reply, as text and as the ids that inference feeds."""

    text: str
    ids: list[int]


class TemplateFormat:
    """The encoding that a chat template writes.

    Contents are stripped of white space at both ends before rendering. Dates are frozen at `FROZEN_DATE`. A system
    message goes in front of the first user message if the template has no place for it.
    """

    kind = "template"
    trained_as: Mapping[int, int] = {}

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Take `chat_template`, or else the tokenizer's own, and try it on a short conversation.

        Raises:
            UserError: if there is no template, or its replies cannot be told from the rest of the text.
        """
        self._tokenizer = tokenizer
        self.template = freeze_date(find_template(tokenizer, chat_template))
        self.template_kwargs = dict(template_kwargs or {})
        if "date_string" in self.template:
            self.template_kwargs.setdefault("date_string", FROZEN_DATE.strftime("%d %b %Y"))
        check_template(self.template, {**tokenizer.special_tokens_map, **self.template_kwargs})
        self._guard = Guard(tokenizer)
        self._skeletons: dict[tuple[tuple[str, ...], bool], Skeleton] = {}
        self.has_system_role = self._shows_system()
        self.end_of_turn_ids = self._probe_end_of_turn()
        ends = (*self.end_of_turn_ids, tokenizer.eos_token_id, tokenizer.bos_token_id)
        self.stop_token_ids = tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Return the format that `to_dict` described."""
        return cls(tokenizer, stored["template"], stored["template_kwargs"])

    def to_dict(self) -> dict[str, Any]:
        """Return what the format was made from and what it found, as JSON values."""
        return {
            "kind": self.kind,
            "template": self.template,
            "template_kwargs": self.template_kwargs,
            "has_system_role": self.has_system_role,
            "end_of_turn_ids": list(self.end_of_turn_ids),
            "stop_token_ids": list(self.stop_token_ids),
        }

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """Return the text of the prompt that asks for the assistant's next reply."""
        check_conversation(messages, ends_with="user")
        return self._render(self._turns(messages), for_reply=True)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids up to where the assistant's next reply begins.

        Raises:
            NotTrainable: if the template refuses the messages, or a text cannot be kept from spelling control tokens.
        """
        check_conversation(messages, ends_with="user")
        return self._prompt(self._turns(messages)).ids

    def encode_conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the ids of a whole conversation, and which of them carry loss: each reply and its end of turn.

        Raises:
            NotTrainable: with the reason, if the template does not allow an exact mask.
        """
        check_conversation(messages, ends_with="assistant")
        return self._encode_turns(self._turns(messages))

    def _turns(self, messages: Sequence[Message]) -> list[Turn]:
        return turns_of(messages, has_system_role=self.has_system_role)

    def _prompt(self, turns: Sequence[Turn]) -> Prompt:
        text = self._render(turns, for_reply=True)
        contents = self._find_contents(turns, text, for_reply=True)
        return Prompt(text, self._guard.encode(text, sorted(contents.values())).ids)

    def _encode_turns(self, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        text = self._render(turns, for_reply=False)
        contents = self._find_contents(turns, text, for_reply=False)
        replies = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        prompts = {index: self._prompt(turns[:index]) for index in replies}
        for index, prompt in prompts.items():
            check_history(prompt, text)
            if index not in contents:
                contents[index] = rewritten_reply(turns[index], len(prompt.text), text)
        guarded = self._guard.encode(text, sorted(contents.values()))
        trained = [False] * len(guarded.ids)
        for index, prompt in prompts.items():
            check_boundary(prompt, guarded.ids)
            first = len(prompt.ids)
            last = end_of_turn(contents, index, len(prompt.text), text, guarded.controls).place
            trained[first : last + 1] = [True] * (last + 1 - first)
        return guarded.ids, trained

    def _find_contents(self, turns: Sequence[Turn], text: str, *, for_reply: bool) -> dict[int, Content]:
        """Return where each content stands in `text`, proven by putting the contents into the template's skeleton.

        Replies that the template writes in another way (thinking taken out, or set apart) are left out.
        """
        key = (tuple(turn.role for turn in turns), for_reply)
        if key not in self._skeletons:
            self._skeletons[key] = self._skeleton(turns, range(len(turns)), for_reply=for_reply)
        filled, contents = self._skeletons[key].filled(turns)
        if filled == text:
            return contents
        typed = [index for index, turn in enumerate(turns) if turn.role != "assistant"]
        filled, contents = self._skeleton(turns, typed, for_reply=for_reply).filled(turns)
        if filled != text:
            raise rewrites("the template does not show the messages as they are", text)
        for index in range(len(turns)):
            if index not in contents and (placed := self._placed_alone(turns, index, text, for_reply=for_reply)):
                contents[index] = placed
        self._check_no_new_specials(self._skeletons[key], text, contents)
        return contents

    def _placed_alone(self, turns: Sequence[Turn], reply: int, text: str, *, for_reply: bool) -> Content | None:
        """Return where one reply stands, all other contents being as they are; None if it is not shown as it is."""
        try:
            filled, contents = self._skeleton(turns, [reply], for_reply=for_reply).filled(turns)
        except NotTrainable:
            return None
        return contents[reply] if filled == text else None

    def _check_no_new_specials(self, skeleton: Skeleton, text: str, contents: Mapping[int, Content]) -> None:
        """Check that no rewritten reply brought a special token, which the guard would take for the template's."""
        own = list(text)
        for content in contents.values():
            own[content.start : content.end] = "\0" * (content.end - content.start)
        written = self._guard.special_texts("".join(own))
        if written != self._guard.special_texts("\0".join(skeleton.literals)):
            raise NotTrainable(
                "control_token_in_text",
                "a reply that the template rewrites contains a special token",
                got=" ".join(written),
                fix="take the special token out of the reply",
            )

    def _skeleton(self, turns: Sequence[Turn], slots: Collection[int], *, for_reply: bool) -> Skeleton:
        """Render the turns with a mark in place of the contents of `slots`, and cut the text at the marks."""
        marked = [Turn(turn.role, mark(index)) if index in slots else turn for index, turn in enumerate(turns)]
        text = self._render(marked, for_reply=for_reply)
        for index in slots:
            count = text.count(mark(index))
            if count != 1:
                reason = "template_repeats_content" if count else "template_hides_content"
                what = f"the template shows the {turns[index].role} message {count} times instead of once, as it is"
                raise NotTrainable(reason, what, got=text, fix=REMEDY)
        in_order = sorted(slots, key=lambda index: text.index(mark(index)))
        literals = re.split("|".join(re.escape(mark(index)) for index in slots), text)
        return Skeleton(tuple(literals), tuple(in_order))

    def _render(self, turns: Sequence[Turn], *, for_reply: bool) -> str:
        conversation = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=for_reply,
                **self.template_kwargs,
            )
        except RENDERING_ERRORS as error:
            fault = "the chat template rejects the conversation"
            raise NotTrainable("template_refuses_messages", fault, got=str(error), fix=REMEDY) from error
        assert isinstance(text, str)
        return text

    def _shows_system(self) -> bool:
        """Say whether the template has a place for a system message, by trying one."""
        try:
            self._skeleton([Turn("system", "system"), Turn("user", "user")], range(2), for_reply=True)
        except NotTrainable:
            return False
        return True

    def _probe_end_of_turn(self) -> tuple[int, ...]:
        """Return the ids that end a turn, by encoding one exchange, and two if the template allows it.

        Some templates write other text around the last turn than around earlier ones, and refuse two exchanges.
        """
        try:
            rows = [self.encode_conversation(PROBE[:2])]
            self.encode_prompt(PROBE[:3])
        except NotTrainable as error:
            what = f"this chat template cannot be trained on: {error.what} ({error.reason})"
            raise UserError(what, got=error.got, fix=REMEDY) from error
        with suppress(NotTrainable):
            rows.append(self.encode_conversation(PROBE))
        ends = (ids[place] for ids, trained in rows for place in run_ends(trained))
        return tuple(dict.fromkeys(ends))


def check_history(prompt: Prompt, text: str) -> None:
    """Check that a prompt, as inference would render it, is how the conversation's text begins."""
    if not text.startswith(prompt.text):
        raise NotTrainable(
            "template_rewrites_history",
            "the template writes earlier turns in another way once the conversation goes on",
            got=f"the prompt {prompt.text[-80:]!r} is not a prefix of the conversation's text",
            fix="split the conversation into rows of one exchange, or " + REMEDY,
        )


def check_boundary(prompt: Prompt, ids: Sequence[int]) -> None:
    """Check that a row begins with the very tokens that inference feeds for a prompt."""
    if ids[: len(prompt.ids)] != prompt.ids:
        raise NotTrainable(
            "boundary_token_merges",
            "a token reaches from the prompt into the reply, so inference would feed other tokens than training",
            got=prompt.text[-40:],
            fix=REMEDY,
        )


def rewritten_reply(turn: Turn, start: int, text: str) -> Content:
    """Return where a reply stands that its template takes apart and writes again, as Qwen3's does with thinking."""
    if not text.startswith(turn.content, start):
        raise NotTrainable(
            "template_rewrites_reply",
            "the template does not show a reply as it is, so what is trained would not be what was written",
            got=turn.content,
            fix="write the reply as the template does (thinking belongs in the last turn only)",
        )
    return Content(start, start + len(turn.content), is_reply=True)


def end_of_turn(
    contents: Mapping[int, Content], reply: int, start: int, text: str, controls: Sequence[Control]
) -> Control:
    """Return the special token that ends a reply: the first thing after its content, white space aside.

    Whatever the template writes between the prompt's end (`start`) and the content (`<think></think>` in Qwen3's
    last turn, a space in Mistral's) is part of the reply too: at inference the model itself has to produce it.
    """
    content = contents[reply]
    if content.start < start or any(start <= other.start < content.start for other in contents.values()):
        raise rewrites("another message stands between the prompt and the reply", text[start : content.start])
    following = bisect_left(controls, content.end, key=lambda control: control.start)
    end = controls[following] if following < len(controls) else None
    if end is None or not end.is_special or text[content.end : end.start].strip():
        raise NotTrainable(
            "no_end_of_turn",
            "the template writes no special token after a reply, so the model would never learn to stop",
            got=text[content.end : content.end + 40],
            fix="add the template's end-of-turn token to the tokenizer's special tokens, or " + REMEDY,
        )
    return end


def run_ends(trained: Sequence[bool]) -> list[int]:
    """Return where each run of trained tokens ends: the places of the tokens that end a turn."""
    return [place for place, (now, then) in enumerate(pairwise([*trained, False])) if now and not then]


def mark(index: int) -> str:
    """Return the text that stands for the content of a turn in a skeleton.

    It has letters in both cases, so that a template that changes case is seen, and private-use characters around
    them, so that no text says the same.
    """
    return f"\ue000Turn{index}\ue001"


def rewrites(what: str, text: str) -> NotTrainable:
    """Return the refusal of a conversation whose contents are not found in the rendered text as they were given."""
    return NotTrainable("template_rewrites_content", what, got=text, fix=REMEDY)


def find_template(tokenizer: "PreTrainedTokenizerBase", chat_template: str | None) -> str:
    """Return the template to use: the one given (text, or a name that the tokenizer knows), or the tokenizer's own."""
    try:
        found: object = tokenizer.get_chat_template(chat_template)
    except ValueError as error:
        raise UserError("the tokenizer has no chat template to use", got=str(error), fix=REMEDY) from error
    if not isinstance(found, str):
        raise UserError("the tokenizer's chat template is not text", got=found, fix=REMEDY)
    return found


def freeze_date(template: str) -> str:
    """Write `FROZEN_DATE` in place of each `strftime_now(…)`, so that the prompt does not change with the day."""
    call = re.compile(r"""strftime_now\(\s*(["'])(?P<format>.*?)\1\s*\)""")
    frozen = call.sub(lambda found: f'"{FROZEN_DATE.strftime(found["format"])}"', template)
    if "strftime_now(" in frozen:
        fix = "write the date's format into the call, or use another template"
        raise UserError("the chat template prints today's date in a way that cannot be frozen", fix=fix)
    return frozen
