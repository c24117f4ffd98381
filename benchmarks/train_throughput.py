"""Train the same model on the same rows with deft, with TRL and with the ancestor's settings, and compare.

    python -m benchmarks.train_throughput [--model smollm2-135m] [--data FILE] [--rows N] [--threads 2]
                                          [--only deft,trl,ancestor] [--repeats 1]

The contenders run one after another, each in a process of its own: fp32 on the CPU, the same rows in the same optimizer
steps, the same AdamW and learning rates. Loading, imports and the first two steps are not timed. Further contenders
may be named: `deft_bf16` (deft with `--dtype bfloat16`), `trl_onednn` (TRL with PyTorch's switch that sends products to
oneDNN), `trl_defaults` (see benchmarks/peers/trl_sft.py). TRL must be installed: pip install -r
benchmarks/requirements.txt.

The work of a model is counted alike for all, whatever they compute beyond it: 6 FLOP × parameters of the layers × real
tokens + 6 FLOP × parameters of the head × supervised tokens (forward 2, backward 4; attention's products left out).
Its rate, as a share of that of a product of 2048 × 2048 by the fastest kernel that is exact in fp32, is how well the
machine is used.
"""

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.instruction_rows import instruction_rows
from benchmarks.peers.plan import NUM_WARM_UP_STEPS, Plan, Report, write_plan
from deft.data.read import read_examples
from deft.data.write import write_examples
from deft.errors import UserError
from deft.hub.find import find
from deft.model.load import load_tokenizer
from deft.model.start import start_from
from deft.prompt.encode import EncodeResult, encode_examples
from deft.training.order import RowOrder
from deft.types import Example

CONTENDERS = {
    "deft": ("benchmarks.peers.deft_train",),
    "deft_bf16": ("benchmarks.peers.deft_train", "bfloat16"),
    "trl": ("benchmarks.peers.trl_sft", "trl"),
    "ancestor": ("benchmarks.peers.ancestor_loop",),
    "trl_onednn": ("benchmarks.peers.trl_sft", "trl_onednn"),
    "trl_defaults": ("benchmarks.peers.trl_sft", "trl_defaults"),
}
"""The module that runs each contender, and what it is told beside the plan's folder."""
DEFAULT_CONTENDERS = "deft,trl,ancestor"

