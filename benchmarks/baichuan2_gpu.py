"""Train and decode Baichuan2-13B and -7B with random weights: speed, and memory against the dry run's prediction.

    python -m benchmarks.baichuan2_gpu [--size full|small] [--only 13B] [--row-tokens N] [--rows N] [--steps N]

The full size is made on one GPU, in bf16, and needs no download and no disk; it is the default where there is a CUDA
device. Elsewhere models of the same two layouts and the same vocabulary, but few and narrow layers, run on the CPU in
fp32: that shows that the benchmark works, and says nothing about the full size.

Training is deft's own packed step with LoRA adapters, with and without gradient checkpointing: forward and backward
through `takes_packs`, clipping, AdamW. Decoding is `deft.model.generate`, greedy. MFU is the share of the fastest large
matrix product seen on the same device. Memory is measured in a process of its own for each setting, on a GPU what
PyTorch's allocator handed out (`max_memory_allocated`), on the CPU the peak of the resident set less what was resident
after the imports; the prediction is compared without what it says for libraries and tokenizers that are not there.
Exit code 1 if a prediction is off by more than 10 %.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM

from benchmarks.memory_estimate import ALLOWED_RATIO, NO_MATTER, status_bytes
from deft.model.baichuan2.configuration import Baichuan2Config
from deft.model.generate import generate
from deft.model.likelihood import PackedRows, SupervisedNLL, takes_packs
from deft.model.load import choose_device
from deft.model.sampling import Sampling
from deft.model.speed import checkpointing_settings
from deft.prompt.format import EncodeResult
from deft.train.config import TrainConfig
from deft.train.estimate import LIBRARY_BYTES, Estimate, estimate, numbers_of
from deft.train.prepare import prepare_device, with_adapters
from deft.train.utilisation import Utilisation
from deft.types import IGNORED_LABEL, TokenSequence

FULL: dict[str, dict[str, Any]] = {
    "13B": {},  # the configuration's own defaults
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
}
SMALL: dict[str, dict[str, Any]] = {
    "13B": {"hidden_size": 640, "intermediate_size": 1712, "num_hidden_layers": 8, "num_attention_heads": 10},
    "7B": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "max_position_embeddings": 4096,
    },
}
SUPERVISED_RATIO = 0.3
NUM_WARM_UP_STEPS = 2
DECODED_BATCHES = (1, 32)
PROMPT_TOKENS = 128
DECISIVE = 20.0
"""The final norm's weight while decoding: random logits are so close to each other that deft would choose nearly every
token again from its row alone; those of a trained model are not."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run: the size of the models, rows of `row_tokens` of which `num_rows` make a pack, the timed steps."""

    size: str
    row_tokens: int
    num_rows: int
    num_steps: int
    new_tokens: int

    def config_of(self, layout: str) -> Baichuan2Config:
        """Return the configuration of a layout, "13B" or "7B"."""
        return Baichuan2Config(**(FULL if self.size == "full" else SMALL)[layout])

    def settings(self, *, checkpointing: bool) -> TrainConfig:
        """Return the settings of training, as a run would have them."""
        return TrainConfig(
            method="lora",
            gradient_checkpointing=checkpointing,
            batch_size=self.num_rows,
            max_length_tokens=self.row_tokens,
            pack_length_tokens=self.row_tokens * self.num_rows,
            max_steps=NUM_WARM_UP_STEPS,
        )

    def rows(self) -> list[TokenSequence]:
        """Return the rows of two packs: random tokens, the last of each row supervised."""
        random = np.random.default_rng(0)
        num_prompt = round(self.row_tokens * (1 - SUPERVISED_RATIO))
        made = []
        for number in range(NUM_WARM_UP_STEPS * self.num_rows):
            ids = random.integers(1000, 100_000, self.row_tokens, dtype=np.int32)
            labels = np.where(np.arange(self.row_tokens) < num_prompt, IGNORED_LABEL, ids).astype(np.int32)
            made.append(TokenSequence(id=str(number), input_ids=ids, labels=labels))
        return made

    def predicted(self, layout: str, *, checkpointing: bool) -> Estimate:
        """Return what a dry run says."""
        rows = EncodeResult(sequences=tuple(self.rows()), dropped=(), num_shortened=0)
        config = self.settings(checkpointing=checkpointing)
        return estimate(config, self.config_of(layout), rows, speed=NO_MATTER, methods=())


# --- what the processes do ------------------------------------------------------------------------------------------


def random_model(plan: Plan, layout: str) -> Any:
    """Return a model with random weights, made on the device, in the type that training holds it in."""
    torch.manual_seed(0)
    held = numbers_of(plan.settings(checkpointing=False), "lora").held
    with torch.device(choose_device(None)):
        return AutoModelForCausalLM.from_config(plan.config_of(layout), dtype=held).eval()


