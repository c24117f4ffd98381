"""A test on the user's own model and rows before any training: packed, each row must read as it does alone.

Attention that deft does not know of (linear attention, a convolution over tokens, code that drops the rows' lengths)
would let rows of a pack see each other, and nothing in a loss curve would tell.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from deft.errors import UserError
from deft.model.attention import rows_apart
from deft.model.likelihood import PackedRows, supervised_nll
from deft.model.memory_fault import is_out_of_memory
from deft.types import TokenSequence

MAX_ROWS = 4
MAX_TOKENS = 1024
TOLERANCE_NATS = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
"""How far the NLL of a supervised token may be off, on average: rounding stays far below, a leak goes far above."""


@torch.no_grad()
def check_packing(model: PreTrainedModel, rows: Sequence[TokenSequence]) -> float:
    """Compare the NLL of a few rows in one pack with that of each row alone; return the mean difference in nats.

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
            packed = supervised_nll(model, PackedRows.lay(chosen)).per_token
    except (RuntimeError, TypeError, ValueError) as error:
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
    return difference


def few_short_rows(rows: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Return the shortest rows, at most `MAX_ROWS` and `MAX_TOKENS` together, and at least one."""
    by_length = sorted(rows, key=len)[:MAX_ROWS]
    while len(by_length) > 1 and sum(map(len, by_length)) > MAX_TOKENS:
        by_length.pop()
    return by_length


def nll_alone(model: PreTrainedModel, row: TokenSequence) -> torch.Tensor:
    """Return the NLL of a row's supervised tokens, fp32 [supervised], from a plain forward pass."""
    packed = PackedRows.lay([row])
    logits = model(input_ids=packed.input_ids.to(model.device), use_cache=False).logits[0, packed.predicting]
    return nn.functional.cross_entropy(logits.float(), packed.targets.to(logits.device), reduction="none")


def cannot_pack(model: PreTrainedModel, found: str) -> UserError:
    """Return the refusal of a model whose rows do not read the same in a pack."""
    return UserError(
        f"rows of a pack would see each other in {type(model).__name__}, so training on packs would be wrong",
        got=found,
        fix="choose a model with softmax attention over the whole row (Llama, Qwen3, Gemma3, …)",
    )
