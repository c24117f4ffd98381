"""`deft runs`: the folders of runs go in; a list, one run's settings and losses, runs side by side come out."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter
from rich.table import Table
from rich.text import Text

from deft.errors import UserError, did_you_mean, visible
from deft.files import read_object
from deft.language.catalogue import translated, worded
from deft.screen import console, say
from deft.training.checkpoint import link_to
from deft.training.lock import is_running
from deft.training.record import read_metrics

RUNS = Path("runs")
PREFIX = "eval_loss_"
COUNTS = ("num_train_rows", "num_train_sequences", "num_valid_rows")
NOT_SHOWN = ("trainer", "resume_training")
STYLES = {"finished": "green", "running": "cyan", "unfinished": "yellow"}

app = App(name="runs", help="List, show, compare and remove runs.", default_parameter=Parameter(negative=""))


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run as its folder tells it: `record` is its `run.json`, `metrics` the lines of its log."""

    folder: Path
    record: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The name of its folder, which is when it began."""
        return self.folder.name

    @property
    def settings(self) -> dict[str, Any]:
        """What it was told."""
        return self.record.get("settings") or {}

    @property
    def state(self) -> str:
        """`finished`, `running`, or `unfinished`: stopped, and able to go on."""
        if self.record.get("finished") is True:
            return "finished"
        return "running" if is_running(self.folder) else "unfinished"

    @property
    def step(self) -> int:
        """The last optimizer step in its log."""
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def num_steps(self) -> int:
        """How many optimizer steps it is to take, as far as its checkpoints tell; else those it has taken."""
        states = (read_object(file) for file in self.folder.glob("checkpoint-*/trainer_state.json"))
        return max([self.step, *(state["max_steps"] for state in states if isinstance(state.get("max_steps"), int))])

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The lines of its log that hold losses of held-out rows."""
        return [line for line in self.metrics if "eval_loss" in line]

    @property
    def size_bytes(self) -> int:
        """What its files take on the disk."""
        files = (Path(top) / name for top, _, names in os.walk(self.folder) for name in names)
        return sum(file.lstat().st_size for file in files)


@app.command(name="list")
def list_runs(*, runs: Path = RUNS) -> None:
    """List the runs, the newest first: model, method, rows, steps, state, loss and size.

    Parameters
    ----------
    runs
        The folder that holds the runs.
    """
    found = all_runs(runs)
    if not found:
        say(console(), "there are no runs in {runs} yet: deft train --train FILE begins one", runs=runs)
        return
    console().print(runs_table(found))


@app.command
def show(run: str = "latest", *, runs: Path = RUNS) -> None:
    """Show a run: its settings, and its losses by epoch and ability.

    Parameters
    ----------
    run
        Its name, as `deft runs list` gives it.
    runs
        The folder that holds the runs.
    """
    one, screen = find_run(run, runs), console()
    state = styled_state(one)
    screen.print(Text.assemble((visible(one.name), "bold"), "  ", state))
    screen.print(side_by_side([one], settings_of, all_settings([one])))
    titles = worded("loss on held-out rows, in nats per token"), worded("training loss")
    for title, rows in zip(titles, (losses_of, training_of), strict=True):
        names = names_of([one], rows)
        if names:
            say(screen, "\n[bold]{title}[/]", title=title)
            screen.print(side_by_side([one], rows, names))
    for file in ("report.html", "abilities.png", "loss.png"):
        if (one.folder / file).is_file():
            say(screen, "  {path}", path=one.folder / file)


@app.command
def compare(*names: str, runs: Path = RUNS) -> None:
    """Put runs side by side: the settings in which they differ, and their losses.

    Parameters
    ----------
    names
        Two or more runs, as `deft runs list` names them.
    runs
        The folder that holds the runs.
    """
    if len(set(names)) < 2:
        raise UserError("compare needs two runs", got=" ".join(names) or None, fix="deft runs compare RUN RUN")
    chosen, screen = [find_run(name, runs) for name in names], console()
    differ = [name for name in all_settings(chosen) if len({str(settings_of(run).get(name)) for run in chosen}) > 1]
    screen.print(side_by_side(chosen, settings_of, differ, heading=True))
    if names_found := names_of(chosen, losses_of):
        say(screen, "\n[bold]loss on held-out rows, in nats per token[/]")
        screen.print(side_by_side(chosen, losses_of, names_found))
    if names_found := names_of(chosen, training_of):
        say(screen, "\n[bold]training loss[/]")
        screen.print(side_by_side(chosen, training_of, names_found))
    if len({run.record.get("valid_rows") for run in chosen}) > 1:
        say(
            screen,
            "[yellow]note:[/] these were measured on different rows, so their losses cannot be compared",
            fold=True,
        )


