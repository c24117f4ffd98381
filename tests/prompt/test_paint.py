"""A painted row: trained text stands out, with colour and without."""

import io

import numpy as np
from rich.console import Console, RenderableType

from deft.prompt.paint import paint
from deft.types import IGNORED_LABEL, Example, Message, TokenSequence


def plain(shown: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def coloured(shown: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120, color_system="standard", force_terminal=True, highlight=False)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


def example(reply: str, ability: str | None = "数学") -> Example:
    messages = [Message(role="user", content="问"), Message(role="assistant", content=reply)]
    return Example.create(messages, ability=ability, source="甲.json:3")


PIECES = [("<用户>问\n", False), ("答案\x1b<完>", True), ("\n", False)]
SEQUENCE = TokenSequence(
    id="x",
    input_ids=np.arange(8, dtype=np.int32),
    labels=np.array([*[IGNORED_LABEL] * 3, 3, 4, 5, 6, IGNORED_LABEL], dtype=np.int32),
)


def test_paint_without_colour_marks_trained_text() -> None:
    one = example("答案")
    assert plain(paint(one, SEQUENCE, PIECES, colour=False)) == (
        f"id {one.id} · ability 数学 · 甲.json:3 · 8 tokens · 4 supervised\n"
        "⟦trained⟧ masked\n\n<用户>问\n⟦答案\\x1b<完>⟧\n"
    )


def test_paint_with_colour_marks_trained_text_by_its_background() -> None:
    one = example("答案", ability=None)
    assert "⟦" not in paint(one, SEQUENCE, PIECES).plain
    assert "ability (none)" in paint(one, SEQUENCE, PIECES).plain
    shown = coloured(paint(one, SEQUENCE, PIECES))
    assert "\x1b[30;42m答案\\x1b<完>\x1b[0m" in shown
    assert "\x1b[2m<用户>问\x1b[0m" in shown
