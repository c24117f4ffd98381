"""The charts, each drawn once: plain values in; a figure out, as SVG for a page and as PNG for a run's folder.

Text stays text in the SVG, and colours become the variables of the page's style sheet, so that a chart follows the
page into the dark. Names of abilities are data: they begin no formula, no element and no line.
"""

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rich.cells import cell_len

from deft.errors import shorten
from deft.files import written_whole
from deft.intervals import Change
from deft.language.choose import Lang
from deft.losses import OVERALL
from deft.report.texts import CHART_TEXTS, TEXTS
from deft.report.values import ability_name, drawable, percent, tone_of, verdict_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
"""Of a name in a chart."""
MOST_NAMES = 40
"""In one chart: more cannot be told apart, and thousands are larger than a picture may be."""
WIDTH = 5.4
"""Of a chart in inches: its text of 9 points is read on the width of a phone, and is not loud on that of a desk."""
NAME_CELLS = 16
"""Of a name, for which a chart of that width has room; longer ones widen it."""
COLOURS = {
    "ink": "#1c1917",
    "soft": "#57534e",
    "faint": "#e7e5e4",
    "paper": "#fdfdfc",
    "better": "#0f766e",
    "worse": "#c2410c",
    "unclear": "#78716c",
}
"""The variables of the page's style sheet, and their values on a light page, in which a PNG is drawn."""
LINES = ("#0f766e", "#c2410c", "#1d4ed8", "#a16207", "#7e22ce", "#be185d", "#0369a1", "#4d7c0f", "#9f1239", "#0891b2")
"""Of several curves in one chart: each keeps its contrast on a light and on a dark page."""
FONT = re.compile(r"font: (?:(bold|\d{3}) )?([\d.]+px) [^;]+")
SVG = "{http://www.w3.org/2000/svg}"
REFERENCE = "{http://www.w3.org/1999/xlink}href"


# --- what is drawn --------------------------------------------------------------------------------------------------


def abilities_chart(changes: Mapping[str, Change], lang: Lang = "en", *, title: str = "") -> "Figure":
    """Return each ability's loss before and after, with the interval of its change, the most improved first.

    Of very many abilities it shows those with the most rows. `plain_text` is open.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    most = sorted((name for name in changes if name != OVERALL), key=lambda name: -changes[name].num_rows)
    names = [name for name in drawable(changes) if name == OVERALL or name in most[:MOST_NAMES]]
    shown = [shown_name(ability_name(name, lang)) for name in names]
    beyond = max([cell_len(name) - NAME_CELLS for name in shown if cell_len(name) > NAME_CELLS], default=0)
    figure = Figure(figsize=(WIDTH + 0.08 * beyond, 1.2 + 0.26 * len(names)), layout="constrained")
    axes = framed(figure)
    for place, name in enumerate(names):
        draw_change(axes, changes[name], place, lang, strong=name == OVERALL)
    axes.set_yticks(range(len(names)), shown)
    axes.get_yticklabels()[-1].set_fontweight("bold")
    if len(names) > 1:
        axes.axhline(len(names) - 1.5, color=COLOURS["faint"], linewidth=1)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(TEXTS[lang]["axis"], color=COLOURS["soft"], fontsize=9)
    axes.grid(axis="x", color=COLOURS["faint"])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"], labelsize=9.5)
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=COLOURS["ink"])
    dot: dict[str, Any] = {"marker": "o", "color": COLOURS["soft"], "linestyle": "", "markeredgewidth": 1.5}
    handles = [
        Line2D([], [], markerfacecolor=COLOURS["paper"], label=TEXTS[lang]["before"], **dot),
        Line2D([], [], label=TEXTS[lang]["after"], **dot),
        Patch(color=COLOURS["soft"], alpha=0.25, linewidth=0, label=CHART_TEXTS[lang]["interval"]),
    ]
    figure.legend(handles=handles, ncols=3, **legend_below(COLOURS["soft"]))
    return figure


def draw_change(axes: "Axes", change: Change, place: int, lang: Lang, *, strong: bool) -> None:
    """Draw one ability in its row: the interval, laid from the point before; both losses; the change in percent."""
    colour = COLOURS[tone_of(change)]
    if verdict_of(change) != "unknown":
        ends = (change.before + change.low, change.before + change.high)
        axes.plot(ends, (place, place), color=colour, alpha=0.25, linewidth=8, solid_capstyle="butt")
    axes.plot((change.before, change.after), (place, place), color=colour, linewidth=1.5)
    axes.plot(change.before, place, "o", color=colour, markerfacecolor=COLOURS["paper"], markeredgewidth=1.5)
    axes.plot(change.after, place, "o", color=colour, markeredgewidth=1.5)
    if math.isfinite(change.relative_percent):
        text = percent(change.relative_percent, lang)
        weight = "bold" if strong else "normal"
        where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        look: dict[str, Any] = {"ha": "right", "va": "center_baseline", "color": colour, "fontsize": 9.5}
        axes.annotate(text, (1, place), (56, 0), fontweight=weight, **where, **look)


def losses_chart(
    training: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    lang: Lang = "en",
    *,
    by_ability: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> "Figure":
    """Return the training loss by optimizer step as a line, and the validation losses as dots, by ability too.

    Losses that are no number are left out; of very many abilities the first by name are drawn. `plain_text` is open.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    texts = CHART_TEXTS[lang]
    figure = Figure(figsize=(8, 3.2) if by_ability else (WIDTH, 2.6), layout="constrained")
    axes = framed(figure)
    if points := finite(training):
        axes.plot(*zip(*points, strict=True), color=COLOURS["soft"], linewidth=1.2, label=texts["training"])
    abilities = sorted(by_ability or {})[:MOST_NAMES]
    for place, name in enumerate(abilities if len(by_ability or {}) > 1 else []):
        if points := finite((by_ability or {})[name]):
            colour = LINES[place % len(LINES)]
            axes.plot(*zip(*points, strict=True), color=colour, marker=".", linewidth=1, label=shown_name(name))
    if points := finite(validation):
        strong: dict[str, Any] = {"color": COLOURS["ink"], "marker": "o", "linewidth": 1.8 if by_ability else 0}
        axes.plot(*zip(*points, strict=True), label=texts["validation"], **strong)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(TEXTS[lang]["step"], color=COLOURS["soft"], fontsize=9)
    axes.set_ylabel(texts["loss"], color=COLOURS["soft"], fontsize=9)
    axes.grid(axis="y", color=COLOURS["faint"])
    if axes.lines and by_ability:
        axes.legend(frameon=False, fontsize=9, labelcolor=COLOURS["ink"], loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif axes.lines:
        figure.legend(ncols=2, **legend_below(COLOURS["soft"]))
    return figure


def framed(figure: "Figure") -> "Axes":
    """Return the axes of a figure, with no more lines around them than are read."""
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLOURS["faint"])
    axes.tick_params(length=0, labelcolor=COLOURS["soft"], labelsize=9)
    axes.patch.set_visible(False)
    return axes


