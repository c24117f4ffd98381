"""Settings of a model that change its speed and memory, never its function.

In: a model. Out: the same model, whose layers are compiled, or computed by fused kernels, or computed again in the
backward pass except for their matrix products. `deft.model.selftest` compares packed with separate rows afterwards.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import AttentionInterface

from deft.model.attention import ROWS_APART, rows_apart_attention
from deft.model.likelihood import base_model

KEPT_OPERATIONS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
)
"""Matrix products and attention: nearly all of a layer's work, and about half of what it would keep."""


def decoder_layers(base: Any) -> list[nn.Module]:
    """Return the layers of a decoder: its longest list of modules."""
    lists = [list(module) for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def products_kept(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    """Say of an operation whether its result is kept for the backward pass."""
    return CheckpointPolicy.MUST_SAVE if operation in KEPT_OPERATIONS else CheckpointPolicy.PREFER_RECOMPUTE


def checkpointing_settings(keep: str) -> dict[str, Any]:
    """Return what `gradient_checkpointing_enable` takes: `keep` is "nothing" or "products"."""
    settings: dict[str, Any] = {"use_reentrant": False}
    if keep == "products":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, products_kept)
    return settings


def checkpoint_activations(model: Any, keep: str) -> None:
    """Have activations computed again in the backward pass; `keep` as in `checkpointing_settings`."""
    newer = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.17 has the other name only
    (newer or model.gradient_checkpointing_enable)(checkpointing_settings(keep))


def compile_layers(model: Any) -> None:
    """Have the layers of a decoder compiled when they first run, all by the same code, whatever the packs' lengths.

    Attention is left out: it goes row by row, and its kernels are fused already. What cannot be compiled (no compiler,
    an operation that is not known) runs as it was, with PyTorch's warning.
    """
    torch._dynamo.config.suppress_errors = True
    AttentionInterface.register(ROWS_APART, torch.compiler.disable(rows_apart_attention))
    for layer in decoder_layers(base_model(model)):
        layer.compile(dynamic=True)
