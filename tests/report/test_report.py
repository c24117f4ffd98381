"""The report: its figures are those computed, and it needs and reveals nothing outside itself."""

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding

from deft.files import write_text
from deft.intervals import Change, paired_changes
from deft.losses import RowLoss
from deft.report.charts import COLOURS, abilities_chart, losses_chart, plain_text, save_png
from deft.report.page import report_html, write_report
from deft.report.results import ReplyPair, Results, from_json, to_json
from deft.report.tables import changes_table
from deft.report.texts import CHART_TEXTS, ENDING_TEXTS, TERMINAL_TEXTS, TEXTS
from deft.report.values import abilities_clear, in_order, readable_time, shown_value
from deft.training.record import draw_losses

VOID = {"meta", "br"}


@pytest.fixture(autouse=True)
def two_rows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have abilities of two rows get intervals, which can be told by hand."""
    monkeypatch.setattr("deft.intervals.FEWEST_DEGREES", 1)


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, and by its own name. Keeps attributes, text and table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "path", "only SVG has elements that close themselves"
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def rows(losses: dict[str, list[float]]) -> list[RowLoss]:
    return [
        RowLoss(id=f"{ability}{number}", ability=ability, nll=10 * loss, num_supervised=10)
        for ability, values in losses.items()
        for number, loss in enumerate(values)
    ]


def changes() -> dict[str, Change]:
    before = {"biology": [3.0, 3.4, 3.2], "code": [1.0, 1.5, 1.2], "creative_writing": [4.0], "诗<词>": [2.0, 2.2, 2.4]}
    after = {"biology": [1.5, 1.6, 1.7], "code": [1.4, 1.1, 1.3], "creative_writing": [3.0], "诗<词>": [2.5, 2.8, 2.9]}
    return paired_changes(rows(before), rows(after))


def results(**other: Any) -> Results:
    values: dict[str, Any] = {
        "model": "smollm2-135m",
        "num_train_rows": 1240,
        "changes": changes(),
        "replies": (
            ReplyPair(prompt="1 < 2 吗？", before="<script>alert('坏')</script>", after="对，1 < 2。\n答案：正确\x07"),
            ReplyPair(prompt="写一句诗", before="", after="月落乌啼霜满天"),
        ),
        "training": tuple((step, 3.0 - 0.1 * step) for step in range(1, 11)),
        "validation": ((10, 2.123),),
        "settings": {"batch_size": 8, "learning_rate": 1e-4},
        "versions": {"torch": "2.13.0"},
        "fingerprints": {"train": "0123456789abcdef"},
        "stage_times_s": {"训练": 151.4},
        "next_commands": (("deft chat runs/latest/best", "talk & 聊天"),),
    }
    return Results(**(values | other))


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_is_whole_and_shows_the_computed_figures(lang: Any) -> None:
    page = Page(report_html(results(), lang))
    computed = changes()
    lines = {line[0]: line for line in page.cells[1:]}
    shown = {
        "en": ("biology", "code", "creative writing", "诗<词>", "all rows"),
        "zh": ("生物", "代码", "创意写作", "诗<词>", "全部"),
    }
    for ability, name in zip(("biology", "code", "creative_writing", "诗<词>", "all"), shown[lang], strict=True):
        change, line = computed[ability], lines[name]
        assert line[1] == str(change.num_rows)
        assert [float(cell) for cell in line[2:4]] == pytest.approx([change.before, change.after], abs=5e-4)
        assert number(line[4]) == pytest.approx(change.relative_percent, abs=0.05)
        if not math.isnan(change.low):
            low, high = (number(part) for part in line[5].split("…"))
            assert (low, high) == pytest.approx((change.relative_low, change.relative_high), abs=0.05)
    texts = TEXTS[lang]
    assert lines[shown[lang][0]][6] == texts["better"]
    assert lines[shown[lang][1]][6] == texts["unclear"]
    assert lines[shown[lang][2]][5:] == ["–", texts["unknown"]]
    assert lines[shown[lang][3]][6] == texts["worse"]
    assert [line[0] for line in page.cells][-1] == shown[lang][4]


def number(cell: str) -> float:
    return float(cell.replace("−", "-").replace("%", "").strip())


def test_the_sentence_says_what_happened() -> None:
    page = Page(report_html(results(), "en"))
    overall = changes()["all"]
    percent = f"{overall.relative_percent:+.1f}".replace("-", "−")
    assert (
        f"fell from {overall.before:.3f} to {overall.after:.3f} nats per token: {percent}\xa0% (95\xa0% interval"
        in page.text
    )
    assert "clear of zero in 2 of 4 abilities" in page.text
    assert abilities_clear(changes(), "zh") == "，4 项能力中有 2 项变化显著（区间不含 0）"
    clear = {name: change for name, change in changes().items() if change.is_clear}
    assert abilities_clear(clear, "zh") == "，2 项能力的变化均显著（区间不含 0）"
    assert abilities_clear({"all": changes()["all"]}, "zh") == ""
    single = paired_changes(rows({"史": [1.0], "诗": [2.0]}), rows({"史": [0.5], "诗": [1.0]}))
    assert abilities_clear(single, "zh") == "，各项能力的条数太少，无法单独给出区间"
    assert abilities_clear(single, "en") == ", with too few rows in each ability for intervals of their own"
    assert "What training on 1,240 rows changed" in page.text
    assert "损失从每词元" in Page(report_html(results(), "zh")).text
    worse = paired_changes(rows({"史": [1.0, 1.1]}), rows({"史": [2.0, 2.1]}))
    assert "rose from" in Page(report_html(results(changes=worse), "en")).text


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_loads_nothing(lang: Any) -> None:
    html = report_html(results(), lang)
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert not [name for _, name, _ in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert not [tag for tag, _, _ in page.attributes if tag in ("script", "link", "iframe", "img")]
    assert "<script" not in html


def test_replies_are_text_and_control_characters_are_shown() -> None:
    page = Page(report_html(results(), "zh"))
    assert "<script>alert('坏')</script>" in page.text
    assert "对，1 < 2。\n答案：正确\\x07" in page.text
    assert "训练前–" in page.text  # an empty reply


def test_nothing_of_others_drives_the_screen_or_breaks_the_page(tmp_path: Path) -> None:
    """Names, prompts, verdicts and settings come from files of others; spaces and joined emoji are texts as others."""
    name, pair = (
        "历\x1b[31m史\u202e\ud800\ufffe",
        ReplyPair(prompt="问\x00\u202e：\u3000👩\u200d💻", before="\ud800", after="答"),
    )
    named = {name: changes()["biology"], "all": changes()["all"]}
    write_report(tmp_path, results(changes=named, replies=(pair,), settings={"名\x07": "\x1b[2J值"}), "zh")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e\ufffe]", html)
    page = Page(html)
    assert page.cells[1][0] == "历\\x1b[31m史\\u202e\\ud800\\ufffe"
    assert "问\\x00\\u202e：\u3000👩\u200d💻" in page.text
    assert "名\\x07\\x1b[2J值" in page.text
    assert not [line for line in printed(named, "zh") if "\x1b" in line]


def test_a_name_that_is_a_colour_stays_a_name() -> None:
    html = report_html(results(changes={COLOURS["better"]: changes()["biology"], "all": changes()["all"]}), "zh")
    assert f">{COLOURS['better']}</text>" in html


def test_no_path_of_the_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_value(tmp_path / "数据" / "full") == "数据/full"
    assert shown_value("/home/someone/models/secret") == "secret"
    assert shown_value((Path("examples/en"), Path("/srv/x/train"))) == "examples/en, train"
    settings = {"train": (tmp_path / "data", Path("/home/someone/data"))}
    html = report_html(results(settings=settings, model=shown_value("/home/someone/m")), "en")
    assert "/home" not in html
    assert str(tmp_path) not in html
    assert "data, data" in html


def test_both_languages_say_the_same_things() -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for name, text in TEXTS["en"].items():
        fields = set(re.findall(r"\{(\w+)", text))
        assert fields == set(re.findall(r"\{(\w+)", TEXTS["zh"][name])), name
        if name != "html_lang":
            assert re.search(r"[一-鿿]", TEXTS["zh"][name]), name
            assert not re.search(r"[一-鿿]", text), name
    assert TERMINAL_TEXTS["en"].keys() == TERMINAL_TEXTS["zh"].keys() <= TEXTS["en"].keys()
    for both in (ENDING_TEXTS, CHART_TEXTS):
        fields = [{name: set(re.findall(r"\{(\w+)", text)) for name, text in both[lang].items()} for lang in both]
        assert fields[0] == fields[1]


def test_the_chart_places_points_where_the_losses_are() -> None:
    ordered = [changes()[ability] for ability in in_order(changes())]
    with plain_text():
        drawn = [line for line in abilities_chart(changes()).axes[0].lines if line.get_marker() == "o"]
    places = [(float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in drawn]
    losses = [(loss, row) for row, change in enumerate(ordered) for loss in (change.before, change.after)]
    for found, expected in zip(places, losses, strict=True):
        assert found == pytest.approx(expected)
    tones = [line.get_color() for line in drawn[1::2]]
    assert tones == [COLOURS[tone] for tone in ("better", "unclear", "unclear", "worse", "better")]


def test_a_chart_on_a_page_is_text_and_takes_its_colours_from_the_page() -> None:
    html = report_html(results(), "zh")
    [abilities, losses] = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    for word in ("生物", "诗&lt;词&gt;", "全部", "训练前", "变化的 95% 区间（从训练前的点量起）"):
        assert f">{word}</text>" in abilities
    assert {"var(--better)", "var(--worse)", "var(--unclear)", "var(--paper)"} <= set(
        re.findall(r"var\(--\w+\)", abilities)
    )
    assert ">训练数据（每一步）</text>" in losses
    for chart in (abilities, losses):
        assert not re.search(r'#[0-9a-f]{6}| id="|href', chart), "colours of the page, and nothing that two could share"
    assert html == report_html(results(), "zh"), "the same results, the same bytes"


def test_order_is_most_improved_first_and_all_last() -> None:
    assert in_order(changes()) == ["biology", "creative_writing", "code", "诗<词>", "all"]


def test_results_survive_json() -> None:
    import json

    stored = json.loads(json.dumps(to_json(results()), allow_nan=False))
    found = from_json(stored)
    assert math.isnan(found.changes["creative_writing"].low)
    assert found.changes["诗<词>"] == changes()["诗<词>"]
    assert report_html(found, "zh") == report_html(results(), "zh")


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    path = write_report(tmp_path, results(), "zh")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == report_html(results(), "zh")
    assert '<html lang="zh-CN">' in path.read_text(encoding="utf-8")


def test_without_replies_or_steps_their_sections_are_left_out() -> None:
    page = Page(report_html(results(replies=(), training=(), validation=(), next_commands=()), "en"))
    for name in ("replies", "curve", "next"):
        assert TEXTS["en"][name] not in page.text
    assert TEXTS["en"]["reading"] in page.text


def printed(changed: dict[str, Change], lang: Any, width: int = 80) -> list[str]:
    """Return the lines of the terminal's table, as it stands in a quickstart."""
    screen = io.StringIO()
    Console(width=width, file=screen).print(Padding(changes_table(changed, lang), (0, 0, 0, 2)))
    return screen.getvalue().splitlines()


