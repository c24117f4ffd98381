"""Parts of a long check, each in a process of its own with a time limit: a table of them in, records out.

A part is a function that yields `Line`s. Each is written down at once, so that a part which crashes, hangs or runs out
of memory leaves what it had found, and the parts after it run all the same. Nothing here loads torch.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from deft.files import write_json

Verdict = Literal["passed", "failed", "measured", "skipped"]

ROOT = Path(__file__).parents[2]
LOG_LINES = 3
"""Of what a part printed last, in the record of its failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One thing that a part found: what was looked at, what was seen, and what is allowed where it is a check."""

    what: str
    seen: str
    verdict: Verdict
    allowed: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def measured(what: str, seen: str, **values: Any) -> Line:
    """Return a measurement, which nothing is asked of."""
    return Line(what=what, seen=seen, verdict="measured", values=values)


def checked(what: str, seen: str, *, holds: bool, allowed: str, **values: Any) -> Line:
    """Return a check that holds or does not."""
    return Line(what=what, seen=seen, verdict="passed" if holds else "failed", allowed=allowed, values=values)


def skipped(what: str, why: str) -> Line:
    """Return what could not be looked at here, and why."""
    return Line(what=what, seen=why, verdict="skipped")


def tried(what: str, find: Callable[[], Iterable[Line]]) -> Iterator[Line]:
    """Yield what `find` does; an error becomes a failed line, and what comes after it goes on."""
    try:
        yield from find()
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip() or "no message").splitlines()[0]
        yield Line(what=what, seen=f"{type(error).__name__}: {first}", verdict="failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part: the function that does it, "module:function", and the seconds it may take, its imports included."""

    name: str
    function: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What became of a part: `ended` "whole", or how it was cut short, with the last words of its log."""

    name: str
    ended: Literal["whole", "crashed", "time limit"]
    seconds: float
    limit_s: float
    lines: tuple[Line, ...]
    last_words: str = ""

    @property
    def failed(self) -> bool:
        """Whether the part did not come to its end, found nothing at all, or found a fault."""
        return self.ended != "whole" or not self.lines or any(line.verdict == "failed" for line in self.lines)


def run_all(parts: Sequence[Part], folder: Path, *, small: bool, tell: Callable[[Record], None]) -> list[Record]:
    """Run the parts in their order; `folder` gets `gpu.json`, written anew after each, and `gpu.log`.

    A part may take its own seconds and those that the parts before it left over, so all end within the sum.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "gpu.log"
    log.write_bytes(b"")
    began_at = time.monotonic()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, part in enumerate(parts):
            left = sum(each.seconds for each in parts[number:]) - part.seconds
            limit_s = sum(each.seconds for each in parts) - (time.monotonic() - began_at) - left
            record = run_part(part, log, Path(scratch), small=small, limit_s=limit_s)
            records.append(record)
            seconds = round(time.monotonic() - began_at, 1)
            found = {"size": "small" if small else "full", "seconds": seconds, "parts": [asdict(r) for r in records]}
            write_json(folder / "gpu.json", found)
            tell(record)
    return records


def run_part(part: Part, log: Path, scratch: Path, *, small: bool, limit_s: float) -> Record:
    """Run one part in a process of its own, which is killed with all it started when its time is over."""
    lines = scratch / f"{part.name}.jsonl"
    lines.touch()
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part.function, "--lines", str(lines)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DEFT_CACHE_DIR": str(scratch / "cache")}
    if small:
        command.append("--small")
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc keeps no freed memory, which would be counted
    printed_before = log.stat().st_size
    began_at = time.monotonic()
    with log.open("ab") as output:
        output.write(f"--- {part.name}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(timeout=max(limit_s, 0.0))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    words = log.read_bytes()[printed_before:].decode(errors="replace").strip().splitlines()[1:]
    return Record(
        name=part.name,
        ended="whole" if status == 0 else "time limit" if status is None else "crashed",
        seconds=round(time.monotonic() - began_at, 1),
        limit_s=round(limit_s, 1),
        lines=tuple(Line(**json.loads(line)) for line in lines.read_text(encoding="utf-8").splitlines()),
        last_words="" if status == 0 else "\n".join(words[-LOG_LINES:]) or f"exit status {status}",
    )


def do_part(function: str, lines: Path, *, small: bool) -> None:
    """Run the function of a part, "module:function", in this process, and write down what it yields as it comes."""
    module, _, name = function.partition(":")
    with lines.open("a", encoding="utf-8") as file:
        for line in getattr(importlib.import_module(module), name)(small):
            file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
            file.flush()
            print(f"{line.verdict}: {line.what}: {line.seen}", flush=True)
