"""The progress of a run: a live bar on a terminal, a plain line now and then elsewhere."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from deft.language.catalogue import worded
from deft.model.likelihood import PackedRows
from deft.screen import say
from deft.training.utilisation import Utilisation

PLAIN_LINE_EVERY_S = 15.0
SAME_WISH_S = 1.0


class Progress:
    """Counts tokens and time, shows them, and remembers whether the user asked to stop."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.utilisation: Utilisation | None = None
        self.flop = 0.0
        self.stop_asked = False
        self.asked_at = 0.0
        self.num_tokens = 0
        self.num_supervised = 0
        self.computing_s = 0.0
        self.loss = float("nan")
        self.bar: Bar | None = None
        self.step = self.num_steps = 0
        self.first_step = 0
        self.started_at = self.shown_at = self.step_began_at = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar, and turn the first Ctrl-C or SIGTERM into a wish to stop after the current step.

        SIGTERM is what Slurm, Kubernetes and pre-empted machines send before they end a process.
        """
        before: dict[int, Any] = {}
        for wish in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread: signals are the caller's to handle
                before[wish] = signal.signal(wish, self.ask_to_stop)
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Stop after this step; the second time, at once.

        A second signal right behind the first is the same wish: torchrun passes on the Ctrl-C that its processes get
        from the terminal as well.
        """
        now = time.monotonic()
        if self.stop_asked:
            if now - self.asked_at < SAME_WISH_S:
                return
            raise KeyboardInterrupt
        self.stop_asked, self.asked_at = True, now
        say(self.console, "[yellow]stopping after this step, with a checkpoint (Ctrl-C again: at once)[/]")

    def begin(self, *, step: int, num_steps: int) -> None:
        """Start counting at `step` of `num_steps`."""
        self.step = self.first_step = step
        self.num_steps = num_steps
        self.started_at = self.step_began_at = self.shown_at = time.monotonic()
        if self.console.is_terminal:
            self.bar = Bar(  # a narrow terminal takes from the last column, which alone may wrap
                TextColumn(worded("step"), table_column=Column(no_wrap=True)),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                TextColumn(worded("left"), table_column=Column(no_wrap=True)),
                FactsColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("training", total=num_steps, completed=step, facts=())
            self.bar.start()

    def trained(self, pack: PackedRows) -> None:
        """Count a pack that went through forward and backward."""
        now = time.monotonic()
        self.computing_s += now - self.step_began_at
        self.step_began_at = now
        self.num_tokens += pack.num_tokens
        self.num_supervised += pack.num_supervised
        if self.utilisation is not None:
            self.flop += self.utilisation.flop(pack)

    def stepped(self, step: int) -> None:
        """Count an optimizer step."""
        now = time.monotonic()
        self.computing_s += now - self.step_began_at
        self.step_began_at = now
        self.step = step
        if self.bar is not None:
            self.bar.update(self.task, completed=step, facts=self.facts())
        elif now - self.shown_at >= PLAIN_LINE_EVERY_S or step == self.num_steps:
            self.shown_at = now
            left_s = (now - self.started_at) / max(step - self.first_step, 1) * (self.num_steps - step)
            where = worded("step {step}/{all}", step=step, all=self.num_steps)
            parts = (where, *self.facts(), worded("{seconds:,.0f} s left", seconds=left_s))
            say(self.console, "{line}", line=" · ".join(parts))

    def logged(self, values: dict[str, Any]) -> None:
        """Take up a logged loss; print a validation result on a line of its own."""
        self.step_began_at = time.monotonic()  # validation and saving are not training time
        if self.step == self.first_step:
            self.started_at = self.step_began_at  # nor is what is measured before the first step
        if "loss" in values:
            self.loss = values["loss"]
        if "eval_loss" in values:
            say(
                self.console,
                "{when} · validation loss [bold]{loss:.4f}[/] nats per token",
                when=self.when(values),
                loss=values["eval_loss"],
            )

    def when(self, values: dict[str, Any]) -> str:
        """Return in words after which epoch a loss was measured."""
        if not values["step"]:
            return worded("before training")
        return worded("epoch {epoch:g}", epoch=round(values["epoch"], 2))

    def speeds(self) -> dict[str, float]:
        """Return what this process does per second of training time.

        Tokens, all and supervised; and the model's operations over the machine's limit (MFU), once it is measured.
        """
        seconds = max(self.computing_s, 1e-9)
        found = {
            "tokens_per_s": round(self.num_tokens / seconds, 1),
            "supervised_tokens_per_s": round(self.num_supervised / seconds, 1),
        }
        if self.utilisation is not None:
            found["mfu_ratio"] = round(self.flop / seconds / self.utilisation.limit_flop_per_s, 3)
        return found

    def facts(self) -> tuple[str, ...]:
        """Return the loss and the speeds, what matters most first."""
        speeds = self.speeds()
        loss = () if math.isnan(self.loss) else (worded("loss {loss:.3f}", loss=self.loss),)
        used = (f"MFU {100 * speeds['mfu_ratio']:.0f} %",) if "mfu_ratio" in speeds else ()
        tokens = worded("{rate:,.0f} tok/s", rate=speeds["tokens_per_s"])
        supervised = worded("{rate:,.0f} supervised tok/s", rate=speeds["supervised_tokens_per_s"])
        return (*loss, tokens, *used, supervised)


class FactsColumn(ProgressColumn):
    """Shows as many of a task's `facts` as there is room for, from the first on."""

    def render(self, task: Task) -> "AsManyAsFit":
        """Return what fits itself into its column."""
        return AsManyAsFit(task.fields["facts"])


@dataclass(frozen=True, slots=True)
class AsManyAsFit:
    """Parts of a line, of which whole ones are left out from the end where the line would be too long."""

    parts: Sequence[str]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, cell_len(" · ".join(self.parts)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = (" · ".join(self.parts[:count]) for count in range(len(self.parts), 0, -1))
        yield Text(next((line for line in lines if cell_len(line) <= options.max_width), ""), style="cyan")
