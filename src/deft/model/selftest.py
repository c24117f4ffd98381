"""A test on the user's own model and rows before any training: packed, each row must read as it does alone.

Attention that deft does not know of (linear attention, a convolution over tokens, code that drops the rows' lengths)
would let rows of a pack see each other, and nothing in a loss curve would tell.
"""

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from deft.errors import UserError
from deft.model.attention import rows_apart
from deft.model.likelihood import PackedRows, base_model, supervised_nll
from deft.model.memory import is_out_of_memory
from deft.types import IGNORED_LABEL, TokenSequence

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configurations call the number of experts."""
MAX_ROWS = 4
MAX_TOKENS = 1024
MAX_COMPARED = 256
"""Supervised tokens of a row, its last ones, that are compared with the row alone: where a leak changes one, it changes
all, and the logits of a long row alone would take more memory than training does."""
TOLERANCE_NATS = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
"""How far the NLL of a supervised token may be off, on average: rounding stays far below, a leak goes far above."""


@torch.no_grad()
def check_packing(model: PreTrainedModel, rows: Sequence[TokenSequence]) -> float:
    """Compare the NLL of a few rows in one pack with that of each row alone; return the mean difference in nats.

    Before that, one row behind two different neighbours must read exactly the same.

    The model alone runs as its authors wrote it: own attention, own head, no packs.

    Raises:
        UserError: if the difference is more than rounding, or the model cannot run packs, or gives no numbers.
    """
    chosen = few_short_rows(rows)
    was_training = model.training
    model.eval()
    try:
        alone = torch.cat([nll_alone(model, row) for row in chosen])
        with rows_apart(model):
            pack = PackedRows.lay(chosen)
            packed = last_of_each(pack, supervised_nll(model, pack).per_token)
            apart = (
                nll_beside(model, chosen[0], chosen[-1].input_ids),
                nll_beside(model, chosen[0], other_ids(chosen[-1])),
            )
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise cannot_pack(model, f"{type(error).__name__}: {error}") from error
    finally:
        model.train(was_training)
    if not torch.isfinite(alone).all():
        fault = "the model gives no finite loss, before any training"
        raise UserError(fault, got="rows " + ", ".join(row.id for row in chosen), fix="fetch the model again")
    difference = (packed - alone).abs().mean().item()
    if not difference <= TOLERANCE_NATS.get(model.dtype, 1e-3):
        raise cannot_pack(model, f"{difference:.3g} nats per token over {len(chosen)} rows")
    leak = (apart[0] - apart[1]).abs().max().item()
    if leak > (TOLERANCE_NATS.get(model.dtype, 1e-3) if has_experts(model) else 0.0):
        raise cannot_pack(model, f"a row reads otherwise beside another neighbour: by {leak:.3g} nats in one token")
    return difference


def nll_beside(model: PreTrainedModel, row: TokenSequence, neighbour: NDArray[np.int32]) -> torch.Tensor:
    """Return the NLL of a row's supervised tokens, fp32 [supervised], in a pack behind these tokens.

    What stands before a row is what could leak into it. Two neighbours of equal length give packs of equal shapes, in
    which the same kernels do the same work, so the row must come out the same to the bit, whatever the number format.
    """
    labels = np.full(len(neighbour), IGNORED_LABEL, dtype=np.int32)
    labels[-1] = neighbour[-1]
    before = TokenSequence(id="neighbour", input_ids=neighbour, labels=labels)
    packed = PackedRows.lay([before, row])
    return supervised_nll(model, packed).per_token[packed.row_of == 1]


def other_ids(row: TokenSequence) -> NDArray[np.int32]:
    """Return as many tokens as a row has, all of them its own, but in another place each."""
    ids = row.input_ids
    return np.roll(ids, 1) if len(set(ids.tolist())) > 1 else (ids == 0).astype(np.int32)


def has_experts(model: PreTrainedModel) -> bool:
    """Say whether a model sends tokens to experts: how many each gets, and so its kernels, change with neighbours."""
    config = model.config.get_text_config()
    counts = (getattr(config, name, None) for name in EXPERT_COUNTS)
    return any(isinstance(count, int) and count > 1 for count in counts)


def few_short_rows(rows: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Return the shortest rows, at most `MAX_ROWS` and `MAX_TOKENS` together, and at least one."""
    by_length = sorted(rows, key=len)[:MAX_ROWS]
    while len(by_length) > 1 and sum(map(len, by_length)) > MAX_TOKENS:
        by_length.pop()
    return by_length


def nll_alone(model: PreTrainedModel, row: TokenSequence) -> torch.Tensor:
    """Return the NLL of a row's last supervised tokens, fp32 [compared], from a plain forward pass."""
    packed = PackedRows.lay([row])
    predicting, targets = packed.predicting[-MAX_COMPARED:], packed.targets[-MAX_COMPARED:]
    inputs = {"input_ids": packed.input_ids.to(model.device), "use_cache": False}
    if "logits_to_keep" in inspect.signature(base_model(model).forward).parameters:
        logits = model(**inputs, logits_to_keep=predicting.to(model.device)).logits[0]
    else:
        logits = model(**inputs).logits[0, predicting]
    return nn.functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")


def last_of_each(packed: PackedRows, per_token: torch.Tensor) -> torch.Tensor:
    """Return of `per_token`, fp32 [supervised] over a pack, what `nll_alone` returns of its rows, one after another."""
    rows = range(len(packed.row_ids))
    return torch.cat([per_token[packed.row_of.to(per_token.device) == row][-MAX_COMPARED:] for row in rows])


def cannot_pack(model: PreTrainedModel, found: str) -> UserError:
    """Return the refusal of a model whose rows do not read the same in a pack."""
    return UserError(
        f"rows of a pack would see each other in {type(model).__name__}, so training on packs would be wrong",
        got=found,
        fix="choose a model with softmax attention over the whole row (Llama, Qwen3, Gemma3, …)",
    )
