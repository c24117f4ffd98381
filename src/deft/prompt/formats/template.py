"""Any Jinja chat template, with an exact loss mask whether or not the template marks what the model generates.

In: messages. Out: token ids, and the loss weight of each. A row is built the way it is served: for every reply the ids
of the prompt that inference feeds, then those of the reply, then those that end the turn. Where the prompts of later
replies begin with all that, one sequence carries all replies; where the template writes earlier turns in another way
than it served them, each reply has a sequence of its own. What cannot be shown to be exact is refused with a reason.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from deft.errors import NotTrainable, UserError
from deft.prompt.formats.batches import Batches, Plan, fast_ids
from deft.prompt.formats.bounds import check_template
from deft.prompt.formats.endings import Ending, Endings
from deft.prompt.formats.kinds import Encoded, Tools, TrainReasoning, one_by_one
from deft.prompt.formats.rendering import REMEDY, Renderer, slots_of
from deft.prompt.formats.replies import Served, served
from deft.prompt.formats.turns import PROBE, Turn, masks_reasoning, num_common, taught, turns_of
from deft.prompt.guard import Guard
from deft.types import Message, check_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FROZEN_DATE = date(2024, 7, 26)
"""The day that templates print in place of today (Llama 3's own default), so that a prompt is the same every day."""


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
        self.renderer = Renderer(tokenizer, self.template, self.template_kwargs, self._guard)
        self.has_system_role = self._shows_system()
        try:
            self._endings = Endings(self.renderer, self._guard, bos=tokenizer.bos_token, eos=tokenizer.eos_token)
            self.ending_of_text = self._endings.of_text()
            self.end_of_turn_ids = self._all_ends()
            ends = (*self.end_of_turn_ids, tokenizer.eos_token_id, tokenizer.bos_token_id)
            self.stop_token_ids = tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))
            self.encode_conversation(PROBE[:2])
            self.encode_prompt(PROBE[:3])
        except NotTrainable as error:
            what = f"this chat template cannot be trained on: {error.what} ({error.reason})"
            raise UserError(what, got=error.got, fix=error.fix) from error

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

    # --- prompts ------------------------------------------------------------------------------------------------------

    def render_prompt(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return the text of the prompt that asks for the assistant's next reply."""
        check_conversation(messages, ends_with="user")
        return self.renderer.text(self._turns(messages, tools), tools, for_reply=True)

    def encode_prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """Return the ids up to where the assistant's next reply begins.

        Raises:
            NotTrainable: if the template refuses the messages, or a text cannot be kept from spelling control tokens.
        """
        check_conversation(messages, ends_with="user")
        rendered = self.renderer.rendered(self._turns(messages, tools), tools, for_reply=True)
        return self._guard.encode(rendered.text, rendered.in_order).ids

    # --- rows ---------------------------------------------------------------------------------------------------------

    def encode_conversation(
        self, messages: Sequence[Message], tools: Tools = (), *, train_reasoning: TrainReasoning = "last"
    ) -> list[Encoded]:
        """Return the sequences that teach the replies of a conversation, in the order of their last replies.

        Raises:
            NotTrainable: with the reason, if the template does not allow exact ones.
        """
        check_conversation(messages, ends_with="assistant")
        messages = taught(messages)
        turns = self._turns(messages, tools)
        num_merged = len(messages) - len(turns)  # a system message that shares the first turn of the user
        found: list[Encoded] = []
        for place, turn in enumerate(turns):
            if turn.role == "assistant" and turn.weight:
                masked = masks_reasoning(turns, place, train_reasoning)
                reply = self._encode_reply(turns[: place + 1], tools, masked=masked)
                merge_into(found, reply._replace(num_messages=place + 1 + num_merged))
        return found

    def encode_conversations(
        self, conversations: Sequence[tuple[Sequence[Message], Tools]], *, train_reasoning: TrainReasoning = "last"
    ) -> list[list[Encoded] | NotTrainable]:
        """Return what `encode_conversation` returns, or raises, for each conversation; plain ones are done at once."""
        found: list[list[Encoded] | NotTrainable | None] = [None] * len(conversations)
        planned: list[tuple[int, list[Turn], Plan, list[str]]] = []
        for place, (whole, tools) in enumerate(conversations):
            messages = taught(whole)
            turns = turns_of(messages, has_system_role=self.has_system_role)
            masks = any(masks_reasoning(turns, number, train_reasoning) for number in range(len(turns)))
            if not tools and (rendered := self._batches.texts(turns, masks=masks)) is not None:
                planned.append((place, turns, *rendered))
        ids = fast_ids(self._tokenizer, [text for *_, texts in planned for text in texts]) if planned else []
        start = 0
        for place, turns, plan, texts in planned:
            own = ids[start : start + len(texts)]
            start += len(texts)
            messages = taught(conversations[place][0])
            fast = self._batches.encoded(plan, turns, own, num_merged=len(messages) - len(turns))
            if fast is not None and self._batches.is_proven(turns):
                found[place] = fast
            elif fast is not None:
                [slow] = one_by_one(self, [conversations[place]], train_reasoning)
                self._batches.compare(turns, fast, slow)
                found[place] = slow
        left = [conversations[place] for place, one in enumerate(found) if one is None]
        slowly = iter(one_by_one(self, left, train_reasoning))
        return [next(slowly) if one is None else one for one in found]

    def served(self, turns: Sequence[Turn], tools: Tools = ()) -> Served:
        """Return the last of `turns`, a reply, as text behind its prompt."""
        ending = self._ending_of_calls if turns[-1].calls else self.ending_of_text
        return served(self.renderer, turns, tools, ending)

    def _encode_reply(self, turns: Sequence[Turn], tools: Tools, *, masked: bool) -> Encoded:
        """Return the last of `turns` behind its prompt, its reasoning without loss if `masked`."""
        reply = self.served(turns, tools)
        prompt = [content for content in reply.contents if content.start < reply.start]
        prompt_ids = self._guard.encode(reply.text[: reply.start], prompt).ids
        ids, cut = self._guard.encode(reply.text, reply.contents).ids, None
        if ids[: len(prompt_ids)] != prompt_ids:  # a token reaches over the boundary; inference has it cut there
            cut = reply.start
            ids = self._guard.encode(reply.text, reply.contents, cut=cut).ids
        num_silent = len(prompt_ids)
        if masked:
            thought = [content for content in reply.contents if content.start < reply.said]
            num_silent = max(
                num_silent, num_common(ids, self._guard.encode(reply.text[: reply.said], thought, cut=cut).ids)
            )
        check_reply(ids, len(prompt_ids), self.stop_token_ids, self._tokenizer)
        weights = [0.0] * num_silent + [turns[-1].weight] * (len(ids) - num_silent)
        return Encoded(ids, weights, len(turns))

    def _turns(self, messages: Sequence[Message], tools: Tools) -> list[Turn]:
        turns = turns_of(messages, has_system_role=self.has_system_role)
        has_calls = any(turn.calls or turn.role == "tool" for turn in turns)
        if (tools and not self.renderer.wants.shows_tools) or (has_calls and not self.renderer.wants.shows_calls):
            what = "the chat template does not write " + ("tool calls and results" if has_calls else "tools")
            fix = "take rows with tools out, or use a model whose chat template writes them"
            raise NotTrainable("no_tool_support", what, fix=fix)
        return turns

    # --- found by trying ----------------------------------------------------------------------------------------------

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self.renderer, self.ending_of_text, tokenizer=self._tokenizer, guard=self._guard)

    @cached_property
    def _ending_of_calls(self) -> Ending:
        return self._endings.of_calls(self.ending_of_text)

    def _all_ends(self) -> tuple[int, ...]:
        """Return the ids that end a turn: of text, and of calls where the template writes them."""
        ends = [self.ending_of_text.stop_id]
        if self.renderer.wants.shows_calls:
            with suppress(NotTrainable):
                ends.append(self._ending_of_calls.stop_id)
        return tuple(dict.fromkeys(ends))

    def _shows_system(self) -> bool:
        """Say whether the template has a place for a system message, by trying one."""
        turns = [Turn("system", "system"), Turn("user", "user")]
        try:
            self.renderer.skeleton(turns, (), slots_of(turns), for_reply=True)
        except NotTrainable:
            return False
        return True


def merge_into(sequences: list[Encoded], reply: Encoded) -> None:
    """Add a reply behind its prompt to the sequences of the replies before it.

    Where it begins with all that one of them has, prompt, reply and end, it takes that one's place and its weights.
    """
    for place, earlier in enumerate(sequences):
        if reply.ids[: len(earlier.ids)] == earlier.ids:
            weights = [*earlier.weights, *reply.weights[len(earlier.ids) :]]
            sequences[place] = reply._replace(weights=weights)
            return
    sequences.append(reply)


def check_reply(
    ids: Sequence[int], start: int, stop_ids: Collection[int], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Check that no token within a reply, which begins at `start`, would end its generation.

    Raises:
        NotTrainable: `stop_token_in_reply`.
    """
    early = next((token_id for token_id in ids[start:-1] if token_id in stop_ids), None)
    if early is not None:
        name = tokenizer.convert_ids_to_tokens(early)
        what = "a reply holds a token that ends it, so generation would stop there"
        raise NotTrainable("stop_token_in_reply", what, got=name, fix="take that token out of the reply")


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
