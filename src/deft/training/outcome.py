"""How a training ends: a run's folder and what was measured go in; table, picture, report and next commands come out.

What `deft train` and `deft quickstart` have in common. Losses of one run are read from its record; nothing is computed
here that needs the model.
"""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding

from deft.files import read_object
from deft.fingerprint import versions
from deft.intervals import Change, paired_changes
from deft.language.choose import Lang
from deft.losses import NO_ABILITY, OVERALL, RowLoss, by_row
from deft.report.charts import abilities_chart, plain_text, save_png
from deft.report.page import was_chosen, write_report
from deft.report.results import ReplyPair, Results
from deft.report.tables import changes_table
from deft.report.texts import ENDING_TEXTS
from deft.report.values import abilities_clear, percent, readable_time, shown_value
from deft.screen import say
from deft.training.checkpoint import checkpoint_step
from deft.training.config import TrainConfig
from deft.training.record import read_metrics

CHAT_PAGE = Path("chat_gradio.py")


def show_trained(
    folder: Path, config: TrainConfig, console: Console, *, lang: Lang, time_s: float, resumed: bool
) -> None:
    """Say what a finished run of `deft train` changed, write its picture and report, and say where to go from here.

    Without rows that were measured before and after, the training loss has to do, and there is no report.
    """
    texts = ENDING_TEXTS[lang]
    identity = read_object(folder / "run.json")
    changes = changes_of(folder)
    commands = after_training(folder, config, lang)
    cost = texts["cost_resumed" if resumed else "cost"].format(
        rows=f"{identity['num_train_rows']:,}", time=readable_time(time_s)
    )
    if not changes:
        say_next(console, commands, lang)
        losses = [line["loss"] for line in read_metrics(folder) if "loss" in line]
        if losses:
            console.print()
            say(console, "{line}", line=texts["training_loss"].format(first=losses[0], last=losses[-1]), fold=True)
        say(console, "  {cost}", cost=cost)
        return
    results = collect(
        folder,
        config,
        changes,
        fingerprints={name: identity[f"{name}_rows"] for name in ("train", "valid")} | {"model": identity["model"]},
        stage_times_s={},
        next_commands=after_training(folder, config, lang, shown=shown_value),
    )
    write_outcome(folder, results, lang)
    console.print(Padding(changes_table(changes, lang), (1, 0, 0, 2)))
    say_files(console, folder, lang)
    say_next(console, commands, lang)
    say_result(console, changes, lang)
    say(console, "  {cost}", cost=cost)
    if was_chosen(results.validation):
        say(console, "  {note}", note=texts["chosen"], style="dim", fold=True)


# --- what changed ---------------------------------------------------------------------------------------------------


def changes_of(folder: Path) -> dict[str, Change]:
    """Return how the loss of a run's validation rows changed, by ability, from before training to the best checkpoint.

    Empty where the run did not measure both. A single ability is all rows, and stands as such.
    """
    measured = losses_by_step(folder)
    best = folder / "best"
    after = measured.get(checkpoint_step(best.resolve())) if best.exists() else None
    if 0 not in measured or after is None:
        return {}
    changes = paired_changes(measured[0], after)
    return changes if len(changes) > 2 else {OVERALL: changes[OVERALL]}


def losses_by_step(folder: Path) -> dict[int, list[RowLoss]]:
    """Return the losses of the validation rows by the optimizer step after which they were measured, 0 for before.

    Each conversation counts once, however often it occurs among the rows.
    """
    import pyarrow.parquet as pq

    file = folder / "rows.parquet"
    if not file.exists():
        return {}
    measured: dict[int, list[dict[str, Any]]] = {}
    for row in pq.read_table(file).to_pylist():
        if row["split"] == "valid" and row.get("step", -1) >= 0:  # rows of earlier versions name no step
            measured.setdefault(row["step"], []).append(row)
    return {step: evaluated_rows(rows) for step, rows in measured.items()}


def evaluated_rows(rows: Sequence[Mapping[str, Any]]) -> list[RowLoss]:
    """Return rows of a run's record as they are compared; an ability may not go by the name of all rows together."""
    found = []
    for row in rows:
        ability = row["ability"] or NO_ABILITY
        ability = f"{OVERALL} (ability)" if ability == OVERALL else ability
        key = f"{row['id']} {ability}"
        found.append(
            RowLoss(
                id=key,
                ability=ability,
                nll=row["nll"],
                num_supervised=row["num_supervised"],
                weight=row.get("weight"),  # in records of earlier versions all weights are 1, and each row is whole
                part=row.get("part", 0),
            )
        )
    return by_row(found)


