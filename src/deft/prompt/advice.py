"""What a user should know of a chat template before training: where it asks for thinking that rows lack, and where its
own marks would train other tokens.

In: a chat format, and rows. Out: sentences.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from deft.errors import NotTrainable, UserError
from deft.language.catalogue import worded
from deft.prompt.formats.kinds import ChatFormat
from deft.prompt.formats.replies import BEGINS_WITH_THINKING
from deft.prompt.formats.template import TemplateFormat
from deft.prompt.formats.turns import PROBE, turns_of
from deft.prompt.guard import decode_exactly
from deft.prompt.paint import CLOSE, OPEN
from deft.types import Example, split_reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WITHOUT_THINKING = ({"enable_thinking": False}, {"thinking": False})
"""What templates are given where no thinking is wanted."""
MARKS = re.compile(r"\{%-?\s*generation\b")


def notes(chat_format: ChatFormat, tokenizer: "PreTrainedTokenizerBase", examples: Iterable[Example]) -> Iterator[str]:
    """Yield what is to be said of a chat format and rows."""
    if isinstance(chat_format, TemplateFormat):
        yield from without_reasoning(chat_format, tokenizer, examples)
        yield from other_marks(chat_format, tokenizer)


def without_reasoning(
    chat_format: TemplateFormat, tokenizer: "PreTrainedTokenizerBase", examples: Iterable[Example]
) -> Iterator[str]:
    """Say how many rows teach a thinking model to think nothing, and which `template_kwargs` ask it for no thinking."""
    [row] = chat_format.encode_conversation(PROBE[:2])
    reply = decode_exactly(tokenizer, [token for token, weight in zip(row.ids, row.weights, strict=True) if weight])
    block = BEGINS_WITH_THINKING.match(reply)
    if block is None or not block["closed"]:
        return
    last_replies = [example.messages[-1] for example in examples]
    number = sum(not (one.reasoning or split_reasoning(one.content)[0]) for one in last_replies)
    if not number:
        return
    what = worded(
        "{number:,} of {rows:,} rows end in a reply without reasoning, and the chat template lets the model think: "
        "they teach it to think nothing ({block})",
        number=number,
        rows=len(last_replies),
        block=json.dumps(block.group(), ensure_ascii=False),
    )
    for kwargs in WITHOUT_THINKING:
        if shorter_reply(chat_format, tokenizer, kwargs):
            asks = worded("to ask for no thinking instead: --template-kwargs '{kwargs}'", kwargs=json.dumps(kwargs))
            yield worded("; ").join((what, asks))
            return
    yield what


def shorter_reply(chat_format: TemplateFormat, tokenizer: "PreTrainedTokenizerBase", kwargs: dict[str, bool]) -> bool:
    """Say whether with these `template_kwargs` the model has less to write for the same reply."""
    try:
        other = TemplateFormat(tokenizer, chat_format.template, chat_format.template_kwargs | kwargs)
        now, then = (each.encode_conversation(PROBE[:2])[0].weights for each in (chat_format, other))
    except (NotTrainable, UserError):
        return False
    return sum(then) < sum(now)


def other_marks(chat_format: TemplateFormat, tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Say where the `{% generation %}` marks of a template, if it has any, would train other tokens; paint both."""
    if MARKS.search(chat_format.template) is None:
        return
    messages = chat_format.renderer.wants.given(turns_of(PROBE[:2], has_system_role=True))
    marked: Any = tokenizer.apply_chat_template(
        messages,
        chat_template=chat_format.template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **chat_format.template_kwargs,
    )
    theirs = painted(tokenizer, marked["input_ids"], marked["assistant_masks"])
    [row] = chat_format.encode_conversation(PROBE[:2])
    ours = painted(tokenizer, row.ids, row.weights)
    if theirs != ours:
        what = (
            "the generation marks of the chat template would train {theirs}; deft trains {ours}: what the model has to "
            "write after the served prompt, up to the token that it stops at"
        )
        yield worded(what, theirs=json.dumps(theirs, ensure_ascii=False), ours=json.dumps(ours, ensure_ascii=False))


def painted(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], weights: Sequence[float]) -> str:
    """Return the text of ids, what carries loss between ⟦ and ⟧."""
    parts = []
    for trained, run in groupby(zip(ids, weights, strict=True), key=lambda pair: pair[1] > 0):
        text = decode_exactly(tokenizer, [token for token, _ in run])
        parts.append(f"{OPEN}{text}{CLOSE}" if trained else text)
    return "".join(parts)
