"""Audits and broken rows go in; tables for the terminal come out.

Text of the data is never read as markup, and its control characters are shown, not sent to the terminal.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from rich.table import Table
from rich.text import Text

from deft.data.audit import NO_ABILITY, AbilityAudit, Audit, reasons
from deft.data.fields import UnusedField
from deft.data.read import BrokenRow
from deft.errors import visible

Column = tuple[str, Callable[[AbilityAudit], str]]

ALWAYS_SHOWN: tuple[Column, ...] = (
    ("rows", lambda one: f"{one.num_rows:,}"),
    ("tokens", lambda one: f"{one.num_tokens:,}"),
    ("supervised", lambda one: f"{one.num_supervised:,}"),
    ("p50", lambda one: f"{one.length_p50:,}"),
    ("p90", lambda one: f"{one.length_p90:,}"),
    ("max", lambda one: f"{one.length_max:,}"),
)
SHOWN_IF_ANY: tuple[Column, ...] = (
    ("duplicates", lambda one: f"{one.num_duplicates:,}"),
    ("same prompt", lambda one: f"{one.num_conflicting:,}"),
    ("open end", lambda one: f"{one.num_open_ended:,}"),
)

CHINESE: dict[str, str] = {
    "ability": "能力",
    "rows": "条数",
    "tokens": "词元",
    "supervised": "监督词元",
    "max": "最长",
    "duplicates": "重复",
    "same prompt": "同题异答",
    "open end": "未收尾",
    "dropped": "丢弃",
    "total": "合计",
    NO_ABILITY: "（无）",
}
"""The table's own words; names of abilities and reasons stay as they are in the data and the records."""


def audit_table(audit: Audit, lang: Literal["en", "zh"] = "en") -> Table:
    """Return the counts, a line for each ability and one for all; columns of faults appear where there are any.

    p50, p90 and max are lengths in tokens.
    """

    def word(name: str) -> str:
        return CHINESE.get(name, name) if lang == "zh" else name

    columns = [*ALWAYS_SHOWN, *(column for column in SHOWN_IF_ANY if column[1](audit.total) != "0")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(word("ability"), overflow="fold")
    lines = (*audit.abilities, audit.total)
    for name, cell in columns:
        widest = max(len(cell(one)) for one in lines)
        table.add_column(word(name), justify="right", overflow="fold", min_width=widest)
    if audit.total.num_dropped:
        table.add_column(word("dropped"), overflow="fold")
    for one in lines:
        ours = one is audit.total or one.ability == NO_ABILITY
        cells = [word(one.ability) if ours else visible(one.ability), *(cell(one) for _, cell in columns)]
        if audit.total.num_dropped:
            cells.append(reasons(one))
        table.add_row(*map(Text, cells), style="bold" if one is audit.total else None)
    return table


def unused_lines(unused: Sequence[UnusedField], limit: int = 8) -> list[str]:
    """Return a line for each field that is not used, those beyond `limit` in one."""
    shown = [visible(str(one)) for one in unused[:limit]]
    if len(unused) > limit:
        shown.append(f"and {len(unused) - limit} further fields")
    return shown


def problems_table(broken: Sequence[BrokenRow]) -> Table:
    """Return broken rows, one a line: where, why, and what was found there."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("where", "problem", "found"):
        table.add_column(name, overflow="fold")
    for row in broken:
        table.add_row(*(Text(visible(cell)) for cell in (row.source, row.reason, row.got or "")))
    return table