@pytest.mark.parametrize(("lang", "shown"), [("en", "biology"), ("zh", "生物")])
def test_the_terminal_shows_the_same_figures(lang: Any, shown: str) -> None:
    line = next(line for line in printed(changes(), lang) if shown in line)
    change = changes()["biology"]
    low, high = (f"{bound:+.1f}".replace("-", "−") for bound in (change.relative_low, change.relative_high))
    assert line.split()[1:4] == ["3", f"{change.before:.3f}", f"{change.after:.3f}"]
    assert line.split()[-4:] == [low, "…", high, "✓"]


def test_the_terminal_says_the_verdict_in_a_word() -> None:
    marks = {"en": ["✓", "–", "no", "✓ worse", "✓"], "zh": ["✓", "–", "否", "✓ 变差", "✓"]}
    for lang, expected in marks.items():
        lines = printed(changes(), lang)[-5:]
        assert [line.rstrip().rsplit("  ", 1)[-1] for line in lines] == expected


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_table_fits_80_columns_with_its_numbers_aligned(lang: Any) -> None:
    """The longest name, four-digit counts, and intervals of every width that occurs."""
    whole = changes()
    wide = {
        "creative_writing": replace(whole["biology"], num_rows=1240),
        "code": replace(whole["诗<词>"], relative_percent=104.9, relative_low=-3.2, relative_high=212.6),
        "ethics": whole["creative_writing"],
        "all": replace(whole["all"], num_rows=1240, before=10.0),
    }
    lines = printed(wide, lang)
    heading_lines = {"en": 2, "zh": 1}[lang]
    assert len(lines) == heading_lines + len(wide)
    assert max(map(cell_len, lines)) <= 80
    body = lines[heading_lines:]
    bounds = [line for line in body if "…" in line]
    assert "95" in lines[heading_lines - 1]
    assert not [line for line in bounds if "%" in line[line.index("…") - 8 :]]
    places = [[cell_len(line[: found.start()]) for found in re.finditer(r"\.", line)] for line in bounds]
    assert places[0] == places[1] == places[2]
    assert all(len(place) == 5 for place in places)


