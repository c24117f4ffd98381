"""What a chat template makes of a conversation, asked directly of transformers: nothing of deft's rendering is used.

In: a tokenizer with a template, and messages. Out: text, or `Unbuildable`. What a template wants to be given (reasoning
under which key, arguments as an object or as text, content as a list of parts) is found by trying.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import Any
from unittest.mock import patch

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from deft.types import Message, ToolCall, split_reasoning

DAY = date(2024, 7, 26)
"""The day that deft prints in place of today."""
KEYS = ("reasoning_content", "reasoning", "thinking")
TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)
"""What stands around reasoning."""
MARK = "Zqmark"
THOUGHT = "Zqthought"


class Frozen:
    """Stands in for `datetime` where transformers asks it for today."""

    @staticmethod
    def now() -> date:
        """Return the day that deft prints."""
        return DAY


class Unbuildable(Exception):
    """Why no exact row can be built, in a few words."""


@dataclass(frozen=True)
class Way:
    """How a template is given what it wants."""

    keys: tuple[str, ...] = KEYS
    inside: bool = False
    parts: bool = False
    arguments_as_text: bool = False
    empty: str | None = ""
    system: bool = True


class Renders:
    """Renders messages with a tokenizer's template, in the way that it turned out to want."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = dict(template_kwargs)
        self.template = str(tokenizer.chat_template)
        if "date_string" in self.template:
            self._options.setdefault("date_string", DAY.strftime("%d %b %Y"))
        self._texts: dict[str, str | Unbuildable] = {}

    def text(self, messages: Sequence[Message], tools: Sequence[Any] = (), *, prompt: bool) -> str:
        """Return the text of the messages, with the prompt for a reply if `prompt`.

        Raises:
            Unbuildable: if the template raises an error.
        """
        return self._asked(self.given(messages), tools, prompt=prompt)

    def given(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return messages as the template is given them."""
        return [self._given(message, self.way) for message in messages]

    def prepared(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages as every format sees them.

        White space at the ends goes; thinking at the head of a reply is its reasoning; and a system message goes in
        front of the first user message where the template has no place for it.
        """
        found = []
        for message in messages:
            reasoning, content = message.reasoning, message.content
            if message.role == "assistant" and not reasoning:
                reasoning, content = split_reasoning(content)
            found.append(replace(message, content=content.strip(), reasoning=reasoning.strip()))
        if found[0].role == "system" and not self.way.system:
            system, first, *rest = found
            found = [replace(first, content=f"{system.content}\n\n{first.content}"), *rest]
        return found

    @property
    def takes_reasoning(self) -> str:
        """Under which keys the template takes reasoning; "inside" the reply; or "hidden", where it shows none."""
        found = "inside" if self.way.inside else "hidden"
        if self.way.keys:
            asked = [Message(role="user", content="?"), Message(role="assistant", content=MARK, reasoning=THOUGHT)]
            alone = [key for key in KEYS if THOUGHT in self._tried(asked, replace(self.way, keys=(key,)))]
            found = ", ".join(alone or self.way.keys)
        return found

    @cached_property
    def way(self) -> Way:
        """How the template wants things, found by trying."""
        way = Way()
        question = Message(role="user", content=MARK)
        if MARK not in self._tried([question], way):
            way = replace(way, parts=MARK in self._tried([question], replace(way, parts=True)))
        both = [Message(role="system", content=MARK), Message(role="user", content="?")]
        way = replace(way, system=self._tried(both, way, prompt=True).count(MARK) == 1)
        return self._way_of_calls(self._way_of_reasoning(way))

    def _way_of_reasoning(self, way: Way) -> Way:
        asked = [Message(role="user", content="?"), Message(role="assistant", content=MARK, reasoning=THOUGHT)]
        for keys in (KEYS, *((key,) for key in KEYS)):
            text = self._tried(asked, replace(way, keys=keys))
            if THOUGHT in text and MARK in text:
                return replace(way, keys=keys)
        own = any(close in self.template for _, close in TAGS[1:])  # it writes reasoning in its own tags, only at times
        inside = self._tried(asked, replace(way, keys=(), inside=True))
        without = self._tried([asked[0], replace(asked[1], reasoning="")], way)
        has_block = without.partition(MARK)[0].rstrip().endswith("</think>")
        doubled = has_block and inside.count("</think>") > without.count("</think>")
        if THOUGHT in inside and not own and not doubled:
            return replace(way, keys=(), inside=True)
        return replace(way, keys=tuple(key for key in KEYS if key in self.template)[:1])  # shown at times

    def _way_of_calls(self, way: Way) -> Way:
        call = ToolCall(name="get_weather", arguments=f'{{"city": "{MARK}"}}', id="call00000")
        asked = [Message(role="user", content="?"), Message(role="assistant", content="", tool_calls=(call,))]
        asked.append(Message(role="tool", content=THOUGHT, name="get_weather", call_id="call00000"))
        for as_text in (False, True):
            for empty in ("", None):
                tried = replace(way, arguments_as_text=as_text, empty=empty)
                text = self._tried(asked, tried)
                if MARK in text and THOUGHT in text and r"\"city" not in text:
                    return tried
        return way

    def _tried(self, messages: Sequence[Message], way: Way, *, prompt: bool = False) -> str:
        try:
            return self._asked([self._given(message, way) for message in messages], (), prompt=prompt)
        except Unbuildable:
            return ""

    def _given(self, message: Message, way: Way) -> dict[str, Any]:
        """Return a message as transformers takes it."""
        content: Any = message.content
        if message.reasoning and way.inside:
            content = f"<think>\n{message.reasoning}\n</think>\n\n{content}".strip()
        if not content and message.tool_calls:
            content = way.empty
        if way.parts and content:
            content = [{"type": "text", "text": content}]
        given: dict[str, Any] = {"role": message.role, "content": content}
        if message.reasoning:
            given |= dict.fromkeys(way.keys, message.reasoning)
        if message.tool_calls:
            given["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": call.arguments if way.arguments_as_text else json.loads(call.arguments),
                    },
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            given |= {"name": message.name, "tool_call_id": message.call_id}
        return given

    def _asked(self, messages: list[dict[str, Any]], tools: Sequence[Any], *, prompt: bool) -> str:
        key = json.dumps([messages, list(tools), prompt])
        if key not in self._texts:
            try:
                with patch.object(chat_template_utils, "datetime", Frozen):
                    text = self._tokenizer.apply_chat_template(
                        messages,
                        tools=[dict(tool) for tool in tools] or None,
                        tokenize=False,
                        add_generation_prompt=prompt,
                        **self._options,
                    )
                self._texts[key] = str(text)
            except Exception as error:  # a template is a program, and may raise anything
                self._texts[key] = Unbuildable(f"the template raises: {str(error)[:100]}")
        found = self._texts[key]
        if isinstance(found, Unbuildable):
            raise found
        return found
