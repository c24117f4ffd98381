"""The setting that figures are drawn in: names in any script, taken as they are, and the file whole or absent."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.errors import shorten
from deft.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
)
"""Tried in this order for each character, so that Chinese names show wherever a Chinese font is installed."""
MOST_CHARACTERS = 40
"""Of a name in a figure."""
MOST_NAMES = 40
"""In one figure: more cannot be told apart, and thousands are larger than a picture may be."""


@contextmanager
def plain_text() -> Iterator[None]:
    """Have the texts made and drawn meanwhile be plain: a `$` in a name begins no formula."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    present = {font.name for font in fontManager.ttflist}
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a font without a bold face is no news
    settings: Any = {"font.family": [font for font in FONTS if font in present], "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def shown_name(ability: str) -> str:
    """Return the name of an ability as a figure shows it: in one line, not too long, control characters as escapes."""
    return shorten(ability.replace("_", " ").strip() or "–", MOST_CHARACTERS)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all; `plain_text` is still open."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
