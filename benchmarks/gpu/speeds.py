"""Speed and memory of large random models: training beside the machine's limit and the dry run, and decoding.

Training is deft's own packed step, forward and backward through `takes_packs`, clipping, AdamW. Memory is on a GPU what
PyTorch's allocator handed out, on the CPU the peak of the resident set less what was resident after the imports.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters
from torch.nn.utils import clip_grad_norm_

from benchmarks.gpu.models import NUM_WARM_UP_STEPS, ModelName, Plan, fits
from benchmarks.gpu.parts import Line, checked, measured, skipped, tried
from benchmarks.memory_estimate import ALLOWED_RATIO, status_bytes
from deft.errors import UserError
from deft.estimate.workload import median_s
from deft.fingerprint import versions
from deft.model.cost import attention_width, model_size
from deft.model.device import choose_device
from deft.model.generate import generate
from deft.model.kernels import check_liger, use_liger
from deft.model.likelihood import PackedRows, SupervisedNLL, supervised_nll, takes_packs
from deft.model.sampling import Sampling
from deft.model.selftest import TOLERANCE_NATS
from deft.model.speed import checkpoint_activations, compile_layers
from deft.training.out_of_memory import free_memory
from deft.training.prepare import prepare_device, with_adapters
from deft.training.utilisation import PRODUCT_SIZE, Utilisation, product_limit

COPIED_BYTES = {True: 1 << 24, False: 1 << 32}
PROMPT_TOKENS = 128
BATCHES = {True: (1, 2, 4), False: (1, 32, 128)}
NEW_TOKENS = {True: 4, False: 64}


def machine(small: bool) -> Iterator[Line]:
    """Name the machine and its software, and measure its limits: products, and memory read and written."""
    device = choose_device(None)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    named = versions() | {"cuda": str(torch.version.cuda)}
    yield measured("device", name, versions=named)
    yield measured("software", ", ".join(f"{package} {number}" for package, number in named.items()))
    numbers = Plan(model="Llama 7B", small=small).numbers()
    kind = numbers.autocast or numbers.held
    side = PRODUCT_SIZE[device.type]
    rate = product_limit(device, kind)
    yield measured(f"product of {side}³, {kind}", f"{rate / 1e12:,.1f} TFLOP/s", flop_per_s=rate)
    source = torch.ones(COPIED_BYTES[small] // 4, device=device)
    target = torch.empty_like(source)
    rate = 2 * COPIED_BYTES[small] / median_s(lambda: target.copy_(source), device, 0.3)
    yield measured("copy, bytes read and written", f"{rate / 1e9:,.0f} GB/s", bytes_per_s=rate)


# --- training -------------------------------------------------------------------------------------------------------


def lora_7b(small: bool) -> Iterator[Line]:
    """Train adapters of a Llama of 7B."""
    yield from training(Plan(model="Llama 7B", small=small))


def lora_13b(small: bool) -> Iterator[Line]:
    """Train adapters of Baichuan2-13B."""
    yield from training(Plan(model="Baichuan2 13B", small=small))


def full(small: bool) -> Iterator[Line]:
    """Train all weights of a Llama of 7B, or where the memory is too small for that, one of 3B."""
    names: tuple[ModelName, ...] = ("Llama 7B",) if small else ("Llama 7B", "Llama 3B")
    for name in names:
        plan = Plan(model=name, method="full", small=small)
        yield from training(plan)
        if fits(plan.predicted(checkpointing=True)[0]):
            return


def training(plan: Plan) -> Iterator[Line]:
    """Measure training without and with gradient checkpointing, as far as the dry run says that it fits."""
    resident = 0 if torch.cuda.is_available() else status_bytes("VmRSS")
    model: Any = None
    for checkpointing in (False, True):
        what = f"{plan.name}, {plan.method}" + ", checkpointing" * checkpointing
        foreseen, is_of_step = plan.predicted(checkpointing=checkpointing)
        if not fits(foreseen):
            yield skipped(what, f"does not fit: {foreseen / 1e9:.1f} GB by the dry run")
            continue
        model = model if model is not None else trainable(plan)
        if checkpointing:
            model.enable_input_require_grads()
            checkpoint_activations(model, "nothing")
        yield from tried(what, partial(measure_training, plan, model, what, foreseen if is_of_step else None, resident))
        free_memory()


def trainable(plan: Plan) -> Any:
    """Return the model ready to train, with adapters where the method asks for them."""
    if torch.cuda.is_available():
        prepare_device(plan.settings())
    model = plan.make_model()
    return with_adapters(model, plan.settings(), train_embeddings=False) if plan.method == "lora" else model


def measure_training(plan: Plan, model: Any, what: str, foreseen: int | None, resident: int) -> Iterator[Line]:
    """Train some steps, and compare their speed with the machine's limit and their memory with the dry run."""
    forget_peak()
    seconds = statistics.median(step_times(model, plan))
    taken = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else status_bytes("VmHWM") - resident
    yield speed_line(plan, model, what, seconds)
    if foreseen is None:
        yield skipped(f"{what}: memory", "by the dry run, saving a checkpoint takes more than such a small step")
        return
    ratio = foreseen / taken
    yield checked(
        f"{what}: memory",
        f"{taken / 1e9:.2f} GB, predicted {foreseen / 1e9:.2f} GB: {ratio:.3f}",
        holds=abs(ratio - 1) <= ALLOWED_RATIO,
        allowed=f"{1 - ALLOWED_RATIO:g} to {1 + ALLOWED_RATIO:g}",
        taken_bytes=taken,
        predicted_bytes=foreseen,
    )


