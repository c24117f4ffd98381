"""Changes go in; the table of them for a terminal of 80 columns comes out."""

from collections.abc import Mapping

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from deft.intervals import Change
from deft.language.choose import Lang
from deft.losses import OVERALL
from deft.report.charts import COLOURS
from deft.report.texts import TERMINAL_TEXTS, TEXTS
from deft.report.values import ability_name, in_order, percent, signed, tone_of, verdict_of


def changes_table(changes: Mapping[str, Change], lang: Lang) -> Table:
    """Return the losses before and after, per ability, with the interval of the change.

    Where less than 80 columns are there, headings and names fold; figures stay whole.
    """
    texts, intervals = TEXTS[lang] | TERMINAL_TEXTS[lang], aligned_intervals(changes)
    lines = {ability: figures(changes[ability], intervals[ability], lang) for ability in in_order(changes)}
    result = Table(box=None, pad_edge=False, header_style="bold")
    words = [word for name in changes for word in ability_name(name, lang).split()]
    longest = min(max(map(cell_len, words), default=0), 16)
    result.add_column(texts["ability"], vertical="bottom", overflow="fold", min_width=max(longest, 8))
    for place, name in enumerate(("rows", "before", "after", "change", "interval")):
        widest = max(len(line[place]) for line in lines.values())
        result.add_column(texts[name], justify="right", vertical="bottom", overflow="fold", min_width=widest)
    result.add_column(texts["verdict"], vertical="bottom", no_wrap=True)
    for ability, line in lines.items():
        verdict = verdict_of(changes[ability])
        style = "bold" if ability == OVERALL else None
        mark = Text(texts[verdict], style=COLOURS[tone_of(changes[ability])])
        result.add_row(Text(ability_name(ability, lang)), *line, mark, style=style)
    return result


def figures(change: Change, interval: str, lang: Lang) -> tuple[str, ...]:
    """Return the number of rows, the losses before and after, the change in percent and its interval."""
    losses = (f"{change.before:.3f}", f"{change.after:.3f}")
    return f"{change.num_rows:,}", *losses, percent(change.relative_percent, lang), interval


def aligned_intervals(changes: Mapping[str, Change]) -> dict[str, str]:
    """Return the interval of each change in percent, the bounds padded so that decimal points stand in columns."""
    bounds = {
        ability: (signed(change.relative_low), signed(change.relative_high))
        for ability, change in changes.items()
        if verdict_of(change) != "unknown"
    }
    width_low, width_high = (max((len(pair[side]) for pair in bounds.values()), default=0) for side in (0, 1))
    padded = {ability: f"{low:>{width_low}} … {high:>{width_high}}" for ability, (low, high) in bounds.items()}
    return {ability: padded.get(ability, "–") for ability in changes}
