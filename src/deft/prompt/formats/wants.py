"""What a chat template wants to be given, found by trying: under which key reasoning, calls as objects or as text.

In: a tokenizer and its template. Out: turns as messages that the template is rendered with, and what it can show.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jinja2

from deft.prompt.formats.calls import SHORT_ID, with_call_ids
from deft.prompt.formats.turns import THINK, Turn, with_reasoning_inside
from deft.types import ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
THOUGHT, SAID = "\ue000Thought\ue001", "\ue000Said\ue001"


class Wants:
    """How one template is given messages."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._kwargs = dict(template_kwargs)
        self._arguments_as_text = False
        self._empty_content: str | None = ""
        self._short_ids = False
        self.shows_names = True
        self._takes_parts = False
        if "?mark" not in self._tried([{"role": "user", "content": "?mark"}]):  # templates of models that see images
            parts = [{"type": "text", "text": "?mark"}]
            self._takes_parts = "?mark" in self._tried([{"role": "user", "content": parts}])

    def given(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """Return turns as the template is given them."""
        return [self._message(turn) for turn in with_call_ids(turns, short=self._short_ids)]

    def _message(self, turn: Turn) -> dict[str, Any]:
        """Return a turn as templates are given it; keys are there only where they say something."""
        if turn.role == "assistant" and turn.reasoning and self.reasoning == INSIDE:
            turn = with_reasoning_inside(turn)
        content = [{"type": "text", "text": turn.content}] if self._takes_parts else turn.content
        message: dict[str, Any] = {"role": turn.role, "content": content}
        if turn.reasoning and self._key:
            message[self._key] = turn.reasoning
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

    # --- found by trying ----------------------------------------------------------------------------------------------

    @cached_property
    def reasoning(self) -> str:
        """How the template is given reasoning: under one of `REASONING_KEYS`; `INSIDE` the content, where it finds it
        or knows nothing of it; or `HIDDEN`, where it does not write it in the last reply, or writes its own block.
        """
        asked, reply = self._message(Turn("user", "?")), self._message(Turn("assistant", SAID))
        for key in REASONING_KEYS:
            text = self._tried([asked, reply | {key: THOUGHT}])
            if THOUGHT in text and SAID in text:
                return key
        if any(close.strip() in self._template for _, close in LAYOUTS if close != THINK[1]):
            return HIDDEN  # it has tags of its own, and writes them only at times
        inside = with_reasoning_inside(Turn("assistant", SAID, THOUGHT))
        plain, text = self._tried([asked, reply]), self._tried([asked, self._message(inside)])
        close = THINK[1].strip()
        has_own = plain.partition(SAID)[0].rstrip().endswith(close)
        is_doubled = has_own and text.count(close) > plain.count(close)
        return INSIDE if inside.content in text and not is_doubled else HIDDEN

    @cached_property
    def _key(self) -> str:
        """The key that reasoning is given under; a template that hides it may still show it at times."""
        if self.reasoning != HIDDEN:
            return self.reasoning if self.reasoning in REASONING_KEYS else ""
        return next((key for key in REASONING_KEYS if key in self._template), "")

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template writes the definitions of tools into the prompt."""
        asked = [self._message(Turn("user", "?"))]
        return "markfunction" in self._tried(asked, tools=[PROBE_TOOL], add_generation_prompt=True)

    @cached_property
    def shows_calls(self) -> bool:
        """Whether the template writes calls and their results; finds in which form it wants them.

        Arguments are an object, or their JSON text; a message without content has empty content, or none.
        """
        given: dict[str, Any] = {"tools": [PROBE_TOOL]} if self.shows_tools else {}
        for self._arguments_as_text in (False, True):
            for self._empty_content in ("", None):
                text = self._tried(self._probe_of_calls(SHORT_ID.format(number=1)), **given)
                escaped = r"\"key\"" in text  # JSON text that the template wrote as JSON once more
                if all(part in text for part in ("markfunction", "markvalue", "markresult")) and not escaped:
                    self._short_ids = not self._tried(self._probe_of_calls(LONG_ID), **given)
                    alone = self._tried(self._probe_of_calls(SHORT_ID.format(number=1))[:2])
                    self.shows_names = not alone or "markfunction" in alone
                    return True
        self._arguments_as_text, self._empty_content = False, ""
        return False

    def _probe_of_calls(self, call_id: str) -> list[dict[str, Any]]:
        call = ToolCall(name="markfunction", arguments='{"key": "markvalue"}', id=call_id)
        result = Turn("tool", "markresult", name="markfunction", call_id=call_id)
        return [self._message(turn) for turn in (Turn("user", "?"), Turn("assistant", "", calls=(call,)), result)]

    def _tried(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Return what the template makes of messages; nothing if it refuses them."""
        try:
            text = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, **{**self._kwargs, **options}
            )
        except RENDERING_ERRORS:
            return ""
        assert isinstance(text, str)
        return text