def test_a_narrow_terminal_folds_names_not_numbers() -> None:
    lines = printed(changes(), "en", width=70)
    assert not [line for line in lines[2:] if line.rstrip().endswith("…")]
    assert sum(f"{changes()['creative_writing'].before:.3f}" in line for line in lines) == 1


def draw_abilities(path: Path, named: dict[str, Change], *, title: str) -> None:
    with plain_text():
        save_png(abilities_chart(named, title=title), path)


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    named = {("poetry" if name == "诗<词>" else name): change for name, change in changes().items()}
    draw_abilities(tmp_path / "abilities.png", named, title="240 rows: loss −45.1 %")
    assert (tmp_path / "abilities.png").read_bytes().startswith(b"\x89PNG")


NAMES = ["$$", "$\\frac{$", "\\", "_下划线", "甲\n乙\x1b", "长" * 3000, "", "<b>&"]
"""Names of abilities that a figure's text could take for a formula, a command, or nothing."""


def test_any_name_of_an_ability_can_be_drawn(tmp_path: Path) -> None:
    named = {name: changes()["biology"] for name in NAMES} | {"all": changes()["all"]}
    draw_abilities(tmp_path / "abilities.png", named, title="$$ 标题 $\\frac{$")
    lines = [{"step": 0, "eval_loss": 2.0} | {f"eval_loss_{name}": 2.0 for name in NAMES}]
    write_text(tmp_path / "metrics.jsonl", json.dumps(lines[0]) + "\n")
    draw_losses(tmp_path)
    with plain_text():
        figure = losses_chart([], [(0, 2.0)], by_ability={name: [(0, 2.0)] for name in NAMES})
        shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == ["–", "$$", "$\\frac{$", "<b>&", "\\", "下划线", "甲\\n乙\\x1b", "长" * 39 + "…", "validation, all"]


