"""Replies of models that think, as text: what they think stands at the head, between `<think>` and `</think>`.

In: token ids of a prompt and of a reply. Out: text, in one form whatever tags the model's template has, and whether the
prompt or the reply opened the thinking. What is shown folded is split off with `parts_of`.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from deft.prompt.formats.kinds import ChatFormat
from deft.prompt.formats.replies import ENDS_WITH_THINKING
from deft.prompt.formats.wants import LAYOUTS
from deft.prompt.guard import any_of, decode_exactly, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
CHANNELS = (
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    *((opening.strip(), close.strip()) for opening, close in LAYOUTS[1:]),
)
"""Other tags for the same; the first are gpt-oss', whose answer begins with its own."""
TAIL_TOKENS = 16
"""Of a prompt: more than any opening of a thinking block has."""


class Parts(NamedTuple):
    """A reply, whole or still coming in: what was thought, what is said, and whether the thinking goes on."""

    thought: str
    said: str
    is_thinking: bool


class ReadableReplies:
    """Decodes the replies of one model."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", chat_format: ChatFormat) -> None:
        self._tokenizer = tokenizer
        template = str(chat_format.to_dict().get("template", ""))
        self._tags = [tags for tags in CHANNELS if tags[0] in template and tags[1].rpartition("<")[2] in template]
        self._special = re.compile(any_of(special_tokens(tokenizer)))

    def head(self, prompt_ids: Sequence[int]) -> str:
        """Return what stands before a reply because its prompt has opened the thinking already; mostly nothing."""
        ends = ENDS_WITH_THINKING.search(decode_exactly(self._tokenizer, prompt_ids[-TAIL_TOKENS:]))
        return f"{OPEN}\n" if ends and ends["opened"] and not ends["closed"] else ""

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a reply without special tokens, its thinking between `OPEN` and `CLOSE`."""
        if not self._tags:
            text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert isinstance(text, str)
            return text
        text = decode_exactly(self._tokenizer, ids)
        for opening, close in self._tags:
            text = text.replace(close, f"\n{CLOSE}\n\n").replace(opening, f"{OPEN}\n")
        text = text.replace("<|channel|>final<|message|>", "")
        return self._special.sub("", text)


def parts_of(text: str) -> Parts:
    """Return what a reply thinks and says; a block that is not at its head is text."""
    head = text.lstrip()
    if not head.startswith(OPEN):
        return Parts("", "", True) if head and OPEN.startswith(head) else Parts("", text, False)
    thought, closed, said = head.removeprefix(OPEN).partition(CLOSE)
    return Parts(thought.strip(), said.lstrip("\n"), not closed)
