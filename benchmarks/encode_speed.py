"""How fast do rows become token ids and labels, beside plain `apply_chat_template`?

    python -m benchmarks.encode_speed [--rows 20000] [--tokens 200] [--audit-rows 100000] [--model smollm2-135m]

Rows of about so many tokens, at one exchange, at three and at twenty: `apply_chat_template` by itself, one row after
another (it gives ids and no labels), against `encode_examples`. Then every row is encoded once more in the slow way,
reply by reply, and ids and labels have to be the same. Last, `deft data audit` of an Alpaca file: its seconds and the
most memory it took. Run it on a quiet machine.
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.instruction_rows import Words
from deft.model.load import load_tokenizer
from deft.prompt.encode import encode_examples, sequence_of
from deft.prompt.formats.template import TemplateFormat
from deft.types import Example, Message, TokenSequence

EXCHANGES = {1: 1.5, 3: 1.5, 20: 0.8}
"""How many exchanges rows have, and how many times the rate of the plain call is asked for."""
AUDIT_MOST_S, AUDIT_MOST_BYTES = 60, 1 << 30
NO_LIMIT = sys.maxsize


def rows_of(num_rows: int, num_tokens: int, num_exchanges: int, tokenizer: Any) -> list[Example]:
    """Return rows in Chinese and English, questions half as long as replies."""
    chance = random.Random(num_exchanges)
    words = [Words(language, tokenizer) for language in ("zh", "en")]
    per_exchange = num_tokens / num_exchanges
    rows = []
    for number in range(num_rows):
        messages = []
        for _ in range(num_exchanges):
            for role, share in (("user", 1 / 3), ("assistant", 2 / 3)):
                length = max(1, round(per_exchange * share * chance.uniform(0.5, 1.5)))
                text = words[number % 2].cut(length, chance).strip() or "好"
                messages.append(Message(role=role, content=text))  # type: ignore[arg-type]
        rows.append(Example.create(messages))
    return rows


def plain(tokenizer: Any, rows: Sequence[Example]) -> float:
    """Return the seconds that `apply_chat_template` takes for rows, one after another."""
    conversations = [[{"role": one.role, "content": one.content} for one in row.messages] for row in rows]
    began_at = time.perf_counter()
    for conversation in conversations:
        tokenizer.apply_chat_template(conversation, tokenize=True)
    return time.perf_counter() - began_at


def slowly(task: tuple[str, Sequence[Example]]) -> list[list[tuple[list[int], list[int]]]]:
    """Return ids and labels of rows, each reply encoded by itself."""
    model, rows = task
    chat_format = TemplateFormat(load_tokenizer(model))
    return [
        [
            plain_lists(sequence_of(row, one, chat_format, part=0))
            for one in chat_format.encode_conversation(row.messages)
        ]
        for row in rows
    ]


def plain_lists(sequence: TokenSequence) -> tuple[list[int], list[int]]:
    """Return the ids and labels of a sequence."""
    return sequence.input_ids.tolist(), sequence.labels.tolist()


def num_different(model: str, rows: Sequence[Example], sequences: Sequence[TokenSequence], progress: Progress) -> int:
    """Return how many rows the slow way encodes otherwise; all cores work on it."""
    found: Iterator[TokenSequence] = iter(sequences)
    tasks = [(model, rows[start : start + 250]) for start in range(0, len(rows), 250)]
    bar = progress.add_task("reply by reply", total=len(tasks))
    different = 0
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for answer in pool.imap(slowly, tasks):
            different += sum(row != [plain_lists(next(found)) for _ in row] for row in answer)
            progress.advance(bar)
    progress.remove_task(bar)
    return different + sum(1 for _ in found)


def audit(model: str, num_rows: int, num_tokens: int, tokenizer: Any) -> tuple[float, int]:
    """Return the seconds and the most memory, in bytes, that `deft data audit` takes for an Alpaca file."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "alpaca.json"
        rows = rows_of(num_rows, num_tokens, 1, tokenizer)
        texts = ([message.content for message in row.messages] for row in rows)
        alpaca = [{"instruction": asked, "input": "", "output": told} for asked, told in texts]
        file.write_text(json.dumps(alpaca, ensure_ascii=False), encoding="utf-8")
        del rows, alpaca
        began_at = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "deft", "data", "audit", str(file), "--model", model])
        most = 0
        while process.poll() is None:
            most = max(most, most_memory(process.pid))
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit("the audit failed")
        return time.perf_counter() - began_at, most


def most_memory(pid: int) -> int:
    """Return the most memory, in bytes, that a process has held so far; 0 where the system does not say.

    What `wait4` says of a child begins with what its parent held when it was made.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def main() -> None:
    """Measure, compare, and say what was asked for and is not reached."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--audit-rows", type=int, default=100_000)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    console = Console()
    tokenizer = load_tokenizer(options.model)
    chat_format = TemplateFormat(tokenizer)
    table = Table("exchanges", "tokens a row", "plain rows/s", "deft rows/s", "ratio", "asked for", "differ")
    faults = []
    with Progress(console=console, transient=True) as progress:
        for exchanges, asked in EXCHANGES.items():
            rows = rows_of(options.rows, options.tokens, exchanges, tokenizer)
            plain_s = plain(tokenizer, rows)
            began_at = time.perf_counter()
            encoded = encode_examples(rows, chat_format, max_length_tokens=NO_LIMIT)
            ours_s = time.perf_counter() - began_at
            different = num_different(options.model, rows, encoded.sequences, progress) + len(encoded.dropped)
            length, ratio = np.mean([len(one) for one in encoded.sequences]), plain_s / ours_s
            rates = (f"{len(rows) / seconds:,.0f}" for seconds in (plain_s, ours_s))
            table.add_row(str(exchanges), f"{length:.0f}", *rates, f"{ratio:.2f}", f"{asked:g}", str(different))
            faults += [f"{exchanges} exchanges: {ratio:.2f} of {asked:g}"] if ratio < asked else []
            faults += [f"{different} rows of {exchanges} exchanges differ"] if different else []
    console.print(table)
    if options.audit_rows:
        seconds, memory = audit(options.model, options.audit_rows, options.tokens, tokenizer)
        console.print(f"audit of {options.audit_rows:,} Alpaca rows: {seconds:.1f} s, {memory / 2**20:,.0f} MiB")
        if seconds > AUDIT_MOST_S or memory > AUDIT_MOST_BYTES:
            faults.append(f"the audit took {seconds:.0f} s and {memory / 2**20:,.0f} MiB")
    if faults:
        raise SystemExit("not reached: " + "; ".join(faults))


if __name__ == "__main__":
    main()
