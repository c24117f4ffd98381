"""What a quickstart says while it runs: numbered stages, sentences, and bars."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deft.language.choose import Lang
from deft.report.texts import QUICKSTART_TEXTS
from deft.screen import say, styled

NUM_STAGES = 6


@dataclass(kw_only=True, slots=True)
class Narrator:
    """Speaks to the user in one language, and times the stages; `resumed_stages` are those begun earlier."""

    console: Console
    lang: Lang
    started_at: float = field(default_factory=time.monotonic)
    stage_times_s: dict[str, float] = field(default_factory=dict)
    resumed_stages: set[str] = field(default_factory=set)

    def text(self, name: str, **values: Any) -> str:
        """Return a text of the table, filled in."""
        return QUICKSTART_TEXTS[self.lang][name].format(**values)

    def say(self, name: str, *, style: str = "", **values: Any) -> None:
        """Print a text of the table; one with a path stays in one line, so that the path can be copied."""
        has_path = any(isinstance(value, Path) for value in values.values())
        say(self.console, "  {line}", line=self.text(name, **values), style=style, fold=not has_path)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print the heading of a stage, and note how long it took."""
        began_at = time.monotonic()
        number = len(self.stage_times_s) + 1
        self.console.print()
        title = styled("[bold]{number}/{all}  {name}[/]", number=number, all=NUM_STAGES, name=self.text(name))
        self.console.rule(title, align="left", style="dim")
        yield
        self.stage_times_s[name] = time.monotonic() - began_at

    def named_times_s(self) -> dict[str, float]:
        """Return the seconds of each stage under its name in the user's language."""
        names = {stage: self.text(stage) for stage in self.stage_times_s}
        names |= {stage: self.text("resumed", stage=names[stage]) for stage in self.resumed_stages}
        return {names[stage]: seconds for stage, seconds in self.stage_times_s.items()}

    def total_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started_at


@contextmanager
def row_bar(tell: Narrator, num_rows: int) -> Iterator[Callable[[int], None]]:
    """Show a bar over rows where there is a terminal; yield what advances it."""
    if not (tell.console.is_terminal and num_rows):
        yield lambda rows: None
        return
    columns = (TextColumn(" "), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn(tell.text("rows")))
    with Progress(*columns, TimeElapsedColumn(), console=tell.console, transient=True) as progress:
        task = progress.add_task("", total=num_rows)
        yield lambda rows: progress.update(task, advance=rows)
