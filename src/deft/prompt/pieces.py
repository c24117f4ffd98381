"""The loss mask of a row as text to look at.

In: a token sequence. Out: runs of text, each with or without loss.
"""

from itertools import groupby
from typing import TYPE_CHECKING

from deft.prompt.guard import decode_exactly
from deft.types import IGNORED_LABEL, TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def painted_pieces(sequence: TokenSequence, tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, bool]]:
    """Return the row as runs of (text, carries loss), special tokens shown.

    Each run is what it adds to the text before it, so the runs joined read as the whole row, with its spaces, and a
    character made of several tokens stays whole. Where a run begins inside a character, it is decoded by itself.
    """
    ids = sequence.input_ids.tolist()
    carries_loss = (sequence.labels != IGNORED_LABEL).tolist()
    pieces: list[tuple[str, bool]] = []
    end, before = 0, ""
    for is_trained, run in groupby(carries_loss):
        start, end = end, end + len(list(run))
        text = decode_exactly(tokenizer, ids[:end])
        follows = text.startswith(before)
        pieces.append((text[len(before) :] if follows else decode_exactly(tokenizer, ids[start:end]), is_trained))
        before = text
    return pieces
