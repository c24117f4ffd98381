"""Checkpointing and compiling change no gradient."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deft.model.likelihood import PackedRows, takes_packs
from deft.model.speed import checkpoint_activations, compile_layers
from deft.testing.tiny import tiny_model
from deft.types import TokenSequence

TEXT = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。".encode()


def pack(*lengths: int) -> PackedRows:
    rows = []
    for number, length in enumerate(lengths):
        ids = np.frombuffer(TEXT[number : number + length], dtype=np.uint8).astype(np.int32)
        labels = ids.copy()
        labels[: length // 2] = -100
        rows.append(TokenSequence(id=f"行{number}", input_ids=ids, labels=labels))
    return PackedRows.lay(rows)


def gradients(model, packed: PackedRows) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    with takes_packs(model):
        total, _ = model(packed=packed)
        total.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


class CountProducts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def num_products(model, packed: PackedRows) -> int:
    with CountProducts() as count:
        gradients(model, packed)
    return count.num


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_selective_checkpointing_computes_no_product_twice(architecture: str) -> None:
    packed = pack(30, 12, 20)
    plain = tiny_model(architecture, seed=1)
    expected, num_plain = gradients(plain, packed), num_products(plain, packed)
    found = {}
    for keep in ("nothing", "products"):
        model = tiny_model(architecture, seed=1)
        checkpoint_activations(model, keep)
        for name, gradient in gradients(model, packed).items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)
        found[keep] = num_products(model, packed)
    assert found["products"] == num_plain
    assert found["nothing"] > num_plain, "everything is computed again"


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradients_and_are_compiled_once() -> None:
    packs = [pack(30, 12, 20), pack(9, 14), pack(40), pack(8, 8, 8, 8, 8)]
    plain, compiled = tiny_model("llama", seed=2), tiny_model("llama", seed=2)
    compile_layers(compiled)
    compiles = []
    torch._dynamo.reset()
    for packed in packs:
        expected, found = gradients(plain, packed), gradients(compiled, packed)
        compiles.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3)
    assert compiles[0] > 0, "nothing was compiled"
    assert compiles[-1] == compiles[1], f"packs of other lengths were compiled anew: {compiles}"


def test_a_transformers_that_knows_only_the_older_name_checkpoints_as_well() -> None:
    class Older:
        def gradient_checkpointing_enable(self, settings: dict) -> None:
            self.settings = settings

    model = Older()
    checkpoint_activations(model, "nothing")
    assert model.settings == {"use_reentrant": False}
