"""Kill a training run again and again (kill -9), resume it, and compare its weights with an uninterrupted run's.

    python -m benchmarks.resume_exact [--kills 20] [--seed 0]

For full fine-tuning and LoRA, each with gradient accumulation 1 and 4, a real `deft train` process is killed at random
moments of its life: while it loads, trains, validates or writes a checkpoint. Every final tensor must be bit-identical.
Exit code 1 if one is not.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

import torch
from safetensors.torch import load_file

from deft.data.write import write_examples
from deft.model.tiny import save_tiny
from deft.types import Example, Message

NUM_ROWS = 48
NUM_EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train."""

    method: str
    accumulation: int

    def __str__(self) -> str:
        return f"{self.method}, accumulation {self.accumulation}"


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
    return [sys.executable, "-m", "deft", "train", *(str(part) for pair in values.items() for part in pair)]


def run_whole(start: list[str]) -> float:
    """Run without interruption; return the seconds it took."""
    began_at = time.monotonic()
    subprocess.run(start, check=True, capture_output=True)
    return time.monotonic() - began_at


def run_killed(start: list[str], runs: Path, kills: int, whole_s: float, chance: random.Random) -> list[float]:
    """Kill the run up to `kills` times at random moments, resuming each time, until it ends; return the moments."""
    moments: list[float] = []
    while True:
        resumes = ["--resume-training"] if any(runs.glob("*/run.json")) else []
        process = subprocess.Popen([*start, *resumes], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        moment = chance.uniform(0.2, 0.8) * whole_s if len(moments) < kills else None
        try:
            _, message = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            moments.append(moment or 0.0)
            if is_finished(runs):  # killed in the last moments of the process, after its last checkpoint
                return moments
            continue
        if process.returncode:
            raise SystemExit(f"the resumed run failed:\n{message.decode()}")
        return moments


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
    parser.add_argument("--kills", type=int, default=20, help="kills over all settings together")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    settings = [Setting(method=m, accumulation=a) for m, a in product(("full", "lora"), (1, 4))]
    num_killed, num_equal = 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tiny(folder / "model", "llama", seed=1)
        write_rows(folder / "train.jsonl")
        write_rows(folder / "valid.jsonl")
        for number, setting in enumerate(settings):
            whole = folder / f"whole-{number}"
            took_s = run_whole(command(folder, whole, setting))
            expected = final_weights(whole)
            wanted = arguments.kills // len(settings) + (number < arguments.kills % len(settings))
            moments: list[float] = []
            equal = True
            for attempt in count():
                if len(moments) == wanted or not equal:
                    break
                killed = folder / f"killed-{number}-{attempt}"
                start = command(folder, killed, setting)
                moments += run_killed(start, killed, wanted - len(moments), took_s, chance)
                found = final_weights(killed)
                equal = expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)
            num_killed += len(moments)
            num_equal += equal
            shown = ", ".join(f"{moment:.1f}" for moment in moments)
            verdict = "identical" if equal else "DIFFER"
            print(f"{setting}: {len(moments)} kills (after {shown} s), {len(expected)} tensors {verdict}", flush=True)
    print(f"{num_killed} kills, {num_equal} of {len(settings)} settings bit-identical")
    sys.exit(num_equal != len(settings))


if __name__ == "__main__":
    main()
