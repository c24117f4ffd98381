"""A row as a model is trained on it, painted: what carries loss and what does not.

In: an example, its token sequence, and the runs of text of that. Out: coloured text for the terminal. Text of the data
is never read as markup, and its control characters are shown, not sent to the terminal.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from deft.errors import visible
from deft.language.catalogue import worded
from deft.prompt.guard import decode_exactly
from deft.types import IGNORED_LABEL, Example, TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED_STYLE = "black on green"
MASKED_STYLE = "dim"
OPEN, CLOSE = "⟦", "⟧"


def paint(
    example: Example, sequence: TokenSequence, pieces: Sequence[tuple[str, bool]], *, colour: bool = True
) -> Text:
    """Return an example as a model is trained on it: a header, a legend, and the text of its `sequence`.

    `pieces` are the runs of that text, each with whether it carries loss. Trained text has a coloured background;
    without `colour` it stands between ⟦ and ⟧.
    """
    facts = [
        f"id {example.id}",
        worded("ability {ability}", ability=example.ability or worded("(none)")),
        example.source or worded("(no file)"),
        worded("{number:,} tokens", number=len(sequence)),
        worded("{number:,} supervised", number=sequence.num_supervised),
    ]
    painted = Text(visible(" · ".join(facts)), style="")
    painted.append("\n")
    for trained, label in ((True, worded("trained")), (False, worded("masked"))):
        append_span(painted, label, trained=trained, colour=colour)
        painted.append(" ")
    painted.append("\n\n")
    for trained, group in groupby(pieces, key=lambda piece: piece[1]):
        append_span(painted, "".join(text for text, _ in group), trained=trained, colour=colour)
    return painted


def append_span(painted: Text, text: str, *, trained: bool, colour: bool) -> None:
    """Append text in the way that shows whether it is trained."""
    shown = visible(text, keep="\n\t")
    if colour:
        painted.append(shown, style=TRAINED_STYLE if trained else MASKED_STYLE)
    else:
        painted.append(f"{OPEN}{shown}{CLOSE}" if trained else shown)


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
