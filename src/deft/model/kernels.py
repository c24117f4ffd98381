"""Fused kernels from Liger (arXiv 2410.10989) in place of a model's own norms, gates and rotations, on CUDA.

In: a model and some of its rows. Out: the same model, if it computes the same on these rows. Liger's heads are left
out: deft's own runs at supervised positions only and gives the loss of every token.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from deft.errors import UserError
from deft.model.attention import rows_apart
from deft.model.likelihood import PackedRows, base_model, supervised_nll
from deft.model.memory import is_out_of_memory
from deft.model.selftest import TOLERANCE_NATS, few_short_rows
from deft.types import TokenSequence

PACKAGE = "liger_kernel"


def check_liger() -> None:
    """Check that Liger's kernels can run on this computer.

    Raises:
        UserError: if the package or a CUDA device is missing.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        fix = "pip install liger-kernel, or leave out --kernels"
        raise UserError("these kernels need liger-kernel, which is not installed", got="liger", fix=fix)
    if not torch.cuda.is_available():
        raise UserError("liger's kernels need a CUDA device, and there is none", got="liger", fix="leave out --kernels")


@torch.no_grad()
def use_liger(model: Any, rows: Sequence[TokenSequence]) -> float:
    """Put Liger's kernels into a model, in place; return the mean difference of the NLL of a few rows, in nats.

    Raises:
        UserError: if Liger does not know the architecture, or the model computes something else with it.
    """
    packed = PackedRows.lay(few_short_rows(rows))
    base = base_model(model)
    was_training = model.training
    model.eval()
    with rows_apart(model):
        before = supervised_nll(model, packed).per_token
        patch = importlib.import_module(f"{PACKAGE}.transformers")._apply_liger_kernel_to_instance
        try:
            patch(model=base, rope=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=False)
            after = supervised_nll(model, packed).per_token
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise refused(base, f"{type(error).__name__}: {error}") from error
    model.train(was_training)
    difference = (after - before).abs().mean().item()
    if not difference <= TOLERANCE_NATS.get(model.dtype, 1e-3):
        raise refused(base, f"{difference:.3g} nats per token")
    return difference


def refused(base: Any, got: str) -> UserError:
    """Return the error of a model that Liger's kernels do not fit."""
    name = type(base).__name__
    return UserError(f"liger's kernels change what {name} computes", got=got, fix="leave out --kernels")