def legend_below(colour: str) -> dict[str, Any]:
    """Return the settings of a legend in one line under a chart, where no curve runs through it."""
    close = {"handlelength": 1.2, "handletextpad": 0.5, "columnspacing": 1.4, "borderpad": 0.1}
    return {"loc": "outside lower left", "frameon": False, "fontsize": 8.5, "labelcolor": colour, **close}


def finite(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the points that have a place on an axis."""
    return [(step, loss) for step, loss in points if math.isfinite(loss)]


def shown_name(name: str) -> str:
    """Return a name as a chart shows it: in one line, not too long, control characters as escapes."""
    return shorten(name.replace("_", " ").strip() or "–", MOST_CHARACTERS)


# --- how it is written ----------------------------------------------------------------------------------------------


@contextmanager
def plain_text() -> Iterator[None]:
    """Have the texts made and drawn meanwhile be plain: a `$` in a name begins no formula."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    present = {font.name for font in fontManager.ttflist}
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a font without a bold face is no news
    settings: Any = {
        "font.family": [font for font in FONTS if font in present],
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "deft",  # the same chart, the same bytes
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save_png(figure: "Figure", path: Path) -> None:
    """Write a chart as a PNG file, whole or not at all; `plain_text` is still open."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=220, format="png", facecolor=COLOURS["paper"])


def svg_element(figure: "Figure", *, label: str) -> str:
    """Return a chart as an SVG element for a page, `label` being what a screen reader says; `plain_text` is open.

    Nothing in it refers to anything, so that charts can share a page: what matplotlib draws by reference (the marks of
    points) is put where it is seen, and nothing is clipped.
    """
    for artist in figure.findobj():
        artist.set_clip_on(False)
    stream = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", facecolor="none", metadata=nothing)
    drawn = ElementTree.fromstring(stream.getvalue())
    marks = {f"#{mark.get('id')}": mark for mark in drawn.iter(f"{SVG}path") if mark.get("id")}
    chart = ElementTree.Element("svg", {"class": "chart", "viewBox": drawn.get("viewBox", ""), "role": "img"})
    chart.set("aria-label", label)
    chart.extend(shape for part in drawn for shape in plain_shapes(part, marks))
    return ElementTree.tostring(chart, encoding="unicode")


def plain_shapes(
    element: ElementTree.Element, marks: Mapping[str, ElementTree.Element]
) -> Iterator[ElementTree.Element]:
    """Yield an element of matplotlib's SVG without names and references, in the colours and fonts of the page.

    Definitions and empty groups are left out.
    """
    kind = element.tag.removeprefix(SVG)
    if kind in ("defs", "metadata", "style"):
        return
    if kind == "use":
        mark = marks[element.get(REFERENCE, "")]
        place = f"translate({element.get('x', '0')} {element.get('y', '0')})"
        style = page_style(";".join(filter(None, (mark.get("style"), element.get("style")))))
        yield ElementTree.Element("path", {"d": mark.get("d", ""), "transform": place, "style": style})
        return
    kept = {name: value for name, value in element.attrib.items() if name not in ("id", "clip-path")}
    if "style" in kept:
        kept["style"] = page_style(kept["style"])
    copy = ElementTree.Element(kind, kept)
    copy.text = element.text and element.text.strip()
    copy.extend(shape for part in element for shape in plain_shapes(part, marks))
    if kind != "g" or len(copy):
        yield copy


def page_style(style: str) -> str:
    """Return the style of a shape with the page's variables as colours, and the family of fonts left to the page."""
    for name, colour in COLOURS.items():
        style = style.replace(colour, f"var(--{name})")
    return FONT.sub(lambda font: f"font-weight: {font[1] or 'normal'}; font-size: {font[2]}", style)
