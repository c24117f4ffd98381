"""Compare the memory that `deft train --dry-run` predicts with what training takes.

    python -m benchmarks.memory_estimate [--only WORDS] [--malloc default]

Each setting trains two steps in a process of its own, so that the second step has the optimizer's states. On the CPU
its memory is the peak of its resident set (VmHWM) less what was resident after the imports; on a GPU what PyTorch
counts (`max_memory_allocated`), against the prediction without the library's part. Exit code 1 if a ratio is off by
more than 10 %. On the CPU, blocks above 64 KiB are given back to the system when they are freed
(MALLOC_MMAP_THRESHOLD_), because glibc otherwise keeps some for itself, as a matter of luck; `--malloc default` leaves
it so.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from deft.estimate.estimate import estimate
from deft.estimate.workload import MachineSpeed
from deft.model.matmul import multiplies_in_bfloat16
from deft.model.start import start_from
from deft.testing.tiny import save_tiny
from deft.training.config import TrainConfig
from deft.training.run import encode, train
from deft.types import Example, Message

QUIET = Console(quiet=True)
ALLOWED_RATIO = 0.10
NUM_STEPS = 2
NO_MATTER = MachineSpeed(device="cpu", matmul_flop_per_s=1e11, memory_bytes_per_s=1e10)
"""Time is not compared: returning memory at once costs much of it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train: `model` is smollm2-135m or what `save_tiny` takes; rows have about `row_tokens`."""

    name: str
    model: str | dict[str, Any] = "smollm2-135m"
    row_tokens: int = 120
    changes: dict[str, Any] = field(default_factory=dict)


SMALL = {"num_layers": 12, "hidden_size": 512, "num_heads": 8, "num_key_value_heads": 8, "max_length_tokens": 4096}
DEEP = {"num_layers": 24, "hidden_size": 256, "num_heads": 4, "num_key_value_heads": 2, "max_length_tokens": 4096}
ALIBI = {"architecture": "baichuan2", "vocab_size": 40_000} | SMALL
"""The 13B's layout: 5 heads of 64, so a row of 2,048 tokens has a bias of 84 MB; the head is 51 MB."""
ROPE = {"architecture": "baichuan2_rope", "vocab_size": 40_000} | SMALL
LONG_ROWS = {"batch_size": 2, "max_length_tokens": 2048, "pack_length_tokens": 4096}
SETTINGS = (
    Setting(name="smollm2 full", changes={"batch_size": 4}),
    Setting(name="smollm2 full, checkpointing", changes={"batch_size": 4, "gradient_checkpointing": True}),
    Setting(name="smollm2 LoRA", changes={"batch_size": 4, "method": "lora"}),
    Setting(
        name="smollm2 LoRA, checkpointing", changes={"batch_size": 4, "method": "lora", "gradient_checkpointing": True}
    ),
    Setting(name="smollm2 full, bfloat16", changes={"batch_size": 4, "dtype": "bfloat16"}),
    Setting(name="smollm2 full, longer pack", changes={"batch_size": 8, "pack_length_tokens": 1024}),
    Setting(name="smollm2 full, accumulation 2", changes={"batch_size": 4, "gradient_accumulation": 2}),
    Setting(name="random Llama 12 × 512, full", model=SMALL, row_tokens=500, changes={"batch_size": 4}),
    Setting(
        name="random Llama 24 × 256, long rows, packs of 4096",
        model=DEEP,
        row_tokens=1000,
        changes={"batch_size": 4, "max_length_tokens": 2048, "pack_length_tokens": 4096},
    ),
    Setting(
        name="random Llama 24 × 256, LoRA, packs of 4096",
        model=DEEP,
        row_tokens=1000,
        changes={"batch_size": 4, "max_length_tokens": 2048, "pack_length_tokens": 4096, "method": "lora"},
    ),
    Setting(name="random Baichuan2, ALiBi, full", model=ALIBI, row_tokens=1900, changes=LONG_ROWS),
    Setting(name="random Baichuan2, ALiBi, LoRA", model=ALIBI, row_tokens=1900, changes=LONG_ROWS | {"method": "lora"}),
    Setting(
        name="random Baichuan2, ALiBi, LoRA, checkpointing",
        model=ALIBI,
        row_tokens=1900,
        changes=LONG_ROWS | {"method": "lora", "gradient_checkpointing": True},
    ),
    Setting(name="random Baichuan2, RoPE, full", model=ROPE, row_tokens=1900, changes=LONG_ROWS),
    Setting(
        name="random Baichuan2, RoPE, LoRA, checkpointing",
        model=ROPE,
        row_tokens=1900,
        changes=LONG_ROWS | {"method": "lora", "gradient_checkpointing": True},
    ),
)