# --- what is written ------------------------------------------------------------------------------------------------


def collect(
    folder: Path,
    config: TrainConfig,
    changes: Mapping[str, Change],
    *,
    replies: Sequence[ReplyPair] = (),
    fingerprints: Mapping[str, str],
    stage_times_s: Mapping[str, float],
    next_commands: Sequence[tuple[str, str]],
) -> Results:
    """Put together what the report of a run shows."""
    metrics, identity = read_metrics(folder), read_object(folder / "run.json")
    settings = {
        name: shown_value(value)
        for name, value in dataclasses.asdict(config).items()
        if name not in ("model", "output_dir", "resume_training", "trainer") and value not in (None, ())
        if not (name.startswith("lora_") and config.method == "full")
    }
    if identity.get("held_out"):
        settings["valid"] = f"{len(identity['held_out'])} rows held out of those to train on"
    return Results(
        model=shown_value(config.model),
        num_train_rows=identity["num_train_rows"],
        changes=changes,
        replies=tuple(replies),
        training=tuple((line["step"], line["loss"]) for line in metrics if "loss" in line),
        validation=tuple((line["step"], line["eval_loss"]) for line in metrics if "eval_loss" in line),
        settings=settings,
        versions=versions(),
        fingerprints=fingerprints,
        stage_times_s=stage_times_s,
        next_commands=next_commands,
    )


def write_outcome(folder: Path, results: Results, lang: Lang) -> None:
    """Write picture and report into a run's folder."""
    overall = results.changes[OVERALL]
    title = f"{results.model}, {results.num_train_rows} rows: loss {percent(overall.relative_percent, 'en')}"
    with plain_text():
        save_png(abilities_chart(results.changes, title=title), folder / "abilities.png")
    write_report(folder, results, lang)


# --- what is said ---------------------------------------------------------------------------------------------------


def say_files(console: Console, folder: Path, lang: Lang) -> None:
    """Say where report and picture lie."""
    texts = ENDING_TEXTS[lang]
    console.print()
    for name, file in (("report", "report.html"), ("picture", "abilities.png")):
        say(console, "  {name}{path}", name=texts[name], path=folder / file)


def say_next(console: Console, commands: Sequence[tuple[str, str]], lang: Lang) -> None:
    """Say what to type next, and what each command does."""
    say(console, "\n[bold]{next}[/]", next=ENDING_TEXTS[lang]["next"])
    for command, what in commands:
        say(console, "  {what}\n    [cyan]{command}[/]", what=what, command=command)


def say_result(console: Console, changes: Mapping[str, Change], lang: Lang) -> None:
    """Say the change over all rows in a sentence, marked if it is clearly for the better."""
    texts, overall = ENDING_TEXTS[lang], changes[OVERALL]
    summary = texts["summary"].format(
        held_out=overall.num_rows,
        before=overall.before,
        after=overall.after,
        percent=percent(overall.relative_percent, lang),
        low=percent(overall.relative_low, lang),
        high=percent(overall.relative_high, lang),
    )
    summary += abilities_clear(changes, lang)
    console.print()
    template = "[green]✓[/] {summary}" if overall.high < 0 else "[yellow]·[/] {summary}"
    say(console, template, summary=summary, fold=True)


def best_of(folder: Path, runs: Path) -> Path:
    """Return the path of a run's best checkpoint as one types it; the run is named `latest` while it is."""
    latest = runs / "latest"
    return (latest if latest.exists() and latest.resolve() == folder.resolve() else folder) / "best"


def after_training(
    folder: Path, config: TrainConfig, lang: Lang, *, shown: Callable[[Any], str] = str
) -> list[tuple[str, str]]:
    """Return what to type after `deft train`, and what each command does; `shown` turns a path into text."""
    texts = ENDING_TEXTS[lang]
    best = shlex.quote(shown(best_of(folder, config.output_dir)))
    chat = [(f"deft chat {best}", texts["chat"])]
    if CHAT_PAGE.is_file():
        chat.append((f"python {CHAT_PAGE} --model_name_or_path {best}", texts["page"]))
    out = (f"deft export {best} exported", texts["export"])
    if config.method != "full":
        out = (f"deft merge {best} merged", texts["merge"])
    runs = "" if config.output_dir == Path("runs") else f" --runs {shlex.quote(shown(config.output_dir))}"
    return [*chat, out, (f"deft runs list{runs}", texts["runs"])]