def speed_line(plan: Plan, model: Any, what: str, seconds: float) -> Line:
    """Return what a step's time comes to; computing activations again does not count as use of the machine."""
    numbers = plan.numbers()
    limit = product_limit(choose_device(None), numbers.autocast or numbers.held)
    utilisation = Utilisation(
        size=model_size(model, plan.method),
        attention_width=attention_width(plan.model_config),
        method=plan.method,
        limit_flop_per_s=limit,
    )
    flop = utilisation.flop(PackedRows.lay(plan.rows()))
    mfu = flop / seconds / limit
    rate = sum(plan.row_lengths) / seconds
    seen = f"{rate:,.0f} tokens/s, {seconds:.3f} s a step, MFU {mfu:.1%}"
    return measured(what, seen, tokens_per_s=rate, step_s=seconds, mfu=mfu, flop=flop, limit_flop_per_s=limit)


def forget_peak() -> None:
    """Have the peak of memory start anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def step_times(model: Any, plan: Plan) -> list[float]:
    """Train for some steps, and return the seconds of each after the warm-up."""
    autocast = plan.numbers().autocast
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    pack = PackedRows.lay(plan.rows())
    taken = []
    model.train()
    with takes_packs(model):
        for _ in range(NUM_WARM_UP_STEPS + plan.num_steps):
            began_at = time.perf_counter()
            with torch.autocast(choose_device(None).type, autocast) if autocast is not None else nullcontext():
                nll = SupervisedNLL(*model(packed=pack))
            (nll.total / pack.num_supervised).backward()
            clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if not np.isfinite(nll.total.item()):  # waits for the device, up to the forward pass
                raise ArithmeticError("the loss is no number")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began_at)
    return taken[NUM_WARM_UP_STEPS:]


# --- faster layers --------------------------------------------------------------------------------------------------


def liger(small: bool) -> Iterator[Line]:
    """Compare a Llama with and without Liger's kernels."""
    try:
        check_liger()
    except UserError as error:
        yield skipped("Liger's kernels", error.what)
        return
    yield from faster(
        Plan(model="Llama 7B", small=small),
        "Liger",
        partial(use_liger, rows=Plan(model="Llama 7B", small=small).rows()),
    )


def compiled(small: bool) -> Iterator[Line]:
    """Compare a Llama with and without compiled layers."""
    yield from faster(Plan(model="Llama 7B", small=small), "compiled", compile_layers)
    frames = counters["frames"]
    yield checked(
        "layers that were compiled",
        f"{counters['stats']['unique_graphs']} graphs, {frames['ok']} of {frames['total']} frames",
        holds=counters["stats"]["unique_graphs"] > 0 and frames["ok"] == frames["total"],
        allowed="all, and none run as they were",
        frames=dict(frames),
        breaks=len(counters["graph_break"]),
    )


def faster(plan: Plan, name: str, change: Any) -> Iterator[Line]:
    """Measure training before and after a change to the layers, and that it computes the same."""
    model = trainable(plan)
    before = loss_of(model, plan)
    plain_s = statistics.median(step_times(model, plan))
    yield speed_line(plan, model, f"{plan.name}, without: {name}", plain_s)
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:
            torch.nn.init.zeros_(weight)  # as before training
    change(model)
    began_at = time.perf_counter()
    after = loss_of(model, plan)
    times = step_times(model, plan)
    ready_s = time.perf_counter() - began_at - sum(times)
    seconds = statistics.median(times)
    yield speed_line(plan, model, f"{plan.name}, with: {name}", seconds)
    off, allowed = abs(after - before), TOLERANCE_NATS[plan.numbers().held]
    seen = f"{plain_s / seconds:.2f} × as fast, ready after {ready_s:.0f} s, loss {off:.1e} nats off"
    values = {"times": plain_s / seconds, "ready_s": ready_s, "loss_off_nats": off}
    yield checked(f"{plan.name}: {name}", seen, holds=off <= allowed, allowed=f"{allowed:g} nats", **values)


@torch.no_grad()
def loss_of(model: Any, plan: Plan) -> float:
    """Return the mean NLL of the plan's rows."""
    autocast = plan.numbers().autocast
    pack = PackedRows.lay(plan.rows())
    with takes_packs(model), torch.autocast(choose_device(None).type, autocast) if autocast else nullcontext():
        return supervised_nll(model, pack).total.item() / pack.num_supervised


# --- decoding -------------------------------------------------------------------------------------------------------


def decode(small: bool) -> Iterator[Line]:
    """Decode batches of prompts greedily."""
    names: tuple[ModelName, ...] = ("Llama 7B", "Baichuan2 13B")
    for name in names:
        plan = Plan(model=name, small=small)
        model = plan.make_model()
        for batch in BATCHES[small]:
            what = f"{plan.name}, batch {batch}"
            yield from tried(what, partial(measure_decoding, model, what, batch, NEW_TOKENS[small]))
        del model
        free_memory()


def measure_decoding(model: Any, what: str, batch: int, num_new: int) -> Iterator[Line]:
    """Decode one batch, and return its tokens a second after the first of each row."""
    prompts = np.random.default_rng(batch).integers(1000, 32_000, (batch, PROMPT_TOKENS)).tolist()
    times: list[float] = []
    settings = Sampling(max_new_tokens=num_new, exact=False)
    most = batch * (PROMPT_TOKENS + num_new)  # all of it at once
    for told in (None, lambda *_: times.append(time.perf_counter())):  # the first is a warm-up
        generate(model, prompts, stop_token_ids=(), settings=settings, on_token=told, max_batch_tokens=most)
    assert len(times) == batch * num_new
    rate = (len(times) - batch) / (times[-1] - times[batch - 1])
    seen = f"{rate:,.0f} tokens/s, {batch / rate * 1e3:.1f} ms a pass"
    yield measured(what, seen, tokens_per_s=rate, batch=batch, prompt_tokens=PROMPT_TOKENS, new_tokens=num_new)
