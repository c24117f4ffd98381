"""Give every command what is wrong, and fuzz the reader of instruction data.

    python -m benchmarks.bad_input [--fuzzed 2000] [--seed 0] [--only WORDS]

First the table of tests/test_bad_input.py and further faults (benchmarks/peers/faults.py): 10 MB rows, mixed formats,
link loops, NUL bytes, encodings, surrogates, no disk, no permission, no network. Then seeded mutations of valid rows of
every format through `deft data convert`, with and without --skip-broken. Nothing may end in a traceback or leave a
half-written file, and every error must name the place and a remedy. Exit code 1 if anything does otherwise.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers import faults, file_faults
from benchmarks.peers.faults import FORMAT_ROWS, Circumstance, Special, table
from benchmarks.peers.mutate import Mutant, mutant

MAX_ERROR_CHARACTERS = 4000
"""No error is longer, whatever it quotes."""
OUTPUT = "出.jsonl"


class Told:
    """What a command prints, as pytest's `capfd` gives it; `last_err` is the newest text of stderr."""

    last_err = ""

    def __init__(self) -> None:
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  # open as long as the program runs

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have descriptors 1 and 2 write to files."""
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [os.dup(number) for number in (1, 2)]
        for number, file in enumerate(self.files, start=1):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)

    def readouterr(self) -> Any:
        """Return what was printed since the last time."""
        sys.stdout.flush()
        sys.stderr.flush()
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode("utf-8", "backslashreplace"))
            file.seek(0)
            file.truncate()
        self.last_err = texts[1]
        return Printed(*texts)


class Printed(tuple):
    """The text of stdout and stderr."""

    def __new__(cls, out: str, err: str) -> "Printed":
        return super().__new__(cls, (out, err))

    @property
    def out(self) -> str:
        """The text of stdout."""
        return self[0]

    @property
    def err(self) -> str:
        """The text of stderr."""
        return self[1]


@contextmanager
def place(tiny: Path) -> Iterator[tuple[Path, Any]]:
    """Give a folder to work in, as the fixture of the test does, and a monkeypatch that lasts as long."""
    import pytest

    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="deft-bad-") as name, pytest.MonkeyPatch.context() as patch:
        Path(name).chmod(0o755)
        folder = Path(name) / "工作"
        (folder / "数据").mkdir(parents=True)
        (folder / table.TINY).symlink_to(tiny)
        (folder / table.DATA).write_text(table.ROWS, encoding="utf-8")
        patch.setenv("DEFT_MODELS_DIR", str(folder / "models"))
        patch.setenv("HF_HUB_CACHE", str(Path(name) / "hub"))
        os.chdir(folder)
        try:
            yield folder, patch
        finally:
            os.chdir(before)
            for path in folder.rglob("*"):
                if not path.is_symlink():
                    path.chmod(0o755)


def outcome_of(check: Callable[[], None], told: Told) -> str | None:
    """Run a check; return None, or why it failed."""
    import pytest

    try:
        with told.taken():
            check()
        if len(told.last_err) > MAX_ERROR_CHARACTERS:
            return f"the error has {len(told.last_err):,} characters"
    except AssertionError as error:
        return f"{error} | stderr: {told.last_err[-600:]}"
    except (Exception, SystemExit, pytest.fail.Exception) as error:
        return f"{type(error).__name__}: {str(error)[:600]}"
    return None


def refuse(case: Any, tiny: Path, told: Told, circumstance: Circumstance | None = None) -> str | None:
    """Run one case of the table; `circumstance` holds while the command runs."""
    with place(tiny) as (folder, patch):
        if circumstance is not None:
            plain = table.run_deft

            def run_under(command: str) -> object:
                with circumstance(folder):
                    return plain(command)

            patch.setattr(table, "run_deft", run_under)
        return outcome_of(lambda: table.check_refused(case, folder, told, patch), told)


def special(case: Special, tiny: Path, told: Told) -> str | None:
    """Run a case that checks for itself."""
    with place(tiny) as (folder, _):
        return outcome_of(lambda: case.check(folder, told), told)


def run_table(tiny: Path, told: Told, only: str | None) -> tuple[Counter[str], list[str]]:
    """Run all cases; return how many there were of each kind, and the failures."""
    runs: list[tuple[str, str, Callable[[], str | None]]] = []
    broken = table.BROKEN_DATA | faults.MORE_BROKEN_DATA | file_faults.BROKEN
    for fault, (files, data, words) in broken.items():
        for reader, command in table.READERS.items():
            name = f"{fault}, {reader}"
            case = table.Case(name=name, command=command.format(data=data), words=words, files=files)
            runs.append(("data, through each reader", name, lambda case=case: refuse(case, tiny, told)))
    for case in table.CASES:
        runs.append(("flags, recipes, models, runs", case.name, lambda case=case: refuse(case, tiny, told)))
    for case, circumstance in faults.MORE_CASES:
        run = lambda case=case, where=circumstance: refuse(case, tiny, told, where)  # noqa: E731
        runs.append(("no disk, no permission, more flags", case.name, run))
    odd = [faults.accepted(*each) for each in file_faults.ODD]
    for case in [*faults.SPECIAL, *odd]:
        runs.append((case.kind, case.name, lambda case=case: special(case, tiny, told)))
    counts: Counter[str] = Counter()
    failures = []
    for kind, name, run in runs:
        if only and only not in name:
            continue
        counts[kind] += 1
        if (fault := run()) is not None:
            failures.append(f"{name}: {fault}")
    return counts, failures


# --- fuzzing ----------------------------------------------------------------------------------------------------------


def converted(folder: Path, name: str, told: Told, *flags: str) -> tuple[object, str, bytes | None]:
    """Run `deft data convert` in `folder`; return its exit code, its stderr, and what it wrote.

    Raises:
        AssertionError: if there was a traceback, or something else lies in the folder afterwards.
    """
    given = (folder / name).read_bytes()
    with told.taken():
        code = table.run_deft(f"deft data convert {name} {OUTPUT} {' '.join(flags)}")
    printed = told.readouterr()
    assert "Traceback" not in printed.out + printed.err, printed.err[-600:]
    assert (folder / name).read_bytes() == given, "the input has changed"
    output = folder / OUTPUT
    written = output.read_bytes() if output.exists() else None
    output.unlink(missing_ok=True)
    left = sorted(path.name for path in folder.iterdir())
    assert left == [name], f"left behind: {left}"
    assert code in (0, 2), f"exit code {code}"
    assert (written is not None) == (code == 0), f"exit code {code}, and the output is {written and 'there'}"
    assert len(printed.err) <= MAX_ERROR_CHARACTERS, f"the error has {len(printed.err):,} characters"
    return code, printed.err, written


def check_error(stderr: str, mutated: Mutant, *, can_skip: bool) -> None:
    """Check that an error names the place, within the lines that were changed, and a remedy."""
    text = table.only_the_error(stderr)
    found = faults.PLACE.search(text)
    assert found, f"no place is named: {text}"
    line = int(found.group(1))
    first, last = mutated.lines
    assert first <= line <= last, f"line {line} is named, lines {first} to {last} were changed: {text}"
    useless = (
        not can_skip and "--skip-broken" in text and "cannot help" not in text and not faults.ALL_BROKEN.search(text)
    )
    assert not useless, f"--skip-broken does not help: {text}"


def check_mutant(mutated: Mutant, folder: Path, told: Told) -> str:
    """Convert one file with and without --skip-broken; return how it went.

    Raises:
        AssertionError: if the two contradict each other, or an error lacks what it should have.
    """
    from deft.data.read import read_examples

    (folder / mutated.name).write_bytes(mutated.content)
    code, stderr, written = converted(folder, mutated.name, told)
    skip_code, skip_stderr, skip_written = converted(folder, mutated.name, told, "--skip-broken")
    if code == 0:
        assert skip_code == 0 and skip_written == written, "--skip-broken changes what whole rows become"
        (folder / OUTPUT).write_bytes(written or b"")
        again = read_examples(folder / OUTPUT).examples
        first = read_examples(folder / mutated.name).examples
        (folder / OUTPUT).unlink()
        same = [
            (a.id, a.messages, a.ability, a.meta) == (b.id, b.messages, b.ability, b.meta)
            for a, b in zip(first, again, strict=True)
        ]
        assert all(same), "what was written reads back as something else"
        return "still whole"
    check_error(stderr, mutated, can_skip=skip_code == 0)
    if skip_code != 0:
        check_error(skip_stderr, mutated, can_skip=False)
        return "refused as a whole"
    lines = (skip_written or b"").decode("utf-8").splitlines()
    contents = {json.loads(line)["messages"][0]["content"] for line in lines}
    assert mutated.kept <= contents, "--skip-broken lost a good row"
    return "row passed over"


def check_damaged(content: bytes, folder: Path, told: Told) -> str:
    """Convert a damaged file of any kind, whose name tells nothing; return how it went.

    Raises:
        AssertionError: if it ends otherwise than with rows, or with an error that names the file and a remedy, or late.
    """
    began_at = time.monotonic()
    (folder / "坏").write_bytes(content)
    code, stderr, _ = converted(folder, "坏", told)
    assert time.monotonic() - began_at < table.TIME_LIMIT_S, "it took too long"
    if code == 0:
        return "read"
    assert "坏" in table.only_the_error(stderr), stderr
    return "refused"


def fuzz(num_fuzzed: int, seed: int, told: Told) -> tuple[Counter[str], list[str]]:
    """Convert mutated rows; return how they went, by mutation, and the failures."""
    import pytest

    counts: Counter[str] = Counter()
    failures = []
    before = Path.cwd()
    for number in range(num_fuzzed):
        kind, content = file_faults.damaged(random.Random(f"{seed} file {number}"))
        folder = Path(tempfile.mkdtemp(prefix="deft-fuzz-"))
        os.chdir(folder)
        try:
            counts[f"{kind} damaged: {check_damaged(content, folder, told)}"] += 1
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            counts[f"{kind} damaged: FAILED"] += 1
            what = f"{type(error).__name__}: {str(error)[:500]}"
            failures.append(f"fuzzed file {number} ({kind}): {what}")
        finally:
            os.chdir(before)
            shutil.rmtree(folder)
    for number in range(num_fuzzed):
        made = mutant(random.Random(f"{seed} {number}"), FORMAT_ROWS)
        folder = Path(tempfile.mkdtemp(prefix="deft-fuzz-"))
        os.chdir(folder)
        try:
            counts[f"{made.mutation}: {check_mutant(made, folder, told)}"] += 1
        except (Exception, SystemExit, pytest.fail.Exception) as error:
            counts[f"{made.mutation}: FAILED"] += 1
            what = f"{type(error).__name__}: {str(error)[:500]}"
            failures.append(f"fuzzed {number} ({made.mutation}, {made.layout}): {what}\n    {made.content[:300]!r}")
        finally:
            os.chdir(before)
            shutil.rmtree(folder)
    return counts, failures


@contextmanager
def in_memory() -> Iterator[None]:
    """Have temporary files lie in memory where the system offers it: deft waits for the disk with every file it writes.

    They are all gone afterwards, the lock files of `deft pull` among them.
    """
    shared = Path("/dev/shm")
    parent = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="deft-bad-input-", dir=parent) as name:
        Path(name).chmod(0o755)
        tempfile.tempdir = os.environ["TMPDIR"] = name
        try:
            yield
        finally:
            tempfile.tempdir = before


def main() -> None:
    """Run everything, print counts by kind and every failure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fuzzed", type=int, default=2000, help="mutated files")
    parser.add_argument("--seed", type=int, default=0, help="decides the mutations")
    parser.add_argument("--only", help="run only cases whose name holds this, and no fuzzing unless it is `fuzz`")
    arguments = parser.parse_args()
    with in_memory():
        failures = run_all(arguments.fuzzed, arguments.seed, arguments.only)
    for failure in failures:
        print(f"FAILED {failure}")
    sys.exit(bool(failures))


def run_all(num_fuzzed: int, seed: int, only: str | None) -> list[str]:
    """Run the table and the fuzzing, print counts by kind, and return the failures."""
    began_at = time.monotonic()
    told = Told()
    failures: list[str] = []
    if only != "fuzz":
        faults.warm_up()
        tiny = table.save_tiny(Path(tempfile.mkdtemp()) / table.TINY)
        tiny.parent.chmod(0o755)
        counts, failures = run_table(tiny, told, only)
        for kind, count in counts.items():
            print(f"{count:6,}  {kind}")
        print(
            f"{sum(counts.values()):,} cases, {len(failures)} failed, {time.monotonic() - began_at:.0f} s", flush=True
        )
    if only in (None, "fuzz"):
        fuzzed, more = fuzz(num_fuzzed, seed, told)
        for kind, count in sorted(fuzzed.items()):
            print(f"{count:6,}  {kind}")
        print(f"{sum(fuzzed.values()):,} fuzzed files, {len(more)} failed, {time.monotonic() - began_at:.0f} s in all")
        failures += more
    return failures


if __name__ == "__main__":
    main()