@app.command
def remove(*names: str, runs: Path = RUNS, yes: bool = False) -> None:
    """Delete runs with their checkpoints, after asking.

    Parameters
    ----------
    names
        The runs, as `deft runs list` names them.
    runs
        The folder that holds the runs.
    yes
        Do not ask.
    """
    if not names:
        raise UserError("remove needs the name of a run", fix="deft runs list shows them")
    chosen, screen = list({run.name: run for run in (find_run(name, runs) for name in names)}.values()), console()
    for run in chosen:
        if run.state == "running":
            fix = "stop it first (Ctrl-C in its terminal), then remove it"
            raise UserError("this run is still in progress", got=run.name, where=str(run.folder), fix=fix)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(
                "there is nobody here to confirm it", got=" ".join(run.name for run in chosen), fix="add --yes"
            )
        for run in chosen:
            say(screen, "{name}  {state!t}  {size}", name=run.name, state=run.state, size=shown_size(run.size_bytes))
        if input(worded("delete this for good? [y/N] ")).strip().lower() not in ("y", "yes"):
            say(screen, "nothing was deleted")
            return
    for run in chosen:
        delete(run)
        say(screen, "[green]✓[/] removed {folder}", folder=run.folder)
    point_latest(runs)


# --- finding --------------------------------------------------------------------------------------------------------


def all_runs(runs: Path) -> list[Run]:
    """Return the runs in a folder, the newest first."""
    files = sorted(runs.glob("*/run.json"), key=lambda file: file.parent.name, reverse=True)
    return [read_run(file.parent) for file in files if not file.parent.is_symlink()]


def read_run(folder: Path) -> Run:
    """Read a run's folder; what is missing or damaged in it stays empty."""
    lines = [line for line in read_metrics(folder) if isinstance(line, dict) and isinstance(line.get("step"), int)]
    return Run(folder=folder, record=read_object(folder / "run.json"), metrics=lines)


def find_run(name: str, runs: Path) -> Run:
    """Return the run of this name; `latest`, and a path to a run or into one, name it too.

    Raises:
        UserError: if there is none.
    """
    folder = runs / name
    for path in (folder, Path(name), *Path(name).parents):
        if (path / "run.json").is_file() and path.resolve().parent == runs.resolve():
            return read_run(runs / path.resolve().name)
    known = [run.name for run in all_runs(runs)]
    fix = did_you_mean(name, known) if known else "deft train --train FILE begins one"
    raise UserError("there is no such run", got=name, where=str(runs), fix=fix)


def delete(run: Run) -> None:
    """Delete a run's folder; it stops being a run at once, so that half of it is never taken for one.

    Raises:
        UserError: if the system does not let it go.
    """
    going = run.folder.with_name(f".going-{run.name}")
    try:
        run.folder.rename(going)
        shutil.rmtree(going)
    except OSError as error:
        fix = "check the permissions of the folder (ls -ld)"
        raise UserError(
            "this run cannot be deleted", got=error.strerror or str(error), where=str(run.folder), fix=fix
        ) from error


def point_latest(runs: Path) -> None:
    """Let the link `latest`, if its run is gone, point at the newest run that is left."""
    link = runs / "latest"
    if link.is_symlink() and not link.exists():
        left = all_runs(runs)
        if left:
            link_to(link, left[0].name)
        else:
            with suppress(OSError):
                link.unlink()


# --- what is printed ------------------------------------------------------------------------------------------------