def rows_of(setting: Setting, config: TrainConfig) -> list[Example]:
    """Return rows for two steps, Chinese and English, of about the tokens that the setting asks for."""
    per_unit = 14 if isinstance(setting.model, str) else 26
    units = max(setting.row_tokens // per_unit, 2)
    made = []
    for number in range(NUM_STEPS * config.batch_size * config.gradient_accumulation):
        question = f"第 {number} 题。" + "请一步一步算。" * (units // 3)
        reply = f"The answer to {number} is " + "twenty five, I think, " * (units - units // 3)
        made.append(Example.create([Message(role="user", content=question), Message(role="assistant", content=reply)]))
    return made


def config_of(setting: Setting, folder: Path) -> TrainConfig:
    """Return the settings of a run; a random model is made in `folder` first."""
    model = setting.model
    if isinstance(model, dict):
        model = str(folder / "model")
        if not Path(model).exists():
            save_tiny(Path(model), **setting.model)
    values = {"model": model, "max_length_tokens": 512, "output_dir": folder / "runs", "max_steps": NUM_STEPS}
    return TrainConfig(**(values | setting.changes))  # type: ignore[arg-type]


def measure(setting: Setting, folder: Path) -> None:
    """Train, in this process, and print the bytes it took as JSON."""
    import peft  # noqa: F401  # so that its code is not counted
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    config = config_of(setting, folder)
    rows = rows_of(setting, config)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_bytes("VmRSS")
    train(config, rows, [], QUIET)
    on_gpu = torch.cuda.is_available()
    taken = torch.cuda.max_memory_allocated() if on_gpu else status_bytes("VmHWM") - before
    print(json.dumps({"bytes": taken}))


def status_bytes(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def run_setting(setting: Setting, malloc: str) -> dict[str, int]:
    """Predict and measure one setting."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_of(setting, folder)
        start = start_from(config.model, config.chat_format)
        rows = encode(rows_of(setting, config), start, config, split="training", console=QUIET)
        found = estimate(config, start.found.folder, rows, speed=NO_MATTER, methods=())
        environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if malloc == "exact" else {})
        values = json.dumps(dataclasses.asdict(setting))
        command = [sys.executable, "-m", "benchmarks.memory_estimate", "--measure", values, "--folder", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{setting.name} failed:\n{done.stderr}")
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    predicted = found.chosen.total_bytes
    if torch.cuda.is_available():
        predicted -= found.chosen.library_bytes
    return {
        "tokens": found.workload.largest_pack_tokens,
        "predicted": predicted,
        "measured": measured["bytes"],
    }


def main() -> None:
    """Run every setting and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="run only settings whose name holds this")
    parser.add_argument("--malloc", choices=("exact", "default"), default="exact", help="how glibc gives memory back")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(Setting(**json.loads(arguments.measure)), arguments.folder)
        return
    table = Table(title="peak memory of a device, predicted and measured")
    for column in ("setting", "pack, tokens", "predicted, MB", "measured, MB", "ratio"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    num_off = 0
    began_at = time.monotonic()
    for setting in SETTINGS:
        if arguments.only and arguments.only not in setting.name:
            continue
        if "dtype" in setting.changes and not (torch.cuda.is_available() or multiplies_in_bfloat16()):
            print(setting.name, "left out: nothing here multiplies in bfloat16", sep=" · ")
            continue
        row = run_setting(setting, arguments.malloc)
        ratio = row["predicted"] / row["measured"]
        num_off += abs(ratio - 1) > ALLOWED_RATIO
        cells = [f"{row['predicted'] / 1e6:,.0f}", f"{row['measured'] / 1e6:,.0f}", f"{ratio:.3f}"]
        table.add_row(setting.name, f"{row['tokens']:,}", *cells)
        print(setting.name, *cells, sep=" · ", flush=True)
    Console(width=140).print(table)
    print(f"{num_off} settings off by more than {ALLOWED_RATIO:.0%}; {time.monotonic() - began_at:.0f} s")
    sys.exit(num_off > 0)


if __name__ == "__main__":
    main()
