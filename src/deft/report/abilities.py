"""The picture of a training's effect: each ability's loss before and after, with the interval of its change.

In: changes by ability. Out: a dumbbell chart, as a PNG for the run folder and as SVG for a page.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from deft.intervals import Change
from deft.losses import OVERALL
from deft.report.drawing import MOST_NAMES, plain_text, save, shown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BETTER, WORSE, UNCLEAR = "#0f766e", "#c2410c", "#78716c"
ROW_PX, LABELS_PX, PLOT_PX, FIGURES_PX, HEAD_PX, FOOT_PX = 30, 132, 470, 118, 10, 44
"""Sizes of the SVG: a row's height, the columns of names, plot and figures, and the room above and below the rows."""


def draw_abilities(path: Path, changes: Mapping[str, Change], *, title: str) -> None:
    """Draw the chart into a PNG file; Chinese names need a Chinese font on the computer."""
    with plain_text():
        save(dumbbells(changes, title), path)


def dumbbells(changes: Mapping[str, Change], title: str) -> "Figure":
    """Return the chart as a matplotlib figure; of very many abilities it shows those with the most rows."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    most = sorted((name for name in changes if name != OVERALL), key=lambda name: -changes[name].num_rows)
    names = [name for name in drawable(changes) if name == OVERALL or name in most[:MOST_NAMES]]
    figure = Figure(figsize=(8, 1.6 + 0.38 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        change, colour = changes[name], colour_of(changes[name])
        if known(change):
            ends = (change.before + change.low, change.before + change.high)
            axes.plot(ends, (place, place), color=colour, alpha=0.25, linewidth=9, solid_capstyle="butt")
        axes.plot((change.before, change.after), (place, place), color=colour, linewidth=1.5)
        axes.plot(change.before, place, "o", color=colour, markerfacecolor="white", markersize=7)
        axes.plot(change.after, place, "o", color=colour, markersize=7)
        figures = signed(change.relative_percent, digits=0) + " %" * math.isfinite(change.relative_percent)
        axes.annotate(figures, (1.01, place), xycoords=("axes fraction", "data"), va="center", color=colour)
    axes.set_yticks(range(len(names)), [shown_name(name) for name in names])
    axes.get_yticklabels()[-1].set_fontweight("bold")
    if len(names) > 1:
        axes.axhline(len(names) - 1.5, color="0.8", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("loss on held-out rows (nats per supervised token; further left is better)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    handles = [
        Line2D([], [], marker="o", color="0.4", markerfacecolor="white", linestyle="", label="before"),
        Line2D([], [], marker="o", color="0.4", linestyle="", label="after"),
        Patch(color="0.4", alpha=0.25, label="95 % interval of the change"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return figure


def abilities_svg(changes: Mapping[str, Change], *, names: Mapping[str, str], axis: str, label: str, unit: str) -> str:
    """Return the chart as an SVG element whose colours come from the page's style sheet.

    `names` are the abilities as shown, `axis` the title of the axis, `label` what a screen reader says, `unit` the
    percent sign with the space before it.
    """
    rows = drawable(changes)
    ends = [changes[row].before + changes[row].high for row in rows if known(changes[row])]
    largest = max([*(max(changes[row].before, changes[row].after) for row in rows), *ends, 1e-9])
    ticks = nice_ticks(0.0, largest)
    scale = PLOT_PX / max(ticks[-1], largest)
    bottom = HEAD_PX + ROW_PX * len(rows)
    parts = []
    for tick in ticks:
        x = LABELS_PX + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD_PX}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for place, row in enumerate(rows):
        y = HEAD_PX + ROW_PX * (place + 0.5)
        if row == OVERALL and place:
            edge = y - ROW_PX / 2
            parts.append(f'<line class="edge" x1="0" x2="{total_px()}" y1="{edge:.1f}" y2="{edge:.1f}"/>')
        parts.append(dumbbell(changes[row], names.get(row, row), y, scale, unit=unit, strong=row == OVERALL))
    middle = LABELS_PX + PLOT_PX / 2
    parts.append(f'<text class="tick" x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(axis)}</text>')
    box = f"0 0 {total_px()} {bottom + FOOT_PX}"
    return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def dumbbell(change: Change, name: str, y: float, scale: float, *, unit: str, strong: bool) -> str:
    """Return the SVG of one row: its name, the interval, before and after, and the change in percent."""

    def x(loss: float) -> str:
        return f"{LABELS_PX + max(loss, 0.0) * scale:.1f}"

    kind = {BETTER: "better", WORSE: "worse", UNCLEAR: "unclear"}[colour_of(change)]
    weight = " strong" if strong else ""
    interval = ""
    if known(change):
        ends = f'x1="{x(change.before + change.low)}" x2="{x(change.before + change.high)}"'
        interval = f'<line class="interval" {ends} y1="{y:.1f}" y2="{y:.1f}"/>'
    return (
        f'<g class="{kind}"><text class="name{weight}" x="{LABELS_PX - 14}" y="{y + 5:.1f}" text-anchor="end">'
        f"{escape(name)}</text>{interval}"
        f'<line class="stem" x1="{x(change.before)}" x2="{x(change.after)}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle class="before" cx="{x(change.before)}" cy="{y:.1f}" r="5"/>'
        f'<circle class="after" cx="{x(change.after)}" cy="{y:.1f}" r="5.5"/>'
        f'<text class="figure{weight}" x="{total_px() - 4}" y="{y + 5:.1f}" text-anchor="end">'
        f"{signed(change.relative_percent)}{unit}</text></g>"
    )


def total_px() -> int:
    """Return the width of the chart."""
    return LABELS_PX + PLOT_PX + FIGURES_PX


def in_order(changes: Mapping[str, Change]) -> list[str]:
    """Return the abilities, the most improved first, and at the end the figure over all rows."""
    abilities = sorted((name for name in changes if name != OVERALL), key=lambda n: (changes[n].relative_percent, n))
    return abilities + [OVERALL] * (OVERALL in changes)


def drawable(changes: Mapping[str, Change]) -> list[str]:
    """Return the abilities in their order, but those with a loss that has no place on an axis."""
    return [name for name in in_order(changes) if math.isfinite(changes[name].before + changes[name].after)]


def colour_of(change: Change) -> str:
    """Return the colour of a change: better, worse, or not clear of zero."""
    if not change.is_clear:
        return UNCLEAR
    return BETTER if change.difference < 0 else WORSE


def known(change: Change) -> bool:
    """Say whether the interval of a change is known."""
    return math.isfinite(change.low) and math.isfinite(change.high)


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign, a real minus for one below zero; – where it is not known."""
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def nice_ticks(low: float, high: float, most: int = 7) -> Sequence[float]:
    """Return at most `most` evenly spaced round numbers, from one at or below `low` to one at or above `high`."""
    if high - low <= max(1e-9, 1e-6 * abs(high)):  # values that are all equal still lie between two ticks
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    spread = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(spread / most))
    for step in (power, 2 * power, 2.5 * power, 5 * power, 10 * power, 20 * power, 50 * power):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first + 1 <= most:
            return [round(number * step, 10) for number in range(first, last + 1)]
    raise AssertionError("a step of fifty powers always gives few ticks")
