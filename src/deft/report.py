"""The report of a run: one HTML file that needs nothing else, to look at, keep, and send to others.

In: what was measured. Out: `report.html`, in English or Chinese, for light and dark screens. It names no path of the
machine outside the working folder.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deft.evaluate.figure import BETTER, UNCLEAR, WORSE, abilities_svg, in_order, nice_ticks, signed
from deft.evaluate.interval import Change
from deft.evaluate.loss import OVERALL
from deft.rundir import write_text

if TYPE_CHECKING:
    from rich.table import Table

Lang = Literal["en", "zh"]
FILE_NAME = "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyPair:
    """What the model answered to one prompt before and after the training."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What a run measured, as its report shows it.

    `changes` by ability, with `all`; `training` and `validation` are (optimizer step, loss in nats per token);
    `stage_times_s` are seconds by stage; `next_commands` are (command, what it does).
    """

    model: str
    num_train_rows: int
    changes: Mapping[str, Change]
    replies: Sequence[ReplyPair] = ()
    training: Sequence[tuple[int, float]] = ()
    validation: Sequence[tuple[int, float]] = ()
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    fingerprints: Mapping[str, str]
    stage_times_s: Mapping[str, float]
    next_commands: Sequence[tuple[str, str]] = ()


UNITS: dict[str, str] = {"en": "\u00a0%", "zh": "%"}
"""How a language writes the percent sign after a number."""

ABILITY_NAMES: dict[str, dict[str, str]] = {
    "en": {OVERALL: "all rows"},
    "zh": {
        OVERALL: "全部",
        "biology": "生物",
        "chinese": "中文",
        "code": "代码",
        "creative_writing": "创意写作",
        "ethics": "伦理",
        "history": "历史",
        "math": "数学",
        "reasoning": "推理",
        "role_play": "角色扮演",
        "understanding": "理解",
        "other": "其他",
    },
}

TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "html_lang": "en",
        "title": "What training on {rows} rows changed",
        "sentence": (
            "On {held_out} rows the model never trained on, the loss {moved} from <b>{before:.3f}</b> to "
            "<b>{after:.3f}</b> nats per token: <b>{percent}</b> (95&nbsp;% interval {low} to {high}), "
            "clear of zero in {clear} of {abilities} abilities."
        ),
        "fell": "fell",
        "rose": "rose",
        "picture": "Loss per ability, before and after",
        "axis": "loss on held-out rows, nats per token (further left is better)",
        "legend": "○ before&ensp;● after&ensp;▬ 95 % interval of the change, laid from the point before",
        "table": "The figures",
        "ability": "ability",
        "rows": "rows",
        "before": "before",
        "after": "after",
        "change": "change",
        "interval": "95 % interval",
        "verdict": "clear of zero?",
        "better": "yes, better",
        "worse": "yes, worse",
        "unclear": "no",
        "unknown": "too few rows",
        "replies": "Two replies",
        "asked": "asked",
        "curve": "The training, step by step",
        "curve_note": "Line: loss of each step’s training rows. Dots: loss of the validation rows.",
        "step": "optimizer step",
        "ran": "What ran",
        "model": "model",
        "settings": "settings",
        "versions": "versions",
        "fingerprints": "fingerprints of the inputs",
        "times": "time",
        "reading": "How to read this",
        "reading_loss": (
            "<b>Nats per token.</b> The loss is how surprised the model is by each token of the right reply: the "
            "negative natural logarithm of the probability it gave that token, on average. 0 is certainty; "
            "{before:.2f} nats means one chance in {chance_before:.1f} per token, {after:.2f} nats one in "
            "{chance_after:.1f}."
        ),
        "reading_interval": (
            "<b>The interval.</b> The held-out rows are a sample. Drawn again 2,000 times with replacement (each row’s "
            "before and after together), the change falls into the interval 95 % of the time, widened for small "
            "numbers of rows. Clear of zero means that the draw of the rows alone does not explain the change. It "
            "covers one training run: another seed would give a slightly different model."
        ),
        "reading_accuracy": (
            "<b>Not accuracy.</b> A lower held-out loss means that replies of this kind and form have become likelier. "
            "It does not count right answers: much of a first drop is the model picking up the form of the replies. "
            "Measure accuracy with questions that have answers before you claim an ability."
        ),
        "next": "What to do next",
    },
    "zh": {
        "html_lang": "zh-CN",
        "title": "用 {rows} 条数据训练之后的变化",
        "sentence": (
            "在模型从未训练过的 {held_out} 条留出数据上，损失从每词元 <b>{before:.3f}</b> 纳特{moved}到 "
            "<b>{after:.3f}</b>：<b>{percent}</b>（95% 区间 {low} 至 {high}），"
            "{abilities} 项能力中有 {clear} 项明确不为零。"
        ),
        "fell": "降",
        "rose": "升",
        "picture": "各项能力训练前后的损失",
        "axis": "留出数据上的损失，纳特/词元（越靠左越好）",
        "legend": "○ 训练前&ensp;● 训练后&ensp;▬ 变化的 95% 区间（从训练前的点量起）",
        "table": "具体数字",
        "ability": "能力",
        "rows": "条数",
        "before": "训练前",
        "after": "训练后",
        "change": "变化",
        "interval": "95% 区间",
        "verdict": "明确不为零？",
        "better": "是，变好",
        "worse": "是，变差",
        "unclear": "否",
        "unknown": "条数太少",
        "replies": "两个回答",
        "asked": "问题",
        "curve": "逐步的训练损失",
        "curve_note": "折线：每一步训练数据的损失。圆点：验证数据的损失。",
        "step": "优化器步数",
        "ran": "运行记录",
        "model": "模型",
        "settings": "设置",
        "versions": "版本",
        "fingerprints": "输入的指纹",
        "times": "用时",
        "reading": "怎样读这份报告",
        "reading_loss": (
            "<b>每词元的纳特。</b>损失表示模型对正确回答的每个词元有多“意外”：它给该词元的概率取自然对数的负值，再求平均。"
            "0 表示完全确定；{before:.2f} 纳特相当于每个词元猜中的机会为 {chance_before:.1f} 分之一，"
            "{after:.2f} 纳特则为 {chance_after:.1f} 分之一。"
        ),
        "reading_interval": (
            "<b>区间。</b>留出数据只是一个样本。把这些数据有放回地重抽 2,000 次（每条的前后成对保留），"
            "变化有 95% 落在此区间内；条数少时区间已相应放宽。“明确不为零”表示仅凭抽到哪些数据解释不了这个变化。"
            "区间只针对这一次训练：换一个随机种子，模型会略有不同。"
        ),
        "reading_accuracy": (
            "<b>不是正确率。</b>留出损失降低，说明这类内容和形式的回答变得更可能，并不等于答对的题更多："
            "最初的下降有很大一部分来自模型学会了回答的形式。在宣称具备某项能力之前，请用有标准答案的题目测正确率。"
        ),
        "next": "接下来",
    },
}

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
margin:0}
@media(max-width:40rem){.pair{grid-template-columns:1fr}}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.5rem;margin:0;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
h3{font-size:.95rem;margin:1.25rem 0 .35rem}
code{font:.9em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--card);border-radius:.3rem;
padding:.1rem .4rem;overflow-wrap:anywhere}
li{margin:.4rem 0}ul{padding-left:1.1rem}
"""


