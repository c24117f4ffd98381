"""A training step run on tensors that have a shape but no numbers, and what is alive in it at each moment.

In: a model on the meta device and the rows of a pack. Out: the fullest moments of the step, in bytes, by what they are
for. Forward, head and backward are the ones that `train` runs, so that what autograd keeps is counted, not guessed, for
any architecture.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deft.model.likelihood import PackedRows, SupervisedNLL, base_model, takes_packs

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


class Watch(TorchDispatchMode):
    """Counts the bytes of every storage alive, by what made it, and remembers the fullest moments."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage()._cdata for weight in weights}
        self.kind_of: dict[int, str] = {}
        self.size_of: dict[int, int] = {}
        self.references: dict[int, Any] = {}
        self.added: int | None = None
        self.added_bytes = 0
        self.addends: set[int] = set()
        self.alive = dict.fromkeys(Moment._fields, 0)
        self.fullest: dict[int, tuple[int, Moment]] = {}
        self.in_head = self.in_backward = False

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.settle()
        result = operator(*args, **(kwargs or {}))
        if operator is torch.ops.aten.add.Tensor and self.in_backward and not torch.is_grad_enabled():
            self.expect_reuse(result, args)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.meet(tensor, self.kind(operator, args))
        self.look()
        return result

    def expect_reuse(self, result: torch.Tensor, inputs: Any) -> None:
        """Count the sum of two gradients only if neither of them goes at once.

        Autograd adds into one that nothing else refers to, but not where tensors are fake; then that one goes here.
        """
        self.added, self.added_bytes = (result.untyped_storage()._cdata, result.untyped_storage().nbytes())
        self.addends = {part.untyped_storage()._cdata for part in inputs if isinstance(part, torch.Tensor)}

    def settle(self) -> None:
        """Count the storage of the last sum."""
        if self.added is not None and self.size_of.get(self.added) == 0:
            self.size_of[self.added] = self.added_bytes
            self.alive[self.kind_of[self.added]] += self.added_bytes
        self.added, self.addends = None, set()

    def kind(self, operator: Any, args: Any) -> str:
        """Say what a new tensor is for."""
        name = operator.overloadpacket.__name__
        if name == "_to_copy" and args[0].untyped_storage()._cdata in self.weights:
            return "weight_copies"
        if "scaled_dot_product" in name or "flash_attention" in name:
            return "attention"
        if self.in_head:
            return "head"
        return "working" if self.in_backward and not torch.is_grad_enabled() else "activations"

    def meet(self, tensor: torch.Tensor, kind: str) -> None:
        """Count a tensor's storage, if it is new, until it goes; a known one changes its kind to `gradients` only."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.weights:
            return
        if key in self.kind_of:
            if kind == "gradients":
                self.settle()
                self.alive[self.kind_of[key]] -= self.size_of[key]
                self.kind_of[key] = kind
                self.alive[kind] += self.size_of[key]
            return
        self.kind_of[key] = kind
        self.size_of[key] = 0 if key == self.added else storage.nbytes()
        self.alive[kind] += self.size_of[key]
        self.references[key] = weakref.ref(storage, lambda _: self.leave(key))

    def leave(self, key: int) -> None:
        """Stop counting a storage that has been freed."""
        if key in self.addends or key == self.added:
            self.settle()
        del self.references[key]
        self.alive[self.kind_of.pop(key)] -= self.size_of.pop(key)

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
            self.look()


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
        watch.fullest.clear()
        casting = torch.autocast("cpu", dtype=autocast) if autocast is not None else nullcontext()
        with takes_packs(model), watch:
            with casting, head_noticed(model, watch):
                nll = SupervisedNLL(*model(packed=packed))
            saved = watch.alive["activations"] + watch.alive["attention"]
            loss = nll.total / 2  # any number: the loss is divided by the supervised tokens of the step
            del nll
            watch.in_backward = True
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
