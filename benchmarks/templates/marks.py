"""The second judge: the `{% generation %}` marks that a template has itself, as TRL reads them.

In: a tokenizer with a marked template. Out: how the tokens that carry loss in deft differ from those marked, each kind
of difference once. Templates without marks have nothing to compare.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any
from unittest.mock import patch

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from benchmarks.templates.conversations import KINDS
from benchmarks.templates.render import Frozen, Renders
from benchmarks.templates.served import common_prefix, runs
from deft.errors import NotTrainable
from deft.prompt.formats.template import TemplateFormat

COMPARED = ("one", "two", "system", "reasoning", "call")


def differences(tokenizer: PreTrainedTokenizerBase, renders: Renders, chat_format: TemplateFormat) -> list[str]:
    """Return each kind of difference between deft's mask and the marks; nothing if there are none, or no marks."""
    if "{% generation" not in str(tokenizer.chat_template).replace("{%-", "{%"):
        return []
    found: dict[str, None] = {}
    for case in (case for cases in KINDS.values() for case in cases if case.name in COMPARED):
        try:
            sequences = chat_format.encode_conversation(case.messages, case.tools, train_reasoning="all")
            with patch.object(chat_template_utils, "datetime", Frozen):
                marked: Any = tokenizer.apply_chat_template(
                    renders.given(renders.prepared(case.messages)),
                    tools=[dict(tool) for tool in case.tools] or None,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                )
        except NotTrainable:
            continue
        except Exception as error:  # a template is a program, and may raise anything
            found[f"{case.name}: the marks cannot be read: {str(error)[:80]}"] = None
            continue
        ours = [text for one in sequences for text in texts(tokenizer, one.ids, one.weights)]
        theirs = texts(tokenizer, marked["input_ids"], marked["assistant_masks"])
        for own, other in zip_longest(ours, theirs, fillvalue=""):
            if own != other:
                found[difference(own, other)] = None
    return list(found)


def texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], weights: Sequence[float]) -> list[str]:
    """Return the texts that carry loss."""
    return [str(tokenizer.decode(list(ids[start:end]))) for start, end in runs(weights)]


def difference(ours: str, theirs: str) -> str:
    """Say which text only one of two has, at the beginning and at the end."""
    if not ours or not theirs:
        return f"only {'deft' if ours else 'the mark'} trains a reply: {(ours or theirs)[:60]!r}"
    if ours in theirs or theirs in ours:
        longer, shorter = (theirs, ours) if ours in theirs else (ours, theirs)
        before, _, after = longer.partition(shorter)
        whose = "the mark" if longer is theirs else "deft"
        parts = [f"{part!r} {where}" for part, where in ((before, "before"), (after, "after")) if part]
        return f"only {whose} trains " + " and ".join(parts) + " a reply"
    start = len(common_prefix(ours, theirs))
    return f"deft trains {ours[start:][:60]!r} where the mark has {theirs[start:][:60]!r}"
