"""How likely a model finds the supervised tokens: what training, scoring and evaluation all stand on.

Token sequences in, the negative log-likelihood (NLL, in nats) of every supervised token out. Rows are laid end to end
without padding and kept apart by `deft.model.attention`; the head, which is a large part of a small model's work, runs
only where a token is supervised, a chunk at a time, so that no `[tokens, vocab]` array ever exists.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from deft.model.attention import RowLengths, rows_apart
from deft.types import IGNORED_LABEL, TokenSequence

HEAD_CHUNK_TOKENS = 512
"""Supervised positions that pass through the head at a time: 512 × a vocabulary of 150,000 in fp32 is 0.3 GB."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedRows:
    """Rows laid end to end for one forward pass.

    `input_ids`, `position_ids` int64 [1, tokens] (positions restart with each row); `predicting` int64 [supervised]
    are the positions whose next token is supervised, `targets` int64 [supervised] those tokens, `row_of` int64
    [supervised] the index of the row each belongs to, and `weights` fp32 [supervised] their loss weights, None where
    all are 1. `rows` are the sequences themselves, where there are any.
    """

    row_ids: tuple[str, ...]
    row_lengths: tuple[int, ...]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predicting: torch.Tensor
    targets: torch.Tensor
    row_of: torch.Tensor
    weights: torch.Tensor | None = None
    rows: tuple[TokenSequence, ...] = ()

    @classmethod
    def lay(cls, sequences: Sequence[TokenSequence]) -> "PackedRows":
        """Lay `sequences` end to end, in their order."""
        lengths = tuple(len(row) for row in sequences)
        labels = torch.cat([torch.from_numpy(row.labels).long() for row in sequences])
        row_of_token = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        supervised = (labels != IGNORED_LABEL).nonzero().squeeze(1)
        return cls(
            row_ids=tuple(row.id for row in sequences),
            row_lengths=lengths,
            input_ids=torch.cat([torch.from_numpy(row.input_ids).long() for row in sequences])[None],
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
            predicting=supervised - 1,  # never crosses a row: the first token of a row carries no label
            targets=labels[supervised],
            row_of=row_of_token[supervised],
            weights=weights_of(sequences)[supervised] if any(row.weights is not None for row in sequences) else None,
            rows=tuple(sequences),
        )

    @property
    def num_tokens(self) -> int:
        """All tokens of the pack."""
        return self.input_ids.shape[1]

    @property
    def num_supervised(self) -> int:
        """The tokens of the pack that carry loss."""
        return len(self.targets)

    @property
    def total_weight(self) -> float:
        """Their loss weights, added up."""
        return len(self.targets) if self.weights is None else self.weights.double().sum().item()


