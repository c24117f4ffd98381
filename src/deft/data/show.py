"""Audits and broken rows go in; tables for the terminal come out.

Text of the data is never read as markup, and its control characters are shown, not sent to the terminal.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deft.data.audit import NO_ABILITY, AbilityAudit, Audit, reasons
from deft.data.fields import UnusedField
from deft.data.files import LeftOut
from deft.data.read import BrokenRow, FileRead
from deft.errors import visible
from deft.language.catalogue import translated, worded

NUM_FILES_SHOWN = 6
NUM_NAMES_SHOWN = 5

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
    ("cannot be trained", reasons),
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
    "cannot be trained": "无法训练",
    "total": "合计",
    NO_ABILITY: "（无）",
}
"""The table's own words; names of abilities and reasons stay as they are in the data and the records."""


def audit_table(audit: Audit, lang: Literal["en", "zh"] = "en") -> Group:
    """Return the counts, a line for each ability and one for all, and below them the faults, where there are any.

    p50, p90 and max are lengths in tokens. Both tables fit 80 columns with their words whole.
    """
    lines = (*audit.abilities, audit.total)
    faults = [column for column in SHOWN_IF_ANY if any(column[1](one) not in ("0", "") for one in lines)]
    tables: list[RenderableType] = [plain_table(lines, ALWAYS_SHOWN, lang)]
    if faults:
        faulty = [one for one in lines if any(cell(one) not in ("0", "") for _, cell in faults)]
        tables += [Text(), plain_table(faulty, faults, lang)]
    return Group(*tables)


def plain_table(lines: Sequence[AbilityAudit], columns: Sequence[Column], lang: Literal["en", "zh"]) -> Table:
    """Return a table with a line for each of `lines`, the last, for all rows, in bold."""

    def word(name: str) -> str:
        return CHINESE.get(name, name) if lang == "zh" else name

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(word("ability"), overflow="fold")
    for name, cell in columns:
        words = [part for text in (word(name), *map(cell, lines)) for part in text.split(" ")]
        table.add_column(word(name), justify="right", overflow="fold", min_width=max(map(cell_len, words)))
    for one in lines:
        ours = one is lines[-1] or one.ability == NO_ABILITY
        cells = [word(one.ability) if ours else visible(one.ability), *(cell(one) for _, cell in columns)]
        table.add_row(*map(Text, cells), style="bold" if one is lines[-1] else None)
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
    for name in (worded("where"), worded("problem"), worded("found")):
        table.add_column(name, overflow="fold")
    for row in broken:
        table.add_row(*(Text(visible(cell)) for cell in (row.source, translated(row.reason), row.got or "")))
    return table


def files_told(sources: Sequence[FileRead], left_out: Sequence[LeftOut]) -> list[str]:
    """Return the lines that name the files read, with their rows, and those not read, with the reason.

    Of many files the number is told, and only those are named that there is something to say of.
    """
    lines = []
    if len(sources) > NUM_FILES_SHOWN:
        lines.append(f"read {len(sources):,} files, {sum(one.num_rows for one in sources):,} rows")
        sources = [one for one in sources if one.remarks or not one.num_rows]
    for one in sources[:NUM_FILES_SHOWN]:
        remarks = f" ({'; '.join(map(translated, one.remarks))})" if one.remarks else ""
        lines.append(f"read {one.path}: {one.num_rows:,} row{'s' * (one.num_rows != 1)}{remarks}")
    if len(sources) > NUM_FILES_SHOWN:
        lines.append(f"… and {len(sources) - NUM_FILES_SHOWN:,} more such files")
    names_of: dict[str, list[str]] = defaultdict(list)
    for left in left_out:
        names_of[left.reason].append(left.name)
    for reason, names in names_of.items():
        lines.append(f"not read: {names_of_some(names)} ({reason})")
    return lines


def names_of_some(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = worded(" and {number:,} more", number=len(names) - NUM_NAMES_SHOWN) if len(names) > NUM_NAMES_SHOWN else ""
    return f"{', '.join(names[:NUM_NAMES_SHOWN])}{more}"
