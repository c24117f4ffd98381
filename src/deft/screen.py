"""Text for the terminal: deft's own words may carry markup, whatever else goes into them is shown as it is.

Templates are written in English here and everywhere; they are printed in the language that deft speaks.

A path such as `data[old]/rows.jsonl` is no markup, and a control character in a file's name must not drive the
terminal. So no text is printed that has values in it already; tests/test_screen.py reads the source for that.
"""

import os
from itertools import accumulate
from string import Formatter
from typing import TYPE_CHECKING, Any

from deft.errors import visible
from deft.language.catalogue import shown, template_for

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

SPACES = "\u00a0\u3000"
"""Spaces of text that are no control characters: the one that does not break, and the Chinese one."""
FIRST_MARK = 0xE000
"""Characters from here on stand for values while the markup around them is read; no text of deft's own has any."""


def say(console: "Console", template: str, *, style: str = "", fold: bool = False, **values: Any) -> None:
    """Print `styled(template, …)` on a line of its own.

    With `fold` it is broken between words where the terminal ends, and goes on as far indented as it began; without,
    as is right for paths and commands, it stays one line, so that it can be copied.
    """
    text = styled(template, **values)
    indent = len(text.plain) - len(text.plain.lstrip(" "))
    lines = text[indent:].wrap(console, max(console.width - indent, 1)) if fold else [text[indent:]]
    for line in lines:
        line.rstrip()
        console.print(" " * indent, line, sep="", style=style or None, soft_wrap=True, highlight=False)


def styled(template: str, **values: Any) -> "Text":
    """Return a template with rich's markup as text, its `{fields}` filled with values that are never markup.

    Fields are written as in `str.format` (`{loss:.3f}`); control characters in values are shown as escapes. The
    template is printed in the language that deft speaks, where its catalogue has it.
    """
    from rich.text import Span, Text

    marked = ""
    filled: list[str] = []
    for literal, field, spec, conversion in Formatter().parse(template_for(template)):
        marked += literal
        if field is not None:
            marked += chr(FIRST_MARK + len(filled))
            filled.append(visible(shown(values[field], spec, conversion), keep=SPACES))
    text = Text.from_markup(marked, emoji=False)
    value_of = {chr(FIRST_MARK + place): value for place, value in enumerate(filled)}
    parts = [value_of.get(character, character) for character in text.plain]
    place = [0, *accumulate(map(len, parts))]
    return Text("".join(parts), spans=[Span(place[span.start], place[span.end], span.style) for span in text.spans])


def console() -> "Console":
    """Return the terminal to print to; of several processes that train together, the first one speaks for all."""
    from rich.console import Console

    return Console(quiet=os.environ.get("RANK", "0") != "0")