def weights_of(sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Return the loss weights of all tokens of some sequences, end to end, fp32."""
    ones = (torch.ones(len(row)) if row.weights is None else torch.from_numpy(row.weights) for row in sequences)
    return torch.cat(list(ones))


class SupervisedNLL(NamedTuple):
    """`total`: the sum over supervised tokens, each by its weight, differentiable; `per_token` fp32 [supervised]:
    their NLL without weights, detached.

    It is a tuple because DDP and FSDP find the tensors of a forward pass in tuples only.
    """

    total: torch.Tensor
    per_token: torch.Tensor

    def per_row(self, packed: PackedRows) -> torch.Tensor:
        """Return the NLL summed over each row, weighted as `total` is, fp64 [rows], on the CPU."""
        sums = torch.zeros(len(packed.row_ids), dtype=torch.float64)
        per_token = self.per_token.double().cpu()
        return sums.index_add_(0, packed.row_of, per_token if packed.weights is None else per_token * packed.weights)


def supervised_nll(model: PreTrainedModel, packed: PackedRows) -> SupervisedNLL:
    """Run the model over one pack, its rows kept apart (the caller holds `rows_apart` open), and return the NLL."""
    device = model.device
    inputs: dict[str, Any] = {
        "input_ids": packed.input_ids.to(device),
        "position_ids": packed.position_ids.to(device),
        "row_lengths": RowLengths(packed.row_lengths),
        "use_cache": False,
    }
    predicting, targets = packed.predicting.to(device), packed.targets.to(device)
    weights = None if packed.weights is None else packed.weights.to(device)
    base = base_model(model)
    if not has_plain_head(base):
        logits = model(**inputs, logits_to_keep=predicting).logits[0].float()
        per_token = nn.functional.cross_entropy(logits, targets, reduction="none")
        weighted = per_token if weights is None else per_token * weights
        return SupervisedNLL(total=weighted.sum(), per_token=per_token.detach())
    decoder, head = cast(nn.Module, base.get_decoder()), cast(nn.Linear, base.get_output_embeddings())
    hidden = decoder(**inputs).last_hidden_state[0, predicting]

    def losses(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = head_weight(head)
        if not torch.is_grad_enabled():  # a Function is told what wants a gradient, not whether any is asked for
            weight = weight.detach()
        return ChunkedCrossEntropy.apply(hidden, weight, targets, weights)

    # Through the head's own call, because hooks on it bring its weight together where it is sharded (ZeRO-3, FSDP2).
    with forward_replaced(head, losses):
        total, per_token = head(hidden)
    return SupervisedNLL(total=total, per_token=per_token)


@contextmanager
def takes_packs(model: PreTrainedModel) -> Iterator[None]:
    """Have `model(packed=…)` return the `SupervisedNLL` of a pack while the context is open, its rows kept apart.

    Training calls the model itself, not the function, so that DDP, FSDP and DeepSpeed see their forward pass.
    """
    plain_forward = model.forward

    def forward(*args: Any, packed: PackedRows | None = None, **options: Any) -> Any:
        return plain_forward(*args, **options) if packed is None else supervised_nll(model, packed)

    with rows_apart(model), forward_replaced(model, forward):
        yield


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have `module` compute `forward` while the context is open."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def base_model(model: Any) -> PreTrainedModel:
    """Return the causal language model inside an adapter's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_plain_head(model: PreTrainedModel) -> bool:
    """Say whether logits are just `hidden @ head_weight.T`, as in most models; the others compute their own."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    scales = ("logit_scale", "logits_scaling", "final_logit_softcapping")
    plain = all(getattr(config, name, None) in (None, 1, 1.0) for name in scales)
    return plain and isinstance(head, nn.Linear) and head.bias is None and head.weight.is_floating_point()


def head_weight(head: nn.Linear) -> torch.Tensor:
    """Return the weight `[vocab, hidden]` of a plain head; one that normalises (Baichuan2's) says what it comes to.

    It is asked for once a pack, outside the chunks: normalising and its gradient then cost little beside them.
    """
    effective_weight: Callable[[], torch.Tensor] | None = getattr(head, "effective_weight", None)
    return head.weight if effective_weight is None else effective_weight()


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of `hidden @ weight.T`, summed, whose gradients are made in the forward pass chunk by chunk.

    Keeping logits for the backward pass would take `[supervised, vocab]` of memory, and computing them again a third
    matrix product; because only a sum is differentiated, the gradients are known up to one scalar as soon as a chunk's
    logits are, and nothing but them is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, token_weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shapes: `hidden` [supervised, hidden], `weight` [vocab, hidden], `targets`, `token_weights` [supervised]."""
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        ctx.hidden_dtype, ctx.weight_dtype = hidden.dtype, weight.dtype
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind):  # once, and for the gradients' products too, which autocast leaves alone
            hidden, weight = (each.to(torch.get_autocast_dtype(kind)) for each in (hidden, weight))
        per_token = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for start in range(0, len(targets), HEAD_CHUNK_TOKENS):
            here = slice(start, start + HEAD_CHUNK_TOKENS)
            rows = torch.arange(len(targets[here]), device=hidden.device)
            log_likelihood = torch.log_softmax(hidden[here] @ weight.T, dim=-1, dtype=torch.float32)
            per_token[here] = -log_likelihood[rows, targets[here]]
            if not (needs_hidden or needs_weight):
                continue
            grad_logits = log_likelihood.exp_()
            grad_logits[rows, targets[here]] -= 1.0
            if token_weights is not None:
                grad_logits *= token_weights[here, None]
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[here])
            if grad_weight is not None and hidden.dtype == torch.float32:
                grad_weight.addmm_(grad_logits.T, hidden[here])
            elif grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[here]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(per_token)
        weighted = per_token if token_weights is None else per_token * token_weights
        return weighted.sum(), per_token

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _: torch.Tensor) -> Any:
        """Scale the stored gradients by the one number that was not known in the forward pass."""
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(ctx.hidden_dtype) * grad_total
        if grad_weight is not None:
            grad_weight = (grad_weight.mul_(grad_total)).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None
