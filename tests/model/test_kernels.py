"""Liger's kernels are taken only where they compute the same; a stand-in for the package shows both."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from deft.errors import UserError
from deft.model import kernels
from deft.model.kernels import use_liger
from deft.testing.tiny import tiny_model
from deft.training.config import TrainConfig, check_device_for
from deft.types import TokenSequence


def rows() -> list[TokenSequence]:
    ids = np.frombuffer("举头望明月，低头思故乡。".encode(), dtype=np.uint8).astype(np.int32)
    labels = ids.copy()
    labels[:9] = -100
    return [TokenSequence(id="行", input_ids=ids, labels=labels)]


def stand_in(monkeypatch: pytest.MonkeyPatch, patch) -> None:
    package = ModuleType("liger_kernel.transformers")
    package._apply_liger_kernel_to_instance = patch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)


def test_kernels_that_compute_the_same_are_taken_without_their_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    stand_in(monkeypatch, lambda **options: asked.update(options))
    model = tiny_model("llama").train()
    assert use_liger(model, rows()) == 0.0
    assert asked["model"] is model and asked["rms_norm"]
    assert not asked["cross_entropy"] and not asked["fused_linear_cross_entropy"]
    assert model.training


def test_kernels_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model, **_) -> None:
        model.model.norm.weight.mul_(1.1)

    stand_in(monkeypatch, wrong)
    with pytest.raises(UserError, match="change what LlamaForCausalLM computes"):
        use_liger(tiny_model("llama"), rows())


def test_what_is_missing_is_said_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="pip install liger-kernel"):
        check_device_for(TrainConfig(kernels="liger"))
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _: SimpleNamespace())
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="need a CUDA device"):
            check_device_for(TrainConfig(kernels="liger"))