def runs_table(found: Sequence[Run]) -> Table:
    """Return the list of runs, for a terminal of 80 columns: the model's name alone folds."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(worded("run"), no_wrap=True)
    table.add_column(worded("model"), overflow="fold", min_width=8)
    table.add_column(worded("method"), no_wrap=True)
    for name in (worded("rows"), worded("steps")):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column(worded("state"), no_wrap=True)
    table.add_column(worded("loss"), no_wrap=True)
    table.add_column(worded("size"), no_wrap=True, justify="right")
    for run in found:
        cells = (
            run.name,
            Path(str(run.settings.get("model", "–"))).name,
            str(run.settings.get("method", "–")),
            f"{run.record.get('num_train_rows', 0):,}",
            f"{run.step:,}" if run.state == "finished" else f"{run.step:,}/{run.num_steps:,}",
        )
        table.add_row(
            *(Text(visible(cell)) for cell in cells), styled_state(run), shown_losses(run), shown_size(run.size_bytes)
        )
    return table


def styled_state(run: Run) -> Text:
    """Return a run's state in its colour."""
    return Text(translated(run.state), style=STYLES[run.state])


def shown_losses(run: Run) -> str:
    """Return the loss on held-out rows before and at its best; of a run that measured none, of its training rows."""
    losses = [line["eval_loss"] for line in run.measured]
    if len(losses) > 1 and run.measured[0]["step"] == 0:
        return f"{losses[0]:.2f} → {min(losses[1:]):.2f}"
    if losses:
        return f"{min(losses):.2f}"
    trained = [line["loss"] for line in run.metrics if "loss" in line]
    return f"({trained[-1]:.2f})" if trained else "–"


def settings_of(run: Run) -> dict[str, str]:
    """Return what a run was told, its numbers of rows, and where it stands."""
    settings = {name: value for name, value in run.settings.items() if name not in NOT_SHOWN}
    facts = {name: run.record.get(name) for name in (*COUNTS, "rows_per_step")}
    if run.record.get("held_out"):
        settings["valid"] = worded("held out")
    found = settings | facts | {"steps": run.step, "state": translated(run.state)}
    return {name: shown(value) for name, value in found.items() if value not in (None, [], {})}


def losses_of(run: Run) -> dict[str, str]:
    """Return the losses on held-out rows: over all rows by epoch, then of each ability before and at the best."""
    found = {}
    for line in run.measured:
        when = worded("before training")
        if line["step"]:
            when = worded("epoch {epoch:g}", epoch=round(line.get("epoch") or 0, 2))
        found[when] = f"{line['eval_loss']:.4f}"
    later = [line for line in run.measured if line["step"]]
    if not later:
        return found
    best = min(later, key=lambda line: line["eval_loss"])
    first = run.measured[0] if run.measured[0]["step"] == 0 else {}
    for name in sorted(name for name in best if name.startswith(PREFIX)):
        was = f"{first[name]:.4f} → " if name in first else ""
        found[f"  {name.removeprefix(PREFIX)}"] = f"{was}{best[name]:.4f}"
    return found


def training_of(run: Run) -> dict[str, str]:
    """Return the training loss at the first and the last step."""
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    steps = worded("first step"), worded("last step")
    return dict(zip(steps, (f"{losses[0]:.4f}", f"{losses[-1]:.4f}"), strict=True)) if losses else {}


def all_settings(found: Sequence[Run]) -> list[str]:
    """Return the names that any of the runs was told, in their order."""
    return names_of(found, settings_of)


def names_of(found: Sequence[Run], rows: Callable[[Run], dict[str, str]]) -> list[str]:
    """Return the names of the rows that any run has, in their order."""
    return list(dict.fromkeys(name for run in found for name in rows(run)))


def side_by_side(
    found: Sequence[Run], rows: Callable[[Run], dict[str, str]], names: Sequence[str], *, heading: bool = False
) -> Table:
    """Return a table with a column for each run and a row for each name."""
    table = Table(box=None, pad_edge=False, show_header=heading, header_style="bold")
    table.add_column("", overflow="fold", style="dim", min_width=16)
    for run in found:
        table.add_column(Text(visible(run.name)), overflow="fold", min_width=10)
    values = [rows(run) for run in found]
    for name in names:
        table.add_row(*(Text(visible(cell)) for cell in (name, *(one.get(name, "–") for one in values))))
    return table


def shown(value: Any) -> str:
    """Return a setting as people write it."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown_size(count: int) -> str:
    """Return bytes as people read them: `3.3 GB`, `120 MB`, `8 kB`."""
    if count >= 10**9:
        return f"{count / 10**9:,.1f} GB"
    return f"{count / 10**6:,.0f} MB" if count >= 10**6 else f"{count / 1000:,.0f} kB"
