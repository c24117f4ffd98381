"""The report of a run: one HTML file that needs nothing else, to look at, keep, and send to others.

In: what was measured. Out: `report.html`, in English or Chinese, for light and dark screens. It names no path of the
machine outside the working folder.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from deft.files import write_text
from deft.intervals import Change
from deft.losses import OVERALL
from deft.report.abilities import abilities_svg, in_order, nice_ticks, signed
from deft.report.results import ReplyPair, Results
from deft.report.texts import ENDING_TEXTS, TEXTS, UNITS, Lang
from deft.report.values import abilities_clear, ability_name, percent, readable_time, shown_value, verdict_of

FILE_NAME = "report.html"
STYLE = """
:root{color-scheme:light dark;--ink:#1c1917;--soft:#57534e;--faint:#e7e5e4;--paper:#fdfdfc;--card:#f5f5f4;
--better:#0f766e;--worse:#c2410c;--unclear:#78716c}
@media(prefers-color-scheme:dark){:root{--ink:#e7e5e4;--soft:#a8a29e;--faint:#3a3633;--paper:#171514;--card:#211e1c;
--better:#2dd4bf;--worse:#fb923c;--unclear:#a8a29e}}
*{box-sizing:border-box}
body{margin:0 auto;padding:3.5rem 1.25rem 5rem;max-width:50rem;background:var(--paper);color:var(--ink);
font:1rem/1.65 system-ui,-apple-system,"Segoe UI",Roboto,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC",
"WenQuanYi Micro Hei",sans-serif;font-variant-numeric:tabular-nums}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 .75rem}
h2{font-size:1.15rem;margin:3rem 0 .75rem}
.lead{font-size:1.15rem;margin:0 0 1rem}
.note{color:var(--soft);font-size:.9rem;margin:.25rem 0}
.wide{overflow-x:auto}
.chart{display:block;width:100%;min-width:32rem;height:auto;font-size:13px}
.chart text{fill:var(--ink)}.chart .tick{fill:var(--soft);font-size:12px}.chart .strong{font-weight:700}
.grid{stroke:var(--faint)}.edge{stroke:var(--faint);stroke-width:1.5}
.better{--tone:var(--better)}.worse{--tone:var(--worse)}.unclear{--tone:var(--unclear)}
.stem{stroke:var(--tone);stroke-width:2}.interval{stroke:var(--tone);stroke-width:11;opacity:.25}
.before{fill:var(--paper);stroke:var(--tone);stroke-width:2}.after{fill:var(--tone)}
.chart .figure{fill:var(--tone)}
.curve{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-linejoin:round}.dot{fill:var(--better)}
table{border-collapse:collapse;width:100%}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--faint);white-space:nowrap}
th{font-weight:600;color:var(--soft);font-size:.9rem}
th:first-child,td:first-child{text-align:left;padding-left:0}td:last-child,th:last-child{padding-right:0}
tr.total td{font-weight:700;border-bottom:0}td.better,td.worse,td.unclear{color:var(--tone)}
.prompt{white-space:pre-wrap;margin:1.25rem 0 .5rem}
.prompt b,.reply b{display:block;color:var(--soft);font-size:.85rem;font-weight:600}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.75rem}
.reply{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border-radius:.5rem;padding:.75rem 1rem;
margin:0}.reply em{display:block;margin-top:.5rem;font-style:normal;font-size:.9rem;color:var(--soft)}
@media(max-width:40rem){.pair{grid-template-columns:1fr}}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.5rem;margin:0;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
h3{font-size:.95rem;margin:1.25rem 0 .35rem}
code{font:.9em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--card);border-radius:.3rem;
padding:.1rem .4rem;overflow-wrap:anywhere}
li{margin:.4rem 0}ul{padding-left:1.1rem}
"""


def write_report(folder: Path, results: Results, lang: Lang = "en") -> Path:
    """Write `report.html` into `folder`, whole or not at all, and return its path."""
    path = folder / FILE_NAME
    write_text(path, report_html(results, lang))
    return path


def report_html(results: Results, lang: Lang = "en") -> str:
    """Return the whole report."""
    texts = TEXTS[lang]
    title = texts["title"].format(rows=f"{results.num_train_rows:,}")
    sections = [
        f"<h1>{title}</h1>",
        f'<p class="lead">{result_sentence(results.changes, lang)}</p>',
        picture(results.changes, lang),
        f"<h2>{texts['table']}</h2>{table(results.changes, lang)}",
        replies(results.replies, texts),
        curve(results.training, results.validation, texts),
        how_to_read(results, lang),
        next_steps(results.next_commands, texts),
        what_ran(results, texts),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="{texts["html_lang"]}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def result_sentence(changes: Mapping[str, Change], lang: Lang) -> str:
    """Return the result in one sentence, with bold figures."""
    texts, overall = TEXTS[lang], changes[OVERALL]
    ending = abilities_clear(changes, lang)
    return texts["sentence"].format(
        held_out=f"{overall.num_rows:,}",
        moved=texts["fell" if overall.difference <= 0 else "rose"],
        before=overall.before,
        after=overall.after,
        percent=percent(overall.relative_percent, lang),
        low=percent(overall.relative_low, lang),
        high=percent(overall.relative_high, lang),
        of_abilities=ending,
    )


def picture(changes: Mapping[str, Change], lang: Lang) -> str:
    """Return the dumbbell chart with its heading."""
    texts = TEXTS[lang]
    names = {ability: ability_name(ability, lang) for ability in changes}
    svg = abilities_svg(changes, names=names, axis=texts["axis"], label=texts["picture"], unit=UNITS[lang])
    return f'<h2>{texts["picture"]}</h2><p class="note">{texts["legend"]}</p><div class="wide">{svg}</div>'


def table(changes: Mapping[str, Change], lang: Lang) -> str:
    """Return the figures of every ability."""
    texts = TEXTS[lang]
    headings = ("ability", "rows", "before", "after", "change", "interval", "verdict")
    lines = []
    for ability in in_order(changes):
        change, verdict = changes[ability], verdict_of(changes[ability])
        tone = "unclear" if verdict == "unknown" else verdict
        between = (
            f"{signed(change.relative_low)} … {percent(change.relative_high, lang)}" if verdict != "unknown" else "–"
        )
        cells = (
            escape(ability_name(ability, lang)),
            f"{change.num_rows:,}",
            f"{change.before:.3f}",
            f"{change.after:.3f}",
            percent(change.relative_percent, lang),
            between,
        )
        row = "".join(f"<td>{cell}</td>" for cell in cells) + f'<td class="{tone}">{texts[verdict]}</td>'
        opening = '<tr class="total">' if ability == OVERALL else "<tr>"
        lines.append(f"{opening}{row}</tr>")
    head = "".join(f"<th>{texts[heading]}</th>" for heading in headings)
    body = "".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def replies(pairs: Sequence[ReplyPair], texts: Mapping[str, str]) -> str:
    """Return the replies side by side."""
    from deft.errors import visible

    def text(reply: str, verdict: str) -> str:
        judged = f"<em>← {escape(verdict)}</em>" if verdict else ""
        return (escape(visible(reply.strip(), keep="\n")) or "–") + judged

    blocks = [
        f'<p class="prompt"><b>{texts["asked"]}</b>{escape(pair.prompt)}</p><div class="pair">'
        f'<p class="reply"><b>{texts["before"]}</b>{text(pair.before, pair.before_verdict)}</p>'
        f'<p class="reply"><b>{texts["after"]}</b>{text(pair.after, pair.after_verdict)}</p></div>'
        for pair in pairs
    ]
    return f"<h2>{texts['replies']}</h2>" + "".join(blocks) if blocks else ""


def curve(
    training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]], texts: Mapping[str, str]
) -> str:
    """Return the training loss by step as a line, and the validation losses as dots."""
    training, validation = (
        [(step, loss) for step, loss in one if math.isfinite(loss)] for one in (training, validation)
    )
    points = [*training, *validation]
    if not points:
        return ""
    width, height, left = 720, 220, 44
    last_step = max(step for step, _ in points)
    ticks = nice_ticks(min(loss for _, loss in points), max(loss for _, loss in points), most=6)

    def place(step: int, loss: float) -> tuple[float, float]:
        x = left + (width - left - 12) * step / max(last_step, 1)
        return x, 10 + height * (ticks[-1] - loss) / (ticks[-1] - ticks[0])

    parts = []
    for tick in ticks:
        y = place(0, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in [step for step in nice_ticks(0, last_step) if step <= last_step and step == int(step)]:
        x = place(int(tick), ticks[0])[0]
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height + 28}" text-anchor="middle">{tick:g}</text>')
    line = " ".join("{:.1f},{:.1f}".format(*place(step, loss)) for step, loss in training)
    parts.append(f'<polyline class="curve" points="{line}"/>')
    for step, loss in validation:
        x, y = place(step, loss)
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{loss:.3f}</title></circle>')
    parts.append(f'<text class="tick" x="{width}" y="{height + 46}" text-anchor="end">{texts["step"]}</text>')
    svg = f'<svg class="chart" viewBox="0 0 {width} {height + 52}" role="img" aria-label="{texts["curve"]}">'
    note = f'<p class="note">{texts["curve_note"]}</p>'
    return f'<h2>{texts["curve"]}</h2>{note}<div class="wide">{svg}{"".join(parts)}</svg></div>'


def was_chosen(validation: Sequence[tuple[int, float]]) -> bool:
    """Say whether the rows that measured the change, from step 0 on, also chose the best of several checkpoints."""
    return len(validation) > 2 and validation[0][0] == 0


def how_to_read(results: Results, lang: Lang) -> str:
    """Return what the figures mean and what they do not."""
    texts, overall = TEXTS[lang], results.changes[OVERALL]
    loss = texts["reading_loss"].format(
        before=overall.before,
        after=overall.after,
        chance_before=math.exp(min(overall.before, 700)),
        chance_after=math.exp(min(overall.after, 700)),
    )
    chosen = f" {ENDING_TEXTS[lang]['chosen']}" if was_chosen(results.validation) else ""
    return (
        f"<h2>{texts['reading']}</h2><p>{loss}</p><p>{texts['reading_interval']}{chosen}</p>"
        f"<p>{texts['reading_accuracy']}</p>"
    )


def next_steps(commands: Iterable[tuple[str, str]], texts: Mapping[str, str]) -> str:
    """Return the commands to type next, each with what it does."""
    items = [f"<li>{escape(what)}<br><code>{escape(command)}</code></li>" for command, what in commands]
    return f"<h2>{texts['next']}</h2><ul>{''.join(items)}</ul>" if items else ""


def what_ran(results: Results, texts: Mapping[str, str]) -> str:
    """Return settings, versions, fingerprints and times: what another would need to repeat the run."""
    times = {stage: readable_time(seconds) for stage, seconds in results.stage_times_s.items()}
    groups = (
        ("settings", {texts["model"]: results.model, **results.settings}),
        ("fingerprints", results.fingerprints),
        ("versions", results.versions),
        ("times", times),
    )
    return f"<h2>{texts['ran']}</h2>" + "".join(
        f"<h3>{texts[heading]}</h3>{definitions(values)}" for heading, values in groups if values
    )


def definitions(values: Mapping[str, Any]) -> str:
    """Return names and values as a list."""
    items = (f"<dt>{escape(name)}</dt><dd>{escape(shown_value(value))}</dd>" for name, value in values.items())
    return f"<dl>{''.join(items)}</dl>"
