"""What a training step holds in memory, found by running the step itself on tensors that have a shape but no numbers.

In: a model's configuration, a method, and the rows of a pack. Out: bytes, by what they are for. Forward, head and
backward are the ones that `train` runs, so that what autograd keeps is counted, not guessed, for any architecture;
weights are never loaded. What several devices share is then divided by arithmetic.
"""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig

from deft.model.adapters import add_lora
from deft.model.likelihood import PackedRows, SupervisedNLL, base_model, takes_packs
from deft.model.load import quiet_transformers

Method = Literal["full", "lora", "rslora", "dora", "qlora"]
Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp2"]
SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)

ADAM_BYTES_PER_PARAMETER = 8
"""Two moments in fp32, where the weights are fp32; AdamW keeps them in the weights' own type otherwise."""
NF4_BYTES_PER_PARAMETER = 4 / 8 + 1 / 64 + 4 / (64 * 256)
"""4-bit codes, an 8-bit scale for each 64 of them, and an fp32 scale for each 256 scales (QLoRA, 2023, section 3)."""
MAX_TRACED_ROWS = 4
"""More rows than this are merged for the trace: saved tensors depend on their sum, and four show how they overlap."""


class Moment(NamedTuple):
    """Bytes alive at one moment of a step, besides the weights and the optimizer's states.

    `activations`: made by the layers, to be used in the backward pass (or again, with checkpointing); `attention`:
    outputs and row statistics of attention; `head`: logits, their gradients, and what the head keeps; `weight_copies`:
    weights in another number format (autocast); `working`: the rest of the backward pass.
    """

    gradients: int
    activations: int
    attention: int
    head: int
    weight_copies: int
    working: int


NOTHING = Moment(*[0] * len(Moment._fields))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTrace:
    """One step: the fullest moment for each amount of gradients, and what is kept when the forward pass ends."""

    moments: tuple[Moment, ...]
    saved_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Bytes of a model's tensors, each shared one counted once, and its sizes for arithmetic.

    `matrix_parameters`: weights of all linear layers but the head (`adapter_parameters` of an adapter's);
    `layer_bytes`: the largest part that a sharded model brings together at a time, a layer or the embeddings, and
    `layer_trainable_bytes` how much of it has gradients; `largest_matrix_parameters`: of one linear layer.
    """

    num_parameters: int
    num_trainable: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    matrix_parameters: int
    adapter_parameters: int
    head_parameters: int
    largest_matrix_parameters: int
    quantised_bytes_saved: int
    layer_bytes: int
    layer_trainable_bytes: int
    num_layers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Peak memory of one device for one way to train, at the fullest moment of a step; the parts sum to the peak."""

    method: Method
    gradient_checkpointing: bool
    sharding: Sharding
    num_devices: int
    weights_bytes: int
    gathered_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    attention_bytes: int
    head_bytes: int
    weight_copies_bytes: int
    working_bytes: int
    library_bytes: int
    saved_per_layer_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        parts = [f.name for f in fields(self) if f.name.endswith("_bytes") and f.name != "saved_per_layer_bytes"]
        return sum(getattr(self, name) for name in parts)


# --- a model without numbers ----------------------------------------------------------------------------------------


def meta_model(
    config: PreTrainedConfig,
    *,
    method: Method,
    dtype: torch.dtype,
    lora_rank: int = 16,
    train_embeddings: bool = False,
    gradient_checkpointing: bool = False,
) -> Any:
    """Return the model that `train` would make, on the meta device: shapes and types, no numbers.

    A quantised base has the shapes of a plain one here; `model_size` counts its bytes.
    """
    with torch.device("meta"), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # names that leave with transformers 6
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.train()
        if gradient_checkpointing:  # transformers itself sets this up, when training begins
            model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        if method != "full":
            if gradient_checkpointing:
                model.enable_input_require_grads()
            model = adapted(model, method, lora_rank, train_embeddings)
    return model


def adapted(model: Any, method: Method, rank: int, train_embeddings: bool) -> Any:
    """Put adapters on a model; DoRA's magnitudes too (rsLoRA only scales its adapters differently)."""
    if method != "dora":
        return add_lora(model, rank=rank, alpha=2.0 * rank, dropout=0.0, train_embeddings=train_embeddings)
    from peft import LoraConfig, get_peft_model

    whole = (model.get_input_embeddings(), model.get_output_embeddings()) if train_embeddings else ()
    names = [name for name, module in model.named_modules() if any(module is part for part in whole)]
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=rank, target_modules="all-linear", use_dora=True, modules_to_save=names or None
    )
    return get_peft_model(model, settings)


