from collections.abc import Callable
from typing import Any

import pytest

from deft.prompt.formats.template import TemplateFormat
from deft.serve.assistant import Assistant
from deft.serve.thoughts import ReadableReplies, parts_of
from deft.testing.tiny import byte_tokenizer
from deft.types import Message

Script = Callable[..., list[list[int]]]
CHATML_TAIL = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content.split('</think>')[-1].strip() }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}" + CHATML_TAIL
)
CHANNELS = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '<|channel|>final<|message|>' ~ m.content ~ '<|im_end|>' }}"
    "{% endfor %}{# <|channel|>analysis<|message|> #}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("七", ("", "七", False)),
        ("<thi", ("", "", True)),
        ("<think>三加", ("三加", "", True)),
        ("<think>\n三加四\n</think>\n\n七。", ("三加四", "七。", False)),
        ("标签是 <think>x</think>", ("", "标签是 <think>x</think>", False)),
        ("", ("", "", False)),
    ],
)
def test_a_reply_is_told_from_what_leads_to_it(text: str, parts: tuple[str, str, bool]) -> None:
    assert parts_of(text) == parts


def test_thinking_that_the_prompt_opened_stands_at_the_head() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = THINKING
    chat_format = TemplateFormat(tokenizer)
    readable = ReadableReplies(tokenizer, chat_format)
    prompt = chat_format.encode_prompt([Message(role="user", content="三加四？")])
    assert readable.head(prompt) == "<think>\n"
    assert readable.head(tokenizer.encode("<think>\n\n</think>\n\n")) == ""
    assert readable.text(tokenizer.encode("七<|im_end|>")) == "七"


def test_channels_are_read_as_thinking() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>"], special_tokens=True)
    tokenizer.chat_template = CHANNELS
    readable = ReadableReplies(tokenizer, TemplateFormat(tokenizer))
    thought = "<|channel|>analysis<|message|>三加四<|end|><|start|>assistant"
    said = "<|channel|>final<|message|>七。<|im_end|>"
    assert parts_of(readable.text(tokenizer.encode(thought + said))) == ("三加四", "七。", False)
    assert parts_of(readable.text(tokenizer.encode(thought))).is_thinking
    assert readable.text(tokenizer.encode(said)) == "七。"


def test_the_page_and_the_terminal_get_reasoning_apart(
    assistant: Assistant, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    from rich.console import Console

    from deft.serve.terminal import TerminalChat
    from deft.serve.web import build_page

    script("<think>\n三加四\n</think>\n\n七。")
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    chat = TerminalChat(assistant, Console(file=output, width=60), {})
    chat.interactive = True
    chat.take("3+4？")
    shown = output.getvalue()
    assert "thinking…" in shown and "七。" in shown and "三加四" not in shown
    assert (chat.messages[-1].content, chat.messages[-1].reasoning) == ("七。", "三加四")
    chat.take("/thought")
    assert "三加四" in output.getvalue()

    bots: list[Any] = [block for block in build_page(assistant).blocks.values() if hasattr(block, "reasoning_tags")]
    assert [bot.reasoning_tags for bot in bots] == [[("<think>", "</think>")]]
