"""The report of a run: one HTML file that needs nothing else, to look at, keep, and send to others.

In: what was measured. Out: `report.html`, in English or Chinese, for light and dark screens. It names no path of the
machine outside the working folder.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from deft.files import write_text
from deft.intervals import Change
from deft.language.choose import Lang
from deft.losses import OVERALL
from deft.report.charts import abilities_chart, finite, losses_chart, plain_text, svg_element
from deft.report.render import filled, render
from deft.report.results import ReplyPair, Results
from deft.report.texts import ENDING_TEXTS, TEXTS
from deft.report.values import (
    abilities_clear,
    ability_name,
    in_order,
    percent,
    readable_time,
    shown_value,
    signed,
    tone_of,
    verdict_of,
)

FILE_NAME = "report.html"
COLUMNS = ("ability", "rows", "before", "after", "change", "interval", "verdict")


def write_report(folder: Path, results: Results, lang: Lang = "en") -> Path:
    """Write `report.html` into `folder`, whole or not at all, and return its path."""
    path = folder / FILE_NAME
    write_text(path, report_html(results, lang))
    return path


def report_html(results: Results, lang: Lang = "en") -> str:
    """Return the whole report."""
    texts = TEXTS[lang]
    return render(
        "run.html.j2",
        texts=texts,
        title=texts["title"].format(rows=f"{results.num_train_rows:,}"),
        sentence=result_sentence(results.changes, lang),
        abilities_svg=abilities_svg(results.changes, lang),
        headings=[texts[name] for name in COLUMNS],
        rows=[table_row(ability, results.changes[ability], lang) for ability in in_order(results.changes)],
        replies=[shown_pair(pair, texts) for pair in results.replies],
        losses_svg=losses_svg(results.training, results.validation, lang),
        reading=how_to_read(results, lang),
        next_commands=results.next_commands,
        groups=what_ran(results, texts),
    )


def result_sentence(changes: Mapping[str, Change], lang: Lang) -> Markup:
    """Return the result in one sentence, with bold figures."""
    texts, overall = TEXTS[lang], changes[OVERALL]
    return filled(
        texts["sentence"],
        held_out=f"{overall.num_rows:,}",
        moved=texts["fell" if overall.difference <= 0 else "rose"],
        before=overall.before,
        after=overall.after,
        percent=percent(overall.relative_percent, lang),
        low=percent(overall.relative_low, lang),
        high=percent(overall.relative_high, lang),
        of_abilities=abilities_clear(changes, lang),
    )


def abilities_svg(changes: Mapping[str, Change], lang: Lang) -> Markup:
    """Return the chart of what each ability gained."""
    with plain_text():
        return Markup(svg_element(abilities_chart(changes, lang), label=TEXTS[lang]["picture"]))


def losses_svg(
    training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]], lang: Lang
) -> Markup | None:
    """Return the chart of the losses by step; None where no step was logged."""
    if not (finite(training) or finite(validation)):
        return None
    with plain_text():
        return Markup(svg_element(losses_chart(training, validation, lang), label=TEXTS[lang]["curve"]))


def table_row(ability: str, change: Change, lang: Lang) -> dict[str, Any]:
    """Return the figures of an ability as its row of the table shows them."""
    verdict = verdict_of(change)
    between = f"{signed(change.relative_low)} … {percent(change.relative_high, lang)}" if verdict != "unknown" else "–"
    losses = (f"{change.before:.3f}", f"{change.after:.3f}")
    figures = (f"{change.num_rows:,}", *losses, percent(change.relative_percent, lang), between)
    return {
        "cells": (ability_name(ability, lang), *figures, TEXTS[lang][verdict]),
        "tone": tone_of(change),
        "is_total": ability == OVERALL,
    }


def shown_pair(pair: ReplyPair, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return a prompt with the replies before and after."""
    replies = (("before", pair.before, pair.before_verdict), ("after", pair.after, pair.after_verdict))
    return {
        "prompt": pair.prompt,
        "replies": [(texts[when], reply.strip(), verdict) for when, reply, verdict in replies],
    }


def was_chosen(validation: Sequence[tuple[int, float]]) -> bool:
    """Say whether the rows that measured the change, from step 0 on, also chose the best of several checkpoints."""
    return len(validation) > 2 and validation[0][0] == 0


def how_to_read(results: Results, lang: Lang) -> list[Markup]:
    """Return what the figures mean and what they do not, a paragraph each."""
    texts, overall = TEXTS[lang], results.changes[OVERALL]
    loss = filled(
        texts["reading_loss"],
        before=overall.before,
        after=overall.after,
        chance_before=math.exp(min(overall.before, 700)),
        chance_after=math.exp(min(overall.after, 700)),
    )
    chosen = f" {ENDING_TEXTS[lang]['chosen']}" if was_chosen(results.validation) else ""
    return [loss, Markup(texts["reading_interval"] + chosen), Markup(texts["reading_accuracy"])]


def what_ran(results: Results, texts: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return settings, versions, fingerprints and times: what another would need to repeat the run."""
    groups: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("settings", {texts["model"]: results.model, **results.settings}),
        ("fingerprints", results.fingerprints),
        ("versions", results.versions),
        ("times", {stage: readable_time(seconds) for stage, seconds in results.stage_times_s.items()}),
    )
    return [
        (texts[heading], {name: shown_value(value) for name, value in values.items()})
        for heading, values in groups
        if values
    ]
