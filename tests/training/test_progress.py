"""The bar of a training on a narrow terminal: step, bar and time left stay whole, speeds go first."""

import io
import re

import pytest
from rich.console import Console

from deft.training.progress import AsManyAsFit, Progress

FACTS = ("loss 3.294", "1,202 tok/s", "MFU 73 %", "1,062 supervised tok/s")


def bar_line(width: int, steps: int = 12_000) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    progress = Progress(console)
    with progress.shown():
        progress.begin(step=0, num_steps=steps)
        assert progress.bar is not None
        progress.bar.update(progress.task, completed=steps // 2, facts=FACTS)
        progress.bar.refresh()
    last = [
        line
        for line in re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").split("\n")
        if line.strip()
    ]
    return last[-1].rstrip()


@pytest.mark.parametrize(
    ("width", "facts"),
    [
        (120, "loss 3.294 · 1,202 tok/s · MFU 73 % · 1,062 supervised tok/s"),
        (80, "loss 3.294 · 1,202 tok/s"),
        (60, "loss 3.294"),
        (50, ""),
    ],
)
def test_speeds_go_first(width: int, facts: str) -> None:
    line = bar_line(width)
    assert len(line) <= width
    found = re.fullmatch(r"step  ?(\d+/\d+) ([━╸╺ ]+) (\S+) left(?: (.*))?", line)
    assert found, line
    assert found[1] == "6000/12000"
    assert len(found[2]) == 16
    assert re.fullmatch(r"\d+:\d\d:\d\d|-:--:--", found[3])
    assert (found[4] or "") == facts


def test_whole_parts_are_left_out_by_the_columns_they_take() -> None:
    """A Chinese character takes two columns."""
    screen = io.StringIO()
    Console(file=screen, width=9).print(AsManyAsFit(("损失", "快", "慢")))
    assert screen.getvalue() == "损失 · 快\n"


def test_the_time_left_does_not_count_what_was_measured_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("deft.training.progress.time.monotonic", lambda: now[0])
    screen = io.StringIO()
    progress = Progress(Console(file=screen, width=80))
    progress.begin(step=0, num_steps=11)
    now[0] = 100.0
    progress.logged({"step": 0, "epoch": 0, "eval_loss": 2.5})
    now[0] = 120.0
    progress.stepped(1)
    before, line = screen.getvalue().splitlines()
    assert before == "before training · validation loss 2.5000 nats per token"
    assert line.endswith("200 s left")
