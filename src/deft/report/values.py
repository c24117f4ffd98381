"""Changes, settings, paths and durations go in; the words and figures in which people read them come out."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deft.errors import visible
from deft.intervals import Change
from deft.language.choose import Lang
from deft.losses import OVERALL
from deft.report.texts import ABILITIES_CLEAR, ABILITY_NAMES, UNITS


def percent(value: float, lang: Lang) -> str:
    """Return a change in percent as the language writes it, in one piece; – where it is not known."""
    return signed(value) + UNITS[lang] if math.isfinite(value) else "–"


def ability_name(ability: str, lang: Lang) -> str:
    """Return the name under which an ability is shown, in one line, control characters as escapes."""
    return ABILITY_NAMES[lang].get(ability) or visible(ability.replace("_", " "))


def verdict_of(change: Change) -> str:
    """Return whether a change is `better`, `worse`, `unclear`, or `unknown` for want of rows."""
    if math.isnan(change.low) or math.isnan(change.high):
        return "unknown"
    if not change.is_clear:
        return "unclear"
    return "better" if change.difference < 0 else "worse"


def tone_of(change: Change) -> str:
    """Return the name of the colour in which a change is shown: `better`, `worse` or `unclear`."""
    verdict = verdict_of(change)
    return "unclear" if verdict == "unknown" else verdict


def shown_value(value: Any) -> str:
    """Return a setting as text; paths become relative to the working folder, or their last part alone."""
    if isinstance(value, (list, tuple)):
        return ", ".join(shown_value(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute()):
        return shown_path(Path(value))
    return str(value)


def shown_path(path: Path) -> str:
    """Return a path as others may see it: relative to the working folder, or its last part where it lies outside."""
    absolute = path.absolute()
    working = Path.cwd()
    return absolute.relative_to(working).as_posix() if absolute.is_relative_to(working) else absolute.name


def readable_time(seconds: float) -> str:
    """Return a duration as people say it: `8 s`, `2 min 31 s`, `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def abilities_clear(changes: Mapping[str, Change], lang: Lang) -> str:
    """Say in how many abilities the change is clear of zero; nothing where the rows name no ability."""
    abilities = [change for name, change in changes.items() if name != OVERALL]
    if not abilities:
        return ""
    untold, of_some, of_all = ABILITIES_CLEAR[lang]
    if all(math.isnan(change.low) for change in abilities):
        return untold
    clear = sum(change.is_clear for change in abilities)
    return (of_all if clear == len(abilities) else of_some).format(clear=clear, abilities=len(abilities))


def in_order(changes: Mapping[str, Change]) -> list[str]:
    """Return the abilities, the most improved first, and at the end the figure over all rows."""
    abilities = sorted((name for name in changes if name != OVERALL), key=lambda n: (changes[n].relative_percent, n))
    return abilities + [OVERALL] * (OVERALL in changes)


def drawable(changes: Mapping[str, Change]) -> list[str]:
    """Return the abilities in their order, but those with a loss that has no place on an axis."""
    return [name for name in in_order(changes) if math.isfinite(changes[name].before + changes[name].after)]


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign, a real minus for one below zero; – where it is not known."""
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"