def model_size(model: Any, method: Method) -> ModelSize:
    """Count a model's parameters and bytes; `qlora` holds the linear layers of the base, but not the head, in NF4."""
    base = base_model(model)
    head = base.get_output_embeddings()
    weights = list(model.parameters())
    trainable = [weight for weight in weights if weight.requires_grad]
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    adapters = [m.weight for name, m in linears.items() if "lora_" in name]
    matrices = [m.weight for name, m in linears.items() if "lora_" not in name]
    saved = 0
    if method == "qlora":
        saved = sum(w.numel() * w.element_size() - round(w.numel() * NF4_BYTES_PER_PARAMETER) for w in matrices)
    layers = decoder_layers(base)
    parts = [list(layer.parameters()) for layer in layers] + [[base.get_input_embeddings().weight], [head.weight]]
    largest = max(parts, key=num_bytes)
    return ModelSize(
        num_parameters=sum(weight.numel() for weight in weights),
        num_trainable=sum(weight.numel() for weight in trainable),
        weights_bytes=num_bytes(weights) + num_bytes(model.buffers()) - saved,
        gradients_bytes=num_bytes(trainable),
        optimizer_bytes=sum(w.numel() * ADAM_BYTES_PER_PARAMETER * w.element_size() // 4 for w in trainable),
        matrix_parameters=sum(weight.numel() for weight in matrices),
        adapter_parameters=sum(weight.numel() for weight in adapters),
        head_parameters=head.weight.numel(),
        largest_matrix_parameters=max((weight.numel() for weight in matrices), default=0),
        quantised_bytes_saved=saved,
        layer_bytes=num_bytes(largest),
        layer_trainable_bytes=num_bytes(weight for weight in largest if weight.requires_grad),
        num_layers=len(layers),
    )


def num_bytes(tensors: Any) -> int:
    """Return the bytes of tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def decoder_layers(base: Any) -> list[nn.Module]:
    """Return the layers of a decoder: its longest list of modules."""
    lists = [list(module) for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Turn the meta tensors of a model into ones that say they are on the CPU, so that its operators are chosen.

    Meta tensors alone would take the plain attention, which keeps the square of a row's length.
    """
    made: dict[int, tuple[torch.Tensor, Any]] = {}
    cpu = torch.device("cpu")
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    fake = nn.Parameter(FakeTensor(mode, weight.data, cpu), requires_grad=weight.requires_grad)
                    made[id(weight)] = (weight, fake)
                module._parameters[name] = made[id(weight)][1]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, buffer, cpu)


# --- one step, watched ----------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Counts the bytes of every storage alive, by what made it, and remembers the fullest moments."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage()._cdata for weight in weights}
        self.kind_of: dict[int, str] = {}
        self.references: dict[int, Any] = {}
        self.alive = dict.fromkeys(Moment._fields, 0)
        self.fullest: dict[int, tuple[int, Moment]] = {}
        self.in_head = False

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.meet(tensor, self.kind(operator, args))
        self.look()
        return result

    def kind(self, operator: Any, args: Any) -> str:
        """Say what a new tensor is for."""
        name = operator.overloadpacket.__name__
        if name == "_to_copy" and args[0].untyped_storage()._cdata in self.weights:
            return "weight_copies"
        if "scaled_dot_product" in name or "flash_attention" in name:
            return "attention"
        if self.in_head:
            return "head"
        return "activations" if torch.is_grad_enabled() else "working"

    def meet(self, tensor: torch.Tensor, kind: str) -> None:
        """Count a tensor's storage, if it is new, until it goes; a known one changes its kind to `gradients` only."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.weights:
            return
        if key in self.kind_of:
            if kind == "gradients":
                self.alive[self.kind_of[key]] -= size
                self.kind_of[key] = kind
                self.alive[kind] += size
            return
        self.kind_of[key] = kind
        self.alive[kind] += size
        self.references[key] = weakref.ref(storage, lambda _: self.leave(key, size))

    def leave(self, key: int, size: int) -> None:
        """Stop counting a storage that has been freed."""
        del self.references[key]
        self.alive[self.kind_of.pop(key)] -= size

    def look(self) -> None:
        """Remember this moment if it is the fullest with these gradients."""
        gradients = self.alive["gradients"]
        total = sum(self.alive.values())
        if total > self.fullest.get(gradients, (-1, None))[0]:
            self.fullest[gradients] = (total, Moment(**self.alive))

    def count_gradient(self, weight: torch.Tensor) -> None:
        """Count a weight's gradient as such, once it has been added up."""
        if weight.grad is not None:
            self.meet(weight.grad, "gradients")