def checkpoint_activations(model: Any) -> None:
    """Have activations computed again in the backward pass, as `train` does."""
    model.enable_input_require_grads()
    model.activation_checkpointing_enable(checkpointing_settings("nothing"))


def step_times(model: Any, plan: Plan, num_steps: int) -> list[float]:
    """Train an adapted model for some steps, and return the seconds of each after the warm-up."""
    autocast = numbers_of(plan.settings(checkpointing=False), "lora").autocast
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rows = plan.rows()
    packs = [PackedRows.lay(rows[start : start + plan.num_rows]) for start in range(0, len(rows), plan.num_rows)]
    taken = []
    model.train()
    with takes_packs(model):
        for step in range(NUM_WARM_UP_STEPS + num_steps):
            pack = packs[step % len(packs)]
            began_at = time.perf_counter()
            casting = torch.autocast(choose_device(None).type, autocast) if autocast is not None else nullcontext()
            with casting:
                nll = SupervisedNLL(*model(packed=pack))
            (nll.total / pack.num_supervised).backward()
            clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            nll.total.item()
            finish()
            taken.append(time.perf_counter() - began_at)
    return taken[NUM_WARM_UP_STEPS:]


def finish() -> None:
    """Wait for a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_memory(plan: Plan, layout: str, *, checkpointing: bool) -> dict[str, float]:
    """Train for the steps in which the fullest moment comes, and return the bytes they took."""
    before = status_bytes("VmRSS")
    model = with_adapters(
        random_model(plan, layout), plan.settings(checkpointing=checkpointing), train_embeddings=False
    )
    if checkpointing:
        checkpoint_activations(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    step_times(model, plan, 0)
    taken = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else status_bytes("VmHWM") - before
    return {"bytes": taken}


def measure_speed(plan: Plan, layout: str, checkpointing: Sequence[bool]) -> dict[str, Any]:
    """Decode, then train with and without checkpointing as asked for."""
    prepare_device(plan.settings(checkpointing=False))
    model = random_model(plan, layout)
    decoding = [decode(model, plan, batch) for batch in DECODED_BATCHES]
    device = choose_device(None)
    adapted = with_adapters(model, plan.settings(checkpointing=False), train_embeddings=False)
    numbers = numbers_of(plan.settings(checkpointing=False), "lora")
    utilisation = Utilisation.of(adapted, "lora", device, numbers.autocast or numbers.held)
    flop = utilisation.flop(PackedRows.lay(plan.rows()[: plan.num_rows]))
    training = []
    for again in checkpointing:
        if again:
            checkpoint_activations(adapted)
        seconds = statistics.median(step_times(adapted, plan, plan.num_steps))
        rate = flop / seconds / utilisation.limit_flop_per_s
        training.append({"seconds": seconds, "mfu": rate, "limit": utilisation.limit_flop_per_s})
    return {"training": training, "decoding": decoding}


def decode(model: Any, plan: Plan, batch: int) -> dict[str, float]:
    """Decode a batch of prompts greedily, and return tokens a second after the first of each row."""
    random = np.random.default_rng(batch)
    prompts = random.integers(1000, 100_000, (batch, PROMPT_TOKENS)).tolist()
    norm = model.get_decoder().norm.weight
    times: list[float] = []
    passes = [0]

    def note(index: int, token: int) -> None:
        times.append(time.perf_counter())

    def count(*_: Any) -> None:
        passes[0] += 1

    with torch.no_grad():
        norm.fill_(DECISIVE)
    generate(model, prompts, stop_token_ids=(), settings=Sampling(max_new_tokens=2))  # warm-up
    counted = model.register_forward_pre_hook(count)
    generate(
        model,
        prompts,
        stop_token_ids=(),
        settings=Sampling(max_new_tokens=plan.new_tokens),
        on_token=note,
    )
    counted.remove()
    with torch.no_grad():
        norm.fill_(1.0)
    assert len(times) == batch * plan.new_tokens
    later = len(times) - batch
    return {
        "batch": batch,
        "tokens_per_s": later / (times[-1] - times[batch - 1]),
        "again": (passes[0] - plan.new_tokens) / len(times),
    }


# --- the tables -----------------------------------------------------------------------------------------------------


def run_part(part: str, plan: Plan, layout: str, **values: Any) -> dict[str, Any]:
    """Run one part in a process of its own, and return what it found."""
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536"} if part == "memory" else {}  # glibc keeps nothing for itself
    order = json.dumps({"part": part, "plan": asdict(plan), "layout": layout, "values": values})
    command = [sys.executable, "-m", "benchmarks.baichuan2_gpu", "--part", order]
    done = subprocess.run(command, env=os.environ | exact, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part} of {layout} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def comparable_bytes(found: Estimate) -> int:
    """Return a prediction without what is not there: a GPU's libraries are not PyTorch's allocations, and no tokenizer.

    The benchmark saves no checkpoint, so a prediction that is of that moment cannot be compared.
    """
    chosen = found.chosen
    assert chosen.activations_bytes, "a step takes less than saving a checkpoint: take longer rows"
    return chosen.total_bytes - chosen.library_bytes + (0 if torch.cuda.is_available() else LIBRARY_BYTES["cpu"])


def run_layout(plan: Plan, layout: str, training: Table, decoding: Table) -> int:
    """Add a layout's lines to the tables, and return how many of its predictions are off."""
    predicted = {again: comparable_bytes(plan.predicted(layout, checkpointing=again)) for again in (False, True)}
    runs = [again for again in predicted if fits(predicted[again])]
    speed = run_part("speed", plan, layout, checkpointing=runs)
    num_off = 0
    for again, foreseen in predicted.items():
        name, way = f"{layout} layout", "on" if again else "off"
        if again not in runs:
            training.add_row(name, way, "", "", "", f"{foreseen / 1e9:.2f}", "does not fit", "")
            continue
        taken = run_part("memory", plan, layout, checkpointing=again)["bytes"]
        one = speed["training"][runs.index(again)]
        ratio = foreseen / taken
        num_off += abs(ratio - 1) > ALLOWED_RATIO
        rate = plan.row_tokens * plan.num_rows / one["seconds"]
        memory = (f"{foreseen / 1e9:.2f}", f"{taken / 1e9:.2f}", f"{ratio:.3f}")
        training.add_row(name, way, f"{one['seconds']:.3f}", f"{rate:,.0f}", f"{one['mfu']:.1%}", *memory)
    for one in speed["decoding"]:
        rate = one["tokens_per_s"]
        decoding.add_row(f"{layout} layout", f"{one['batch']}", f"{rate:,.1f}", f"{one['again']:.1%}")
    return num_off


