"""Run everything that needs a GPU, in one call of at most eight minutes, and print one table.

    python -m benchmarks.gpu [--small] [--only NAME,…] [--output runs/gpu]

`gpu.json` in the output folder holds every number, and is written anew after each part; `gpu.log` what the parts
printed. `--small` takes models and rows that a CPU can run in a few minutes, which shows that the script works, and
says of each part that needs CUDA that it was skipped. Exit code 1 if a check does not hold, or a part did not come to
its end.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu.parts import Part, Record, do_part, run_all

PARTS = (
    Part(name="machine", function="benchmarks.gpu.speeds:machine", seconds=40),
    Part(name="packed", function="benchmarks.gpu.checks:packed", seconds=35),
    Part(name="curve", function="benchmarks.gpu.runs:curve", seconds=35),
    Part(name="resume", function="benchmarks.gpu.runs:resume", seconds=40),
    Part(name="halving", function="benchmarks.gpu.runs:halving", seconds=30),
    Part(name="lora_7b", function="benchmarks.gpu.speeds:lora_7b", seconds=45),
    Part(name="lora_13b", function="benchmarks.gpu.speeds:lora_13b", seconds=60),
    Part(name="decode", function="benchmarks.gpu.speeds:decode", seconds=50),
    Part(name="full", function="benchmarks.gpu.speeds:full", seconds=45),
    Part(name="liger", function="benchmarks.gpu.speeds:liger", seconds=30),
    Part(name="compile", function="benchmarks.gpu.speeds:compiled", seconds=70),
)
"""Correctness first, then speeds, the likeliest to fail last; the seconds come to eight minutes."""
SMALL_TIMES = 3
"""How many times as long a part may take on a CPU, which may be a slow or a busy one."""
MARKS = {"passed": "[green]✓[/]", "failed": "[red]✗[/]", "measured": " ", "skipped": "[yellow]skipped[/]"}


def parse() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a size for the CPU: shows that the script works")
    parser.add_argument("--only", help="names of parts: " + ", ".join(part.name for part in PARTS))
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and gpu.log")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = {part.name for part in PARTS}
    if unknown := set((arguments.only or "").split(",")) - names - {""}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    return arguments


def tell(record: Record) -> None:
    """Say that a part is over."""
    word = "failed" if record.failed else "done"
    print(f"{record.name}: {word} in {record.seconds:.0f} of {record.limit_s:.0f} s", flush=True)


def table_of(records: list[Record], *, small: bool) -> Table:
    """Return the table of all that was found."""
    title = "SMALL SIZE, which shows only that the script works" if small else "full size"
    table = Table(title=f"benchmarks.gpu: {title}", title_justify="left")
    for column in ("part", "what", "seen", "allowed", ""):
        table.add_column(column, overflow="fold")
    for record in records:
        for number, line in enumerate(record.lines):
            name = f"{record.name}, {record.seconds:.0f} s" if number == 0 else ""
            table.add_row(name, escape(line.what), escape(line.seen), escape(line.allowed), MARKS[line.verdict])
        if record.ended != "whole" or not record.lines:
            why = f"after {record.seconds:.0f} s: {record.last_words or 'it found nothing'}"
            table.add_row(record.name, record.ended, escape(why), "", MARKS["failed"])
        table.add_section()
    return table


def main() -> None:
    """Run the parts and print the table."""
    arguments = parse()
    if arguments.part:
        do_part(arguments.part, arguments.lines, small=arguments.small)
        return
    chosen = [part for part in PARTS if not arguments.only or part.name in arguments.only.split(",")]
    if arguments.small:
        chosen = [replace(part, seconds=SMALL_TIMES * part.seconds) for part in chosen]
    began_at = time.monotonic()
    records = run_all(chosen, arguments.output, small=arguments.small, tell=tell)
    Console(width=150).print(table_of(records, small=arguments.small))
    num_failed = sum(record.failed for record in records)
    lines = [line for record in records for line in record.lines]
    counts = ", ".join(f"{sum(line.verdict == kind for line in lines)} {kind}" for kind in MARKS)
    seconds = time.monotonic() - began_at
    print(f"{num_failed} of {len(records)} parts failed; lines: {counts}; {seconds:.0f} s; {arguments.output}/gpu.json")
    sys.exit(num_failed > 0)


if __name__ == "__main__":
    main()