def to_json(results: Results) -> dict[str, Any]:
    """Return results as JSON values; bounds that are not known become null."""
    return without_nan(dataclasses.asdict(results))


def without_nan(value: Any) -> Any:
    """Return JSON values with null in place of what is not a number, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(stored: Mapping[str, Any]) -> Results:
    """Return the results that `to_json` wrote."""
    values = dict(stored)
    values["changes"] = {
        ability: Change(**{name: math.nan if value is None else value for name, value in change.items()})  # type: ignore[arg-type]
        for ability, change in stored["changes"].items()
    }
    values["replies"] = tuple(ReplyPair(**pair) for pair in stored["replies"])
    for name in ("training", "validation", "next_commands"):
        values[name] = tuple((first, second) for first, second in stored[name])
    return Results(**values)


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
        how_to_read(results.changes[OVERALL], texts),
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
    abilities = [change for name, change in changes.items() if name != OVERALL]
    return texts["sentence"].format(
        held_out=f"{overall.num_rows:,}",
        moved=texts["fell" if overall.difference <= 0 else "rose"],
        before=overall.before,
        after=overall.after,
        percent=percent(overall.relative_percent, lang),
        low=percent(overall.relative_low, lang),
        high=percent(overall.relative_high, lang),
        clear=sum(change.is_clear for change in abilities),
        abilities=len(abilities),
    )


def percent(value: float, lang: Lang) -> str:
    """Return a change in percent as the language writes it, in one piece; – where it is not known."""
    return signed(value) + UNITS[lang] if math.isfinite(value) else "–"


def ability_name(ability: str, lang: Lang) -> str:
    """Return the name under which an ability is shown."""
    return ABILITY_NAMES[lang].get(ability, ability.replace("_", " "))


def picture(changes: Mapping[str, Change], lang: Lang) -> str:
    """Return the dumbbell chart with its heading."""
    texts = TEXTS[lang]
    names = {ability: ability_name(ability, lang) for ability in changes}
    svg = abilities_svg(changes, names=names, axis=texts["axis"], label=texts["picture"], unit=UNITS[lang])
    return f'<h2>{texts["picture"]}</h2><p class="note">{texts["legend"]}</p><div class="wide">{svg}</div>'


def verdict_of(change: Change) -> str:
    """Return whether a change is `better`, `worse`, `unclear`, or `unknown` for want of rows."""
    if math.isnan(change.low) or math.isnan(change.high):
        return "unknown"
    if not change.is_clear:
        return "unclear"
    return "better" if change.difference < 0 else "worse"


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


def changes_table(changes: Mapping[str, Change], lang: Lang) -> "Table":
    """Return the losses before and after, per ability, with the interval of the change."""
    from rich.markup import escape as escape_markup
    from rich.table import Table

    texts = TEXTS[lang]
    styles = {"better": BETTER, "worse": WORSE, "unclear": UNCLEAR, "unknown": UNCLEAR}
    result = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("ability", "rows", "before", "after", "change", "interval", "verdict"):
        result.add_column(texts[heading], justify="left" if heading in ("ability", "verdict") else "right")
    for ability in in_order(changes):
        change, verdict = changes[ability], verdict_of(changes[ability])
        interval = (
            f"{signed(change.relative_low)} … {percent(change.relative_high, lang)}" if verdict != "unknown" else "–"
        )
        result.add_row(
            escape_markup(ability_name(ability, lang)),
            f"{change.num_rows:,}",
            f"{change.before:.3f}",
            f"{change.after:.3f}",
            percent(change.relative_percent, lang),
            interval,
            f"[{styles[verdict]}]{texts[verdict]}[/]",
            style="bold" if ability == OVERALL else None,
        )
    return result


def replies(pairs: Sequence[ReplyPair], texts: Mapping[str, str]) -> str:
    """Return the replies side by side."""
    from deft.data.show import visible

    def text(reply: str) -> str:
        return escape(visible(reply.strip(), keep="\n")) or "–"

    blocks = [
        f'<p class="prompt"><b>{texts["asked"]}</b>{escape(pair.prompt)}</p><div class="pair">'
        f'<p class="reply"><b>{texts["before"]}</b>{text(pair.before)}</p>'
        f'<p class="reply"><b>{texts["after"]}</b>{text(pair.after)}</p></div>'
        for pair in pairs
    ]
    return f"<h2>{texts['replies']}</h2>" + "".join(blocks) if blocks else ""


def curve(
    training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]], texts: Mapping[str, str]
) -> str:
    """Return the training loss by step as a line, and the validation losses as dots."""
    points = [(step, loss) for step, loss in (*training, *validation) if math.isfinite(loss)]
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
    line = " ".join("{:.1f},{:.1f}".format(*place(step, loss)) for step, loss in training if math.isfinite(loss))
    parts.append(f'<polyline class="curve" points="{line}"/>')
    for step, loss in validation:
        x, y = place(step, loss)
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{loss:.3f}</title></circle>')
    parts.append(f'<text class="tick" x="{width}" y="{height + 46}" text-anchor="end">{texts["step"]}</text>')
    svg = f'<svg class="chart" viewBox="0 0 {width} {height + 52}" role="img" aria-label="{texts["curve"]}">'
    note = f'<p class="note">{texts["curve_note"]}</p>'
    return f'<h2>{texts["curve"]}</h2>{note}<div class="wide">{svg}{"".join(parts)}</svg></div>'


def how_to_read(overall: Change, texts: Mapping[str, str]) -> str:
    """Return what the figures mean and what they do not."""
    loss = texts["reading_loss"].format(
        before=overall.before,
        after=overall.after,
        chance_before=math.exp(min(overall.before, 700)),
        chance_after=math.exp(min(overall.after, 700)),
    )
    return (
        f"<h2>{texts['reading']}</h2><p>{loss}</p><p>{texts['reading_interval']}</p><p>{texts['reading_accuracy']}</p>"
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