def fits(num_bytes: int) -> bool:
    """Say whether this device can hold so much; of a CPU it is believed."""
    if not torch.cuda.is_available():
        return True
    return num_bytes + LIBRARY_BYTES["cuda"] < torch.cuda.get_device_properties(choose_device(None)).total_memory


def machine() -> str:
    """Name what the benchmark runs on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, bf16"
    return f"the CPU ({torch.get_num_threads()} threads), fp32: there is no CUDA device here"


def parse() -> argparse.Namespace:
    """Return the flags."""
    default = "full" if torch.cuda.is_available() else "small"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("full", "small"), default=default, help="full needs a CUDA device")
    parser.add_argument("--only", choices=tuple(FULL), help="run one layout alone")
    parser.add_argument("--row-tokens", type=int, help="tokens of a row; 1,024 at full size")
    parser.add_argument("--rows", type=int, default=2, help="rows of a pack, which is a step")
    parser.add_argument("--steps", type=int, help=f"timed steps, after {NUM_WARM_UP_STEPS} of warm-up")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run both layouts and print the tables."""
    arguments = parse()
    if arguments.part:
        order = json.loads(arguments.part)
        measure = {"memory": measure_memory, "speed": measure_speed}[order["part"]]
        print(json.dumps(measure(Plan(**order["plan"]), order["layout"], **order["values"])))
        return
    is_full = arguments.size == "full"
    if is_full and not torch.cuda.is_available():
        raise SystemExit("the full size needs a CUDA device: leave --size full out")
    plan = Plan(
        size=arguments.size,
        row_tokens=arguments.row_tokens or (1024 if is_full else 512),
        num_rows=arguments.rows,
        num_steps=arguments.steps or (10 if is_full else 2),
        new_tokens=128 if is_full else 16,
    )
    print(f"size {plan.size} on {machine()}")
    if not is_full:
        print("SMALL SIZE: random models of the same layouts, a few narrow layers; NOT the 7B and the 13B")
    training = Table(
        title=f"LoRA on packs of {plan.num_rows} × {plan.row_tokens} tokens, {SUPERVISED_RATIO:.0%} of loss"
    )
    for column in ("model", "checkpointing", "s a step", "tokens/s", "MFU", "predicted, GB", "measured, GB", "ratio"):
        training.add_column(column, justify="left" if column in ("model", "checkpointing") else "right")
    decoding = Table(title=f"decoding {plan.new_tokens} tokens after {PROMPT_TOKENS}, greedy")
    for column in ("model", "batch", "tokens/s", "chosen again"):
        decoding.add_column(column, justify="left" if column == "model" else "right")
    began_at = time.monotonic()
    layouts = [arguments.only] if arguments.only else list(FULL)
    num_off = sum(run_layout(plan, layout, training, decoding) for layout in layouts)
    console = Console(width=120)
    console.print(training)
    console.print(decoding)
    print(f"{num_off} predictions off by more than {ALLOWED_RATIO:.0%}; {time.monotonic() - began_at:.0f} s")
    sys.exit(num_off > 0)


if __name__ == "__main__":
    main()
