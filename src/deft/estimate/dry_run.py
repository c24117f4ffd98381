"""`deft train --dry-run`: examples and settings in, the tables of an `Estimate` on the terminal; nothing is written."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from deft.errors import UserError
from deft.estimate.estimate import Estimate, estimate
from deft.estimate.memory import SHARDINGS, MemoryEstimate
from deft.hub.find import find
from deft.language.catalogue import translated, worded
from deft.model.cost import ADAM_BYTES_PER_PARAMETER
from deft.screen import say, styled
from deft.training.arguments import arguments_of
from deft.training.config import TrainConfig
from deft.training.kernel import with_fast_dtype
from deft.training.run import encode, settled, start_of
from deft.types import Example

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", re.IGNORECASE)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
NAMES = {"none": "one copy each", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2"}
COUNTED = ("fsdp", "fsdp_config", "deepspeed")
"""Settings under `trainer` that say how devices share a model; offloading, which they may ask for, is not counted."""
METHODS = {"full": "full", "lora": "LoRA, rsLoRA", "rslora": "rsLoRA", "dora": "DoRA", "qlora": "QLoRA (4-bit base)"}


def dry_run(
    config: TrainConfig,
    train_examples: Sequence[Example],
    valid_examples: Sequence[Example],
    console: Console,
    *,
    num_devices: int = 1,
    device_memory: str | None = None,
) -> Estimate:
    """Encode and pack the rows as `train` would, estimate the run and print the estimate.

    Raises:
        UserError: where `train` would refuse the settings or the rows, or if the size of a device cannot be read.
    """
    config = with_fast_dtype(config)
    limit_bytes = parse_bytes(device_memory) if device_memory is not None else None
    others = {name: value for name, value in config.trainer.items() if name != "deepspeed"}  # it need not be installed
    arguments_of(dataclasses.replace(config, trainer=others), Path("unused"))
    if not train_examples:
        raise UserError("there are no rows to train on", fix="give --train FILE_OR_FOLDER")
    model = find(config.model, weights=False)
    if model.is_adapter:
        fix = "name its base model: what the adapter adds is small"
        raise UserError("a dry run needs a whole model, and this is an adapter", got=str(model.folder), fix=fix)
    start = start_of(config, model)
    config = settled(config, model.folder, console)
    rows = encode(train_examples, start, config, split="training", console=console)
    if valid_examples:
        encode(valid_examples, start, config, split="validation", console=console)
    with console.status(styled("tracing steps without numbers …")):
        found = estimate(
            config,
            model.folder,
            rows,
            vocab_size=len(start.tokenizer),
            train_embeddings=start.num_added_tokens > 0,
            num_devices=num_devices,
            device_memory_bytes=limit_bytes,
        )
    print_estimate(found, config, console)
    return found


def parse_bytes(text: str) -> int:
    """Return a size such as `80GB` (10⁹ bytes each) or `80GiB` (2³⁰) in bytes.

    Raises:
        UserError: if it is no size, or nothing.
    """
    match = SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * UNITS[(match[2] or "").upper()]) if match else 0
    if size <= 0:
        raise UserError("not a valid memory size", got=text, fix="write it like 80GB or 24GiB")
    return size


# --- what is printed ------------------------------------------------------------------------------------------------


def print_estimate(found: Estimate, config: TrainConfig, console: Console) -> None:
    """Print the work, the memory of the chosen settings, and how other settings compare."""
    console.print(work_table(found))
    console.print(parts_table(found))
    console.print(settings_table(found))
    if passed_over := [name for name in config.trainer if name not in COUNTED]:
        say(console, "not counted: the settings under `trainer` ({names})", names=", ".join(passed_over), fold=True)
    if found.device_memory_bytes is not None:
        place = shown_bytes(found.device_memory_bytes)
        if found.advice is None:
            say(console, "[green]✓[/] it fits in {place}", place=place)
        else:
            say(console, "[red]✗[/] it does not fit in {place}: {advice!t}", place=place, advice=found.advice)


def plain_table(title: str) -> Table:
    """Return an empty table in the one style used here."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")


def work_table(found: Estimate) -> Table:
    """Return the table of rows, tokens, packs, steps and time."""
    work, speed = found.workload, found.speed
    table = plain_table(worded("the run"))
    table.add_column(worded("what"))
    table.add_column(worded("how much"), justify="right")
    table.add_row(worded("rows"), f"{work.num_rows:,}")
    if work.num_sequences != work.num_rows:
        table.add_row(worded("sequences"), f"{work.num_sequences:,}")
    for reason, count in work.dropped:
        table.add_row(worded("dropped: {reason}", reason=reason), f"{count:,}")
    if work.num_shortened:
        table.add_row(worded("shortened to fit"), f"{work.num_shortened:,}")
    table.add_row(worded("tokens, each epoch"), f"{work.num_tokens:,}")
    table.add_row(worded("supervised tokens"), f"{work.num_supervised:,}")
    table.add_row(worded("packs, first epoch"), f"{work.num_packs:,}")
    table.add_row(worded("largest pack, tokens"), f"{work.largest_pack_tokens:,}")
    table.add_row(worded("optimizer steps, each epoch"), f"{work.steps_per_epoch:,}")
    table.add_row(worded("optimizer steps in all"), f"{work.num_steps:,}")
    table.add_row(worded("time, about"), shown_time(found.time_s))
    rate = speed.matmul_flop_per_s / 1e9
    table.caption = worded(
        "time: an estimate from this {device}'s {rate:,.0f} GFLOP/s of matrix products", device=speed.device, rate=rate
    )
    return table


