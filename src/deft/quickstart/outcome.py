"""What a quickstart found: put together, written into the run's folder, and shown with what to do next."""

import dataclasses
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deft.evaluate.interval import Change
from deft.evaluate.loss import OVERALL, write_rows
from deft.quickstart.existing import FILE_NAME
from deft.quickstart.plan import Plan
from deft.quickstart.stages import Before
from deft.quickstart.teller import Teller
from deft.report.page import write_report
from deft.report.results import ReplyPair, Results, from_json, to_json
from deft.report.terminal import changes_table
from deft.report.texts import Lang
from deft.report.values import percent, readable_time, shown_value
from deft.rundir import fingerprint, read_object, remove, versions, write_json

ACTIVATE = Path(".venv/bin/activate")
"""What `make install` leaves for a shell to enter the project's environment."""


def collect(
    plan: Plan,
    folder: Path,
    changes: Mapping[str, Change],
    pairs: Sequence[ReplyPair],
    *,
    before: Before,
    tell: Teller,
) -> Results:
    """Put together what the report shows."""
    from deft.train.record import read_metrics

    metrics = read_metrics(folder)
    settings = {
        name: shown_value(value)
        for name, value in dataclasses.asdict(plan.config).items()
        if name not in ("model", "output_dir", "resume_training", "trainer") and value is not None
        if not (name.startswith("lora_") and plan.config.method == "full")
    }
    return Results(
        model=shown_value(plan.config.model),
        num_train_rows=before.identity["num_train_rows"],
        changes=changes,
        replies=tuple(pairs),
        training=tuple((line["step"], line["loss"]) for line in metrics if "loss" in line),
        validation=tuple((line["step"], line["eval_loss"]) for line in metrics if "eval_loss" in line),
        settings=settings,
        versions=versions(),
        fingerprints={
            "train": before.identity["train_rows"],
            "valid": before.identity["valid_rows"],
            "test": fingerprint(sorted(row.id for row in before.rows)),
            "model": before.identity["model"],
            "quickstart": plan.key,
        },
        stage_times_s=tell.named_times_s(),
        next_commands=next_commands(plan, folder, tell, shown=shown_value),
    )


def finish(plan: Plan, folder: Path, results: Results, before: Before, tell: Teller) -> None:
    """Write picture, report and `quickstart.json` (last, as the sign that all is there), and print where to go."""
    from deft.evaluate.figure import draw_abilities

    overall = results.changes[OVERALL]
    title = f"{results.model}, {results.num_train_rows} rows: loss {percent(overall.relative_percent, 'en')}"
    draw_abilities(folder / "abilities.png", results.changes, title=title)
    write_report(folder, results, plan.lang)
    write_rows(folder / "rows_before.jsonl", before.rows)
    for state in folder.glob("checkpoint-*/optimizer.pt"):  # twice the weights, and of use only to go on training
        remove(state)
    stored = {
        "key": plan.key,
        "lang": plan.lang,
        "total_time_s": tell.total_s(),
        "resumed": bool(tell.taken_up),
        "results": to_json(results),
    }
    write_json(folder / FILE_NAME, stored)
    remove(plan.parts)
    say_where_to_go(plan, folder, results, tell, stored=stored)


def show_finished(folder: Path, plan: Plan, tell: Teller) -> None:
    """Show a finished quickstart again; its report is written again where it is missing."""
    stored = read_object(folder / FILE_NAME)
    results = from_json(stored["results"])
    if not (folder / "report.html").exists():
        write_report(folder, results, plan.lang)
    heading = tell.text("stored", folder=folder)
    tell.console.print(heading, style="bold", markup=False, highlight=False, soft_wrap=True)
    tell.console.print(Padding(changes_table(results.changes, plan.lang), (1, 0, 0, 2)))
    show_replies(results.replies, tell)
    say_where_to_go(plan, folder, results, tell, stored=stored)
    tell.say("again", style="dim", lang=lang_flag(plan.lang))


def show_replies(pairs: Sequence[ReplyPair], tell: Teller) -> None:
    """Print each prompt with its two replies."""
    from deft.errors import visible

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for pair in pairs:
        table.add_row(tell.text("asked"), Text(pair.prompt), style="bold")
        table.add_row(tell.text("was"), Text(visible(pair.before, keep="\n") or "–"))
        table.add_row(tell.text("now"), Text(visible(pair.after, keep="\n") or "–"))
        table.add_row("", "")
    tell.console.print(Padding(table, (1, 0, 0, 2)))


def say_where_to_go(plan: Plan, folder: Path, results: Results, tell: Teller, *, stored: Mapping[str, Any]) -> None:
    """Print report, next commands, and the result."""
    console, overall = tell.console, results.changes[OVERALL]
    files = tell.text("files", report=folder / "report.html", picture=folder / "abilities.png")
    for line in files.splitlines():
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n[bold]{tell.text('next')}[/]")
    activate = [(f"source {ACTIVATE}", tell.text("activate"))] if needs_activation() else []
    for command, what in (*activate, *next_commands(plan, folder, tell)):
        console.print(f"  {what}\n    [cyan]{escape(command)}[/]", highlight=False, soft_wrap=True)
    abilities = [change for name, change in results.changes.items() if name != OVERALL]
    summary = tell.text(
        "summary",
        held_out=overall.num_rows,
        before=overall.before,
        after=overall.after,
        percent=percent(overall.relative_percent, plan.lang),
        low=percent(overall.relative_low, plan.lang),
        high=percent(overall.relative_high, plan.lang),
        clear=sum(change.is_clear for change in abilities),
        abilities=len(abilities),
    )
    cost_text = "cost_resumed" if stored["resumed"] else "cost"
    cost = tell.text(cost_text, rows=results.num_train_rows, time=readable_time(stored["total_time_s"]))
    mark = "[green]✓[/]" if overall.high < 0 else "[yellow]·[/]"
    console.print(f"\n{mark} {summary}\n  {cost}", highlight=False, soft_wrap=True)


def needs_activation() -> bool:
    """Say whether `deft` is installed in the project's environment only, which this shell has not entered."""
    return shutil.which("deft") is None and ACTIVATE.exists()


def next_commands(
    plan: Plan, folder: Path, tell: Teller, *, shown: Callable[[Any], str] = str
) -> tuple[tuple[str, str], ...]:
    """Return what to type next, and what each does; the run is named `latest` while it is.

    `shown` turns a path or a model's name into text: as it is for the terminal, without the machine's folders for a
    report.
    """
    latest = plan.runs / "latest"
    best = (latest if latest.exists() and latest.resolve() == folder.resolve() else folder) / "best"
    run, model = (shlex.quote(shown(value)) for value in (best, plan.config.model))
    return (
        (f"deft chat {run}", tell.text("chat")),
        (f"python chat_gradio.py --model_name_or_path {run}", tell.text("page")),
        (f"deft data audit my_data.jsonl --model {model}", tell.text("audit")),
        (f"deft train --model {model} --train my_data.jsonl", tell.text("train")),
    )


def lang_flag(lang: Lang) -> str:
    """Return the flag that repeats the language, where it is not the default."""
    return "" if lang == "en" else f" --lang {lang}"
