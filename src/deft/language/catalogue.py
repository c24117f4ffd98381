"""English templates and sentences go in; the same in the language that deft speaks comes out.

The catalogue of a language is JSON: English template → template in that language. Fields of what is printed with values
are named (`{rows:,} rows`); those of sentences that reach the screen filled, such as errors, are `{}` in English, and
numbered (`{0}`) in the other language. A field marked `!t` there holds words of deft's own, and is looked up in turn.
What the catalogue does not have stays English.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

from deft.language.choose import Lang

FOLDER = Path(__file__).parent
WORDS = "t"
"""The conversion that marks a field as words of deft's own."""

_spoken: list[Lang] = ["en"]


def speak(language: Lang) -> None:
    """Let deft speak a language from now on, in this process."""
    _spoken[:] = [language]


def spoken() -> Lang:
    """Return the language that deft speaks; it is English until the command line has chosen."""
    return _spoken[0]


def template_for(template: str) -> str:
    """Return a template, not yet filled, in the language that is spoken."""
    return template if spoken() == "en" else catalogue(spoken()).get(template, template)


def worded(template: str, **values: Any) -> str:
    """Return a template in the language that is spoken, filled with values as `str.format` fills it."""
    return filled(template_for(template), values)


def translated(sentence: str) -> str:
    """Return a sentence whose values are already in it, in the language that is spoken."""
    return sentence if spoken() == "en" else in_language(sentence, spoken())


# --- looking up -----------------------------------------------------------------------------------------------------


@cache
def catalogue(language: Lang) -> Mapping[str, str]:
    """Return the templates of a language by their English."""
    found: dict[str, str] = {}
    for file in sorted((FOLDER / language).glob("*.json")):
        found |= json.loads(file.read_text(encoding="utf-8"))
    return found


def in_language(sentence: str, language: Lang) -> str:
    """Return a sentence in a language: that of the template which fits it with the most words of its own."""
    escaped = sentence.replace("{", "{{").replace("}", "}}")
    if (template := catalogue(language).get(escaped)) is not None:
        return filled(template, {})
    for literals, pattern, names, template in patterns(language):
        if all(literal in sentence for literal in literals) and (match := re.fullmatch(pattern, sentence, re.DOTALL)):
            return filled(template, dict(zip(names, match.groups(), strict=True)))
    return sentence


@cache
def patterns(language: Lang) -> tuple[tuple[tuple[str, ...], str, tuple[str, ...], str], ...]:
    """Return for each template with fields its literal parts, a pattern, its fields and its translation.

    Those with the most literal text come first. Templates with named fields are left out, as they are looked up before
    they are filled; so are those without a letter of their own, which would fit anything.
    """
    found = []
    for english, template in catalogue(language).items():
        literals, pattern, names = compiled(english)
        is_sentence = names and all(name.isdecimal() for name in names)
        if is_sentence and any(character.isalpha() for literal in literals for character in literal):
            found.append((literals, pattern, names, template))
    return tuple(sorted(found, key=lambda one: -sum(map(len, one[0]))))


def compiled(template: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return the literal parts of a template, a pattern for sentences made from it, and the names of its fields.

    Fields without a name count as 0, 1, 2 …, and each takes as little text as it can.
    """
    literals: list[str] = []
    names: list[str] = []
    pattern = ""
    for literal, field, _, _ in Formatter().parse(template):
        if literal:
            literals.append(literal)
            pattern += re.escape(literal)
        if field is not None:
            pattern += "(.*?)"
            names.append(field or str(len(names)))
    return tuple(literals), pattern, tuple(names)


def filled(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with its fields filled."""
    parts = []
    for literal, field, spec, conversion in Formatter().parse(template):
        parts.append(literal)
        if field is not None:
            parts.append(shown(values[field], spec, conversion))
    return "".join(parts)


def shown(value: Any, spec: str | None, conversion: str | None) -> str:
    """Return a value as a field shows it; words of deft's own are looked up."""
    text = format(value, spec) if spec else str(value)
    return translated(text) if conversion == WORDS else text