def parts_table(found: Estimate) -> Table:
    """Return what the memory of one device is for, at the fullest moment of a step."""
    chosen, size = found.chosen, found.size
    num_parts = 1 if chosen.sharding == "none" else chosen.num_devices
    has_copy = chosen.optimizer_bytes * num_parts > ADAM_BYTES_PER_PARAMETER * size.num_trainable
    table = plain_table(worded("memory of one device: {way}", way=way_of(chosen)))
    table.add_column(worded("what"))
    table.add_column(worded("bytes"), justify="right")
    table.add_column(worded("of which"), overflow="fold")
    parts = {
        "weights": (worded("weights"), worded("{number:,} parameters", number=size.num_parameters)),
        "gathered": (worded("gathered"), worded("what devices bring together or exchange")),
        "gradients": (
            worded("gradients"),
            worded("{number:,} trained; those there at this moment", number=size.num_trainable),
        ),
        "optimizer": (
            worded("optimizer"),
            worded("AdamW's two moments, and the weights in fp32" if has_copy else "AdamW's two moments"),
        ),
        "activations": (
            worded("activations"),
            worded(
                "{size} kept by each of {layers} layers",
                size=shown_bytes(chosen.saved_per_layer_bytes),
                layers=size.num_layers,
            ),
        ),
        "attention": (worded("attention"), worded("outputs, row by row")),
        "head": (
            worded("head"),
            worded("{number:,} supervised positions, a chunk at a time", number=found.workload.largest_pack_supervised),
        ),
        "weight_copies": (worded("weight copies"), worded("weights in the format products are computed in")),
        "working": (worded("working"), worded("the rest of the backward pass")),
        "library": (worded("library"), worded("libraries and their buffers")),
    }
    for name, (word, note) in parts.items():
        value = getattr(chosen, f"{name}_bytes")
        if value or name in ("weights", "gradients", "activations"):
            table.add_row(word, shown_bytes(value), note)
    table.add_section()
    table.add_row(worded("at the fullest moment"), f"[bold]{shown_bytes(chosen.total_bytes)}[/]")
    return table


def settings_table(found: Estimate) -> Table:
    """Return the memory of other ways to train, a row each, a column for each way to share it among devices."""
    shardings = [name for name in SHARDINGS if any(memory.sharding == name for memory in found.others)]
    table = plain_table(worded("memory of one device, other settings"))
    table.add_column(worded("way to train"), min_width=len("checkpointing"))
    for name in shardings:
        table.add_column(
            translated(NAMES[name]) if len(shardings) > 1 else worded("memory"), justify="right", min_width=7
        )
    ways = dict.fromkeys((memory.method, memory.gradient_checkpointing) for memory in found.others)
    for method, checkpointing in ways:
        alike = {m.sharding: m for m in found.others if (m.method, m.gradient_checkpointing) == (method, checkpointing)}
        cells = [shown_fit(alike[name], found.device_memory_bytes) for name in shardings]
        table.add_row(translated(METHODS[method] + ", checkpointing" * checkpointing), *cells)
    return table


def shown_fit(memory: MemoryEstimate, limit_bytes: int | None) -> str:
    """Return a setting's memory, marked where a limit was given."""
    text = shown_bytes(memory.total_bytes)
    if limit_bytes is None:
        return text
    return f"{text} [green]✓[/]" if memory.total_bytes <= limit_bytes else f"{text} [red]✗[/]"


def way_of(memory: MemoryEstimate) -> str:
    """Return a setting in words."""
    method = worded("full") if memory.method == "full" else METHODS[memory.method].split(",")[0]
    checkpointing = "with gradient checkpointing" if memory.gradient_checkpointing else "without gradient checkpointing"
    words = [method, worded(checkpointing)]
    if memory.num_devices > 1 and memory.sharding == "none":
        words.append(worded("one copy on each of {number} devices", number=memory.num_devices))
    elif memory.num_devices > 1:
        way = NAMES[memory.sharding]
        words.append(worded("{way}, {number} devices", way=way, number=memory.num_devices))
    return worded(", ").join(words)


def shown_bytes(count: int) -> str:
    """Return bytes as people read them: `3.34 GB`, `120 MB`, `8 kB`."""
    if count >= 10**11:
        return f"{count / 10**9:,.0f} GB"
    if count >= 10**9:
        return f"{count / 10**9:,.2f} GB"
    return f"{count / 10**6:,.0f} MB" if count >= 10**6 else f"{count / 1000:,.0f} kB"


def shown_time(seconds: float) -> str:
    """Return a time as people read it: `40 s`, `12 min`, `5.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