def test_thousands_of_abilities_still_make_a_picture(tmp_path: Path) -> None:
    """Of more than 40, those with the most rows are drawn; a row for each of 2,000 would be too large a file."""
    many = {f"能力{n}": replace(changes()["biology"], num_rows=n) for n in range(2000)} | {"all": changes()["all"]}
    draw_abilities(tmp_path / "abilities.png", many, title="很多")
    with plain_text():
        labels = [label.get_text() for label in abilities_chart(many, title="很多").axes[0].get_yticklabels()]
    assert sorted(labels) == sorted([*(f"能力{n}" for n in range(1960, 2000)), "all rows"])


@pytest.mark.parametrize("name", ["生物", "长" * 3000, "x" * 3000])
def test_a_chart_keeps_room_for_its_points_and_its_texts(name: str) -> None:
    with plain_text():
        figure = abilities_chart({name: changes()["biology"], "all": changes()["all"]})
        figure.draw_without_rendering()
        assert figure.axes[0].get_window_extent().width > 2 * figure.dpi, "inches"
        texts = [*figure.axes[0].get_yticklabels(), *figure.axes[0].texts, *figure.legends[0].get_texts()]
        for box in [text.get_window_extent() for text in texts]:
            assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("loss", [0.0, 2.0, 1e-12, 1e6])
def test_losses_that_are_all_equal_make_a_report(tmp_path: Path, loss: float) -> None:
    rows = [RowLoss(id=str(n), ability="数学", nll=4 * loss, num_supervised=4) for n in range(3)]
    same = paired_changes(rows, rows)
    steps = tuple((step, loss) for step in range(4))
    html = report_html(results(changes=same, training=steps, validation=steps), "zh")
    assert "nan" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    draw_abilities(tmp_path / "abilities.png", same, title="一样")


def test_a_loss_that_is_no_number_is_left_out_of_the_pictures(tmp_path: Path) -> None:
    broken = replace(changes()["biology"], after=math.nan, relative_percent=math.nan)
    named = {"数学": broken, "biology": changes()["biology"], "all": changes()["all"]}
    draw_abilities(tmp_path / "abilities.png", named, title="坏")
    html = report_html(results(changes=named, training=((1, math.nan), (2, 2.0)), validation=((2, math.inf),)), "zh")
    assert not re.search(r"\b(nan|inf)\b", "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)))


def test_times_as_people_say_them() -> None:
    assert [readable_time(s) for s in (7.6, 59.6, 151.4, 3900)] == ["8 s", "1 min 0 s", "2 min 31 s", "1 h 5 min"]