def trace_step(
    model: Any,
    lengths: Sequence[int],
    num_supervised: int,
    *,
    autocast: torch.dtype | None = None,
    has_gradients: bool = False,
) -> StepTrace:
    """Run forward and backward of one pack on a model from `meta_model`, which is used up, and watch its memory.

    `lengths` are the rows of the pack, `autocast` the type that products are computed in where it is not the weights';
    `has_gradients` where the pack is not the first of its optimizer step.
    """
    mode = FakeTensorMode()
    make_fake(model, mode)
    with mode, torch.random.fork_rng(devices=[]):
        packed = empty_pack(merged(lengths) if not windowed(model) else tuple(lengths), num_supervised)
        watch = Watch([*model.parameters(), *model.buffers(), packed.input_ids, packed.position_ids])
        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(watch.count_gradient)
                if has_gradients:
                    weight.grad = torch.zeros_like(weight)
                    watch.count_gradient(weight)
        casting = torch.autocast("cpu", dtype=autocast) if autocast is not None else nullcontext()
        with takes_packs(model), watch:
            with casting, head_noticed(model, watch):
                nll = SupervisedNLL(*model(packed=packed))
            saved = watch.alive["activations"] + watch.alive["attention"]
            loss = nll.total / 2  # any number: the loss is divided by the supervised tokens of the step
            del nll
            loss.backward()
    return StepTrace(moments=tuple(moment for _, moment in watch.fullest.values()), saved_bytes=saved)


@contextmanager
def head_noticed(model: Any, watch: Watch) -> Iterator[None]:
    """Have the forward pass be counted as the head's from where the head is called."""

    def begin(*_: Any) -> None:
        watch.in_head = True

    handle = base_model(model).get_output_embeddings().register_forward_pre_hook(begin)
    try:
        yield
    finally:
        handle.remove()
        watch.in_head = False


def windowed(model: Any) -> bool:
    """Say whether a model's attention looks back a limited distance, which a mask the size of the row is made for."""
    return getattr(base_model(model).config.get_text_config(), "sliding_window", None) is not None


def merged(lengths: Sequence[int]) -> tuple[int, ...]:
    """Return at most `MAX_TRACED_ROWS` rows of the same tokens together."""
    if len(lengths) <= MAX_TRACED_ROWS:
        return tuple(lengths)
    return (*lengths[: MAX_TRACED_ROWS - 1], sum(lengths[MAX_TRACED_ROWS - 1 :]))


def empty_pack(lengths: tuple[int, ...], num_supervised: int) -> PackedRows:
    """Return a pack of these rows; which tokens are supervised does not matter to memory, only how many."""
    ids = torch.zeros(1, sum(lengths), dtype=torch.int64)
    predicting = torch.zeros(num_supervised, dtype=torch.int64)
    return PackedRows(
        row_ids=tuple(str(row) for row in range(len(lengths))),
        row_lengths=lengths,
        input_ids=ids,
        position_ids=ids.clone(),
        predicting=predicting,
        targets=predicting.clone(),
        row_of=predicting.clone(),
    )


# --- what each device holds -----------------------------------------------------------------------------------------


def divide(
    size: ModelSize,
    traces: Sequence[StepTrace],
    *,
    method: Method,
    gradient_checkpointing: bool,
    sharding: Sharding = "none",
    num_devices: int = 1,
    compute_bytes: int = 4,
    library_bytes: int = 0,
) -> MemoryEstimate:
    """Return one device's memory at the fullest moment of a step.

    ZeRO-1 divides the optimizer's states by the devices, ZeRO-2 the gradients too, ZeRO-3 and FSDP2 the weights too
    (Rajbhandari et al. 2020, section 5); these bring one layer together at a time, FSDP2 the next one as well. A
    layer's gradients are whole before they are divided. Without sharding, DDP copies all gradients into its buckets.
    `compute_bytes` is the size of the number products are computed in: a 4-bit layer is widened to it while it is used.
    """
    n = num_devices if sharding != "none" else 1
    splits_gradients, splits_weights = sharding in ("zero2", "zero3", "fsdp2"), sharding in ("zero3", "fsdp2")
    weights = size.weights_bytes // n if splits_weights else size.weights_bytes
    gathered = size.layer_bytes * (2 if sharding == "fsdp2" else 1) if splits_weights and n > 1 else 0
    if sharding == "none" and num_devices > 1:
        gathered = size.gradients_bytes
    whole_gradients = size.layer_trainable_bytes if splits_gradients and n > 1 else 0
    widened = size.largest_matrix_parameters * compute_bytes if method == "qlora" else 0

    def held(moment: Moment) -> Moment:
        gradients = moment.gradients // n + whole_gradients if splits_gradients else moment.gradients
        copies = min(moment.weight_copies, gathered) if splits_weights and n > 1 else moment.weight_copies
        return moment._replace(gradients=gradients, weight_copies=copies)

    peak = max((held(moment) for trace in traces for moment in trace.moments), key=sum, default=NOTHING)
    return MemoryEstimate(
        method=method,
        gradient_checkpointing=gradient_checkpointing,
        sharding=sharding,
        num_devices=num_devices,
        weights_bytes=weights,
        gathered_bytes=gathered,
        gradients_bytes=peak.gradients,
        optimizer_bytes=size.optimizer_bytes // n,
        activations_bytes=peak.activations,
        attention_bytes=peak.attention,
        head_bytes=peak.head,
        weight_copies_bytes=peak.weight_copies,
        working_bytes=peak.working + widened,
        library_bytes=library_bytes,
        saved_per_layer_bytes=max((trace.saved_bytes for trace in traces), default=0) // size.num_layers,
    )
