"""Kill a training run again and again, resume it, and compare its weights with an uninterrupted run's.

    python -m benchmarks.resume_exact [--kills 28] [--seed 0]

For full fine-tuning and LoRA, each with gradient accumulation 1 and 4, a real `deft train` process is killed (-9) at
random moments of its life: while it loads, trains, validates or writes a checkpoint. The same with two processes under
torchrun, and with SIGTERM, after which a run that is training must leave a checkpoint. Every final tensor must be
bit-identical. Last, a run is stopped and resumed with other rows in a step (`--allow-changed rows_per_step`): its
weights may differ, but each epoch must meet each row once. Exit code 1 if anything is otherwise.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from deft.data.write import write_examples
from deft.testing.tiny import save_tiny
from deft.types import Example, Message

NUM_ROWS = 48
NUM_EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train."""

    method: str
    accumulation: int
    num_processes: int = 1
    number: signal.Signals = signal.SIGKILL

    def __str__(self) -> str:
        shown = f"{self.method}, accumulation {self.accumulation}"
        shown += f", {self.num_processes} processes" if self.num_processes > 1 else ""
        return shown + (f", {self.number.name}" if self.number != signal.SIGKILL else "")


SETTINGS = [
    *(Setting(method=m, accumulation=a) for m, a in product(("full", "lora"), (1, 4))),
    Setting(method="full", accumulation=1, num_processes=2),
    Setting(method="full", accumulation=1, number=signal.SIGTERM),
    Setting(method="full", accumulation=1, num_processes=2, number=signal.SIGTERM),
]


def write_rows(path: Path) -> None:
    """Write rows of uneven lengths, Chinese and English."""
    made = []
    for number in range(NUM_ROWS):
        question = f"第 {number} 题：{number} × {number % 9} 等于几？" + "请一步一步算。" * (number % 5)
        reply = (
            f"{number} times {number % 9} is {number * (number % 9)}." if number % 3 else f"{number * (number % 9)}。"
        )
        made.append(Example.create([Message(role="user", content=question), Message(role="assistant", content=reply)]))
    write_examples(path, made)


def command(folder: Path, runs: Path, setting: Setting) -> list[str]:
    """Return the command that starts the run."""
    values = {
        "--model": folder / "model",
        "--train": folder / "train.jsonl",
        "--valid": folder / "valid.jsonl",
        "--output-dir": runs,
        "--method": setting.method,
        "--gradient-accumulation": setting.accumulation,
        "--batch-size": 2,
        "--num-epochs": NUM_EPOCHS,
        "--save-steps": 5,
        "--learning-rate": "1e-3",
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={setting.num_processes}"]
    return [
        sys.executable,
        *(launcher if setting.num_processes > 1 else []),
        *("-m", "deft", "train"),
        *(str(part) for pair in values.items() for part in pair),
    ]


def run_whole(start: list[str]) -> float:
    """Run without interruption; return the seconds it took."""
    began_at = time.monotonic()
    subprocess.run(start, check=True, capture_output=True)
    return time.monotonic() - began_at


def run_killed(
    start: list[str], runs: Path, kills: int, whole_s: float, chance: random.Random, *, number: signal.Signals
) -> list[float]:
    """Kill the run up to `kills` times at random moments, resuming each time, until it ends; return the moments."""
    moments: list[float] = []
    while True:
        resumes = ["--resume-training"] if any(runs.glob("*/run.json")) else []
        process = subprocess.Popen([*start, *resumes], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        moment = chance.uniform(0.2, 0.8) * whole_s if len(moments) < kills else None
        try:
            _, message = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            trained = num_logged(runs)
            stop(process, number)
            process.communicate()
            if number == signal.SIGTERM and 0 < trained < num_logged(runs) and not newest_step(runs) >= trained:
                raise SystemExit("a run that got SIGTERM while it trained left no checkpoint of that step") from None
            moments.append(moment or 0.0)
            if is_finished(runs):  # killed in the last moments of the process, after its last checkpoint
                return moments
            continue
        if process.returncode:
            raise SystemExit(f"the resumed run failed:\n{message.decode()}")
        return moments


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a run: SIGTERM to what the user started, SIGKILL to all processes that came of it as well."""
    family = psutil.Process(process.pid).children(recursive=True) if number == signal.SIGKILL else []
    process.send_signal(number)
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.send_signal(number)


def num_logged(runs: Path) -> int:
    """Return how many steps the log of the run in `runs` has."""
    return max((file.read_text().count('"loss"') for file in runs.glob("*/metrics.jsonl")), default=0)


def newest_step(runs: Path) -> int:
    """Return the step of the newest checkpoint in `runs`, or 0."""
    return max((int(path.name.rpartition("-")[2]) for path in runs.glob("2*/checkpoint-*")), default=0)


def run_with_other_rows(folder: Path, took_s: float) -> bool:
    """Stop a run and resume it with twice the rows in a step; say whether each epoch met each row once."""
    import pyarrow.parquet as pq

    runs = folder / "other-rows"
    start = command(folder, runs, Setting(method="full", accumulation=1))
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while num_logged(runs) < 7 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10 * took_s)
    other = command(folder, runs, Setting(method="full", accumulation=2))
    again = [*other, "--resume-training", "--allow-changed", "rows_per_step"]
    subprocess.run(again, check=True, capture_output=True)
    table = pq.read_table(next(runs.glob("2*/rows.parquet"))).to_pylist()
    met = sorted((row["epoch"], row["row"]) for row in table if row["split"] == "train")
    return met == [(epoch, row) for epoch in range(1, NUM_EPOCHS + 1) for row in range(NUM_ROWS)]


def is_finished(runs: Path) -> bool:
    """Say whether the run in `runs` is recorded as finished."""
    return any(json.loads(file.read_text(encoding="utf-8"))["finished"] for file in runs.glob("*/run.json"))


def final_weights(runs: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the newest checkpoint."""
    folder = next(path for path in runs.iterdir() if not path.is_symlink() and path.is_dir())
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return {name: tensor for file in newest.glob("*.safetensors") for name, tensor in load_file(file).items()}


def main() -> None:
    """Run every setting and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=28, help="kills over all settings together")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    num_killed, num_equal = 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tiny(folder / "model", "llama", seed=1)
        write_rows(folder / "train.jsonl")
        write_rows(folder / "valid.jsonl")
        for number, setting in enumerate(SETTINGS):
            whole = folder / f"whole-{number}"
            took_s = run_whole(command(folder, whole, setting))
            expected = final_weights(whole)
            wanted = arguments.kills // len(SETTINGS) + (number < arguments.kills % len(SETTINGS))
            moments: list[float] = []
            equal = True
            for attempt in count():
                if len(moments) == wanted or not equal:
                    break
                killed = folder / f"killed-{number}-{attempt}"
                start = command(folder, killed, setting)
                moments += run_killed(start, killed, wanted - len(moments), took_s, chance, number=setting.number)
                found = final_weights(killed)
                equal = expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)
            num_killed += len(moments)
            num_equal += equal
            shown = ", ".join(f"{moment:.1f}" for moment in moments)
            verdict = "identical" if equal else "DIFFER"
            print(f"{setting}: {len(moments)} kills (after {shown} s), {len(expected)} tensors {verdict}", flush=True)
        met_once = run_with_other_rows(folder, took_s)
    print(f"other rows in a step after a resume: each row {'once' if met_once else 'NOT ONCE'} in each epoch")
    print(f"{num_killed} kills, {num_equal} of {len(SETTINGS)} settings bit-identical")
    sys.exit(num_equal != len(SETTINGS) or not met_once)


if __name__ == "__main__":
    main()