ROOT = Path(__file__).parents[1]
DEFAULT_ROWS = 40
HELD_OUT_ROWS = ROOT / "examples/abilities/en/curated/test"
NO_TRL = "TRL is not installed: pip install -r benchmarks/requirements.txt, or leave it out: --only deft,ancestor"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the runs of one contender measured, and the held-out loss after the first of them, in nats per token."""

    reports: tuple[Report, ...]
    loss: float

    @property
    def median(self) -> Report:
        """The run whose time is the median (of an even number, the faster of the middle two)."""
        return sorted(self.reports, key=lambda report: report.seconds / report.tokens)[(len(self.reports) - 1) // 2]


def make_plan(arguments: argparse.Namespace, folder: Path) -> Plan:
    """Choose rows and lay them out in steps; write them, and the held-out rows, into `folder`.

    Raises:
        UserError: if the data or the model cannot be used.
    """
    if arguments.data:
        found = read_examples(arguments.data).examples
        examples = random.Random(arguments.seed).sample(found, min(arguments.rows or len(found), len(found)))
    else:
        tokenizer = load_tokenizer(arguments.model)
        examples = instruction_rows(arguments.rows or DEFAULT_ROWS, tokenizer, seed=arguments.seed)
    examples = examples[: len(examples) // arguments.rows_per_step * arguments.rows_per_step]
    if len(examples) // arguments.rows_per_step <= NUM_WARM_UP_STEPS:
        fix = f"give more than {NUM_WARM_UP_STEPS} steps of {arguments.rows_per_step} rows each"
        raise UserError("too few rows to time", got=f"{len(examples)} rows", fix=fix)
    rows = encoded(examples, arguments.model, arguments.pack_length)
    order = RowOrder(len(rows.sequences), arguments.rows_per_step, arguments.seed)
    steps = tuple(tuple(step) for step in order)
    longest = max(sum(len(rows.sequences[row]) for row in step) for step in steps)
    write_examples(folder / "rows.jsonl", examples)
    write_examples(folder / "heldout.jsonl", read_examples(arguments.held_out).examples)
    plan = Plan(
        model=str(find(arguments.model).folder),
        folder=str(folder),
        rows=rows.sequences,
        steps=steps,
        rows_per_step=arguments.rows_per_step,
        pack_length_tokens=max(arguments.pack_length, longest),
        learning_rate=arguments.learning_rate,
        end_learning_rate=arguments.learning_rate / 10,
        num_threads=arguments.threads,
        seed=arguments.seed,
    )
    write_plan(plan)
    return plan


def encoded(examples: Sequence[Example], model: str, max_length_tokens: int) -> EncodeResult:
    """Return the rows as deft encodes them, all of them whole.

    Raises:
        UserError: if a row does not fit, or the model has no chat template, which the peers need.
    """
    start = start_from(model)
    if start.num_added_tokens:
        raise UserError("this model has no chat template", got=model, fix="choose an instruction model")
    result = encode_examples(examples, start.chat_format, max_length_tokens=max_length_tokens)
    if result.dropped or result.num_shortened:
        raise UserError(
            "rows do not fit a pack, and the contenders would cut them differently",
            got=f"{len(result.dropped)} too long, {result.num_shortened} shortened, at {max_length_tokens} tokens",
            fix="raise --pack-length, or give shorter rows",
        )
    return result


def run_module(module: str, *values: str, num_threads: int) -> dict[str, Any]:
    """Run a module in a process of its own and return the JSON of its last line.

    Raises:
        SystemExit: with what it said, if it failed.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(num_threads),
        "MKL_NUM_THREADS": str(num_threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", module, *values]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def held_out_loss(plan: Plan, checkpoint: str) -> float:
    """Return the loss of a checkpoint on the held-out rows, in nats per token."""
    module = "benchmarks.peers.heldout"
    return run_module(module, plan.folder, checkpoint, num_threads=plan.num_threads)["loss"]


def product_rate(num_threads: int) -> float:
    """Return the FLOP/s of a matrix product."""
    return run_module("benchmarks.peers.matmul", str(num_threads), num_threads=num_threads)["flop_per_s"]


def run_all(plan: Plan, names: Sequence[str], num_repeats: int) -> dict[str, Outcome]:
    """Run the contenders in turn, as often as asked for, so that a slow spell of the machine meets them all alike."""
    reports: dict[str, list[Report]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    for repeat in range(num_repeats):
        for name in names:
            module, *values = CONTENDERS[name]
            report = Report(**run_module(module, plan.folder, *values, num_threads=plan.num_threads))
            reports[name].append(report)
            print(f"{name}, run {repeat + 1}: {report.tokens / report.seconds:,.1f} tokens/s", file=sys.stderr)
            if name not in losses:
                losses[name] = held_out_loss(plan, report.checkpoint)
    return {name: Outcome(reports=tuple(found), loss=losses[name]) for name, found in reports.items()}


def model_flop(report: Report) -> float:
    """Return the work that the timed steps needed: 6 FLOP a parameter and token, the head at supervised tokens only."""
    return 6.0 * (report.layer_parameters * report.tokens + report.head_parameters * report.supervised)


def ratios(outcomes: dict[str, Outcome]) -> dict[str, float]:
    """Return how many times as many tokens a second deft trains as each other contender."""
    speeds = {name: outcome.median.tokens / outcome.median.seconds for name, outcome in outcomes.items()}
    return {f"deft/{name}": speeds["deft"] / speeds[name] for name in speeds if name != "deft" and "deft" in speeds}


def table_of(outcomes: dict[str, Outcome], loss_before: float, flop_per_s: float) -> Table:
    """Return what was measured, one contender a line."""
    table = Table()
    columns = ("contender", "seconds", "tokens/s", "(range)", "supervised/s", "padding", "head positions", "peak, MB")
    for column in (*columns, "training adds, MB", "held-out loss", "after", "GFLOP/s", "of a product"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, outcome in outcomes.items():
        one = outcome.median
        speeds = [report.tokens / report.seconds for report in outcome.reports]
        rate = model_flop(one) / one.seconds
        table.add_row(
            name,
            f"{one.seconds:.1f}",
            f"{one.tokens / one.seconds:,.1f}",
            f"{min(speeds):,.0f}–{max(speeds):,.0f}",
            f"{one.supervised / one.seconds:,.1f}",
            f"{1 - one.tokens / one.positions:.1%}",
            f"{one.head_positions:,}",
            f"{statistics.median(report.peak_bytes for report in outcome.reports) / 1e6:,.0f}",
            f"{statistics.median(report.training_bytes for report in outcome.reports) / 1e6:,.0f}",
            f"{loss_before:.4f}",
            f"{outcome.loss:.4f}",
            f"{rate / 1e9:.1f}",
            f"{rate / flop_per_s:.1%}",
        )
    return table


def chosen(text: str) -> list[str]:
    """Return the contenders named in a flag.

    Raises:
        SystemExit: if one is unknown, or needs TRL and TRL is not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown or not names:
        raise SystemExit(f"--only: no such contender: {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    needs_trl = any(name.startswith("trl") for name in names)
    if needs_trl and not all(importlib.util.find_spec(package) for package in ("trl", "datasets")):
        raise SystemExit(NO_TRL)
    return names


def parse(values: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="alias or folder of a model with a chat template")
    parser.add_argument("--data", type=Path, nargs="+", help="files or folders; by default rows as long as Alpaca's")
    parser.add_argument("--held-out", type=Path, default=HELD_OUT_ROWS, help="rows to measure the loss on")
    parser.add_argument(
        "--rows", type=int, help=f"train on so many, chosen at random; by default all of --data, else {DEFAULT_ROWS}"
    )
    parser.add_argument("--rows-per-step", type=int, default=8, help="rows of an optimizer step")
    parser.add_argument("--pack-length", type=int, default=1024, help="tokens of a pack; raised if a step needs more")
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="at first; a tenth of it at the end")
    parser.add_argument("--threads", type=int, default=2, help="threads of every contender")
    parser.add_argument("--only", default=DEFAULT_CONTENDERS, help=f"contenders among {', '.join(CONTENDERS)}")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each contender; the median counts")
    parser.add_argument("--seed", type=int, default=0, help="decides the rows and their order")
    return parser.parse_args(values)


def main() -> None:
    """Run the contenders and print a table."""
    arguments = parse()
    names = chosen(arguments.only)
    with tempfile.TemporaryDirectory() as name:
        try:
            plan = make_plan(arguments, Path(name))
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
        tokens, supervised = plan.num_tokens(), plan.num_supervised()
        print(
            f"{len(plan.rows)} rows, {len(plan.steps)} steps of {plan.rows_per_step} rows, {tokens:,} tokens "
            f"({supervised:,} supervised), packs of {plan.pack_length_tokens}, {plan.num_threads} threads, "
            f"{NUM_WARM_UP_STEPS} steps of warm-up not counted",
            flush=True,
        )
        rates = [product_rate(plan.num_threads)]
        loss_before = held_out_loss(plan, plan.model)
        outcomes = run_all(plan, names, arguments.repeats)
        rates.append(product_rate(plan.num_threads))
    Console(width=180).print(table_of(outcomes, loss_before, max(rates)))
    print(f"matrix products of 2048 × 2048, fp32: {rates[0] / 1e9:.1f} GFLOP/s before, {rates[1] / 1e9:.1f} after")
    print("work = 6 × layer parameters × tokens + 6 × head parameters × supervised tokens")
    for pair, ratio in ratios(outcomes).items():
        print(f"{pair}: {ratio:.2f} times the tokens per second")


if __name__ == "__main__":
    main()
