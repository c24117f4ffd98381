"""Adapters by method: what peft is told, which layers get them, and what is refused before anything loads."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from rich.console import Console
from safetensors.torch import load_file

from deft.errors import UserError
from deft.model.adapters import add_lora, hold_in_4_bits, linear_layers
from deft.model.load import load_model
from deft.testing.tiny import byte_tokenizer, save_tiny, tiny_model
from deft.training.config import TrainConfig, check_device_for
from deft.training.run import train
from deft.types import Example, Message

IDS = torch.tensor([byte_tokenizer().encode("天气很好，hello!")])


def adapted(architecture: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(3)
    settings = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "train_embeddings": False} | changes
    return add_lora(tiny_model(architecture), **settings)  # type: ignore[arg-type]


def layers_with_adapters(model: Any) -> set[str]:
    names = {name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name.removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_a_fresh_adapter_changes_nothing_and_trains_adapters_only(architecture: str, method: str) -> None:
    model = adapted(architecture, method=method)
    with torch.inference_mode():
        before, after = tiny_model(architecture)(IDS).logits, model(IDS).logits  # type: ignore[arg-type]
    assert torch.allclose(before, after, atol=1e-4)
    trained = {name for name, weights in model.named_parameters() if weights.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert any("magnitude" in name for name in trained) == (method == "dora")


@pytest.mark.parametrize(("method", "scale"), [("lora", 8 / 4), ("rslora", 8 / math.sqrt(4)), ("dora", 8 / 4)])
def test_the_product_is_scaled_as_the_method_says(method: str, scale: float) -> None:
    scales = {layer.scaling["default"] for layer in adapted(method=method).modules() if isinstance(layer, LoraLayer)}
    assert scales == {scale}


def test_all_is_every_linear_layer_but_the_head() -> None:
    names = layers_with_adapters(adapted())
    parts = ("q", "k", "v", "o", "gate", "up", "down")
    assert {name.rpartition(".")[2] for name in names} == {f"{part}_proj" for part in parts}
    assert len(names) == 2 * len(parts)
    assert names == set(linear_layers(tiny_model("llama")))


def test_targets_are_names_whole_or_their_last_parts() -> None:
    one = "model.layers.1.mlp.up_proj"
    names = layers_with_adapters(adapted(targets=["q_proj", one]))
    assert names == {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", one}


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("q_prj", "did you mean 'q_proj'"),
        ("lm_head", "v_proj"),
        ("model.layers.1.mlp.up_prj", "did you mean 'model.layers.1.mlp.up_proj'"),
        ("查询", "q_proj"),
    ],
)
def test_a_target_that_the_model_lacks_is_refused_with_the_nearest(target: str, advice: str) -> None:
    with pytest.raises(UserError, match="no linear layer") as caught:
        adapted(targets=["v_proj", target])
    assert caught.value.got == target
    assert advice in str(caught.value.fix)


@pytest.mark.parametrize("targets", [(), ("all", "q_proj"), ("",), (" q_proj",)])
def test_targets_that_mean_nothing_are_refused(targets: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="lora_targets"):
        TrainConfig(lora_targets=targets)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_embeddings_trained_whole_stay_tied_where_they_were(architecture: str, method: str) -> None:
    model = adapted(architecture, method=method, train_embeddings=True)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embeddings.requires_grad and head.requires_grad
    assert (embeddings.data_ptr() == head.data_ptr()) == (architecture == "qwen3")


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UserError, match="unknown adapter method") as caught:
        adapted(method="dorra")
    assert "did you mean 'dora'" in str(caught.value)
    with pytest.raises(UserError, match="method"):
        TrainConfig(method="dorra")  # type: ignore[arg-type]


# --- qlora --------------------------------------------------------------------------------------------------------


def test_qlora_without_bitsandbytes_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="bitsandbytes") as caught:
        train(TrainConfig(method="qlora", model="没有/这个模型"), rows(), [], Console(quiet=True))
    assert "pip install bitsandbytes" in str(caught.value.fix)


def test_qlora_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="CUDA device") as caught:
        train(TrainConfig(method="qlora", model="没有/这个模型"), rows(), [], Console(quiet=True))
    assert "pip install torch" in str(caught.value.fix)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device_for(TrainConfig(method="qlora"))


@pytest.mark.parametrize(("method", "device"), [("qlora", "cpu"), ("lora", None)])
def test_a_model_to_hold_in_4_bits_is_never_whole_on_the_device(
    method: str, device: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded on the CPU, in the type of the GPU that trains; then each layer goes there on its own."""

    class Loaded(Exception):
        pass

    def load(*_: object, **settings: object) -> None:
        raise Loaded(settings["device"], settings["dtype"])

    monkeypatch.setattr("deft.training.run.check_device_for", lambda _: None)
    monkeypatch.setattr("deft.training.prepare.load_model", load)
    monkeypatch.setattr("deft.training.prepare.choose_dtype", lambda _: torch.bfloat16)
    config = TrainConfig(method=method, model=str(save_tiny(tmp_path / "模型")), output_dir=tmp_path / "runs")  # type: ignore[arg-type]
    with pytest.raises(Loaded) as caught:
        train(config, rows(), [], Console(quiet=True))
    assert caught.value.args == (device, "bfloat16")


class StandInWeight(torch.nn.Parameter):
    """In place of bitsandbytes' `Params4bit`, which takes further settings."""

    def __new__(cls, data: torch.Tensor, requires_grad: bool, **_: object) -> "StandInWeight":
        return super().__new__(cls, data, requires_grad)  # type: ignore[no-any-return]


class StandInLayer(torch.nn.Linear):
    """In place of bitsandbytes' `Linear4bit`."""

    def __init__(self, inputs: int, outputs: int, bias: bool, device: str, **_: object) -> None:
        super().__init__(inputs, outputs, bias=bias, device=device)


def test_layers_go_to_the_device_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("bitsandbytes.nn")
    vars(stand_in).update(Linear4bit=StandInLayer, Params4bit=StandInWeight)
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", stand_in)
    model = tiny_model("baichuan2")
    moved: list[str] = []
    monkeypatch.setattr(
        StandInLayer, "to", lambda layer, place: moved.append("layer") or torch.nn.Module.to(layer, place)
    )
    whole = type(model).to
    monkeypatch.setattr(type(model), "to", lambda model, place: moved.append("the rest") or whole(model, place))
    hold_in_4_bits(model, torch.device("meta"))
    assert moved == ["layer"] * len(linear_layers(model)) + ["the rest"]
    assert {weights.device.type for weights in model.parameters()} == {"meta"}


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_four_bits_hold_linear_layers_near_what_they_were(architecture: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny_model(architecture)  # type: ignore[arg-type]
    names = linear_layers(model)
    before = {name: model.get_submodule(name)(torch.ones(1, model.get_submodule(name).in_features)) for name in names}
    hold_in_4_bits(model, torch.device("cpu"))
    assert all(model.get_submodule(name).weight.dtype == torch.uint8 for name in names)
    assert model.get_output_embeddings().weight.dtype == torch.float32
    for name, expected in before.items():
        layer = model.get_submodule(name)
        moved = (layer(torch.ones(1, layer.in_features)) - expected).norm() / expected.norm()
        assert 0 < moved < 0.3


# --- a run --------------------------------------------------------------------------------------------------------


def rows() -> list[Example]:
    turns = [(f"{n} 加 {n} 等于几?", f"等于 {2 * n}。") for n in range(8)]
    return [Example.create([Message(role="user", content=q), Message(role="assistant", content=a)]) for q, a in turns]


@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_a_run_trains_and_saves_the_method_it_was_told(tmp_path: Path, method: str) -> None:
    base = save_tiny(tmp_path / "模型", "qwen3")
    config = TrainConfig(
        model=str(base),
        output_dir=tmp_path / "runs",
        method=method,  # type: ignore[arg-type]
        lora_targets=("q_proj", "v_proj"),
        num_epochs=2,
        learning_rate=1e-2,
    )
    result = train(config, rows(), [], Console(quiet=True))
    stored = json.loads((result.best / "adapter_config.json").read_text())
    assert (stored["use_rslora"], stored["use_dora"]) == (method == "rslora", method == "dora")
    names = {
        name.split(".lora_")[0].rpartition(".")[2] for name in load_file(result.best / "adapter_model.safetensors")
    }
    assert names == {"q_proj", "v_proj"}
    with torch.inference_mode():
        before, after = (load_model(each).model(IDS).logits for each in (base, result.best))
    assert (before - after).abs().max() > 1e-2


def test_a_wrong_target_leaves_no_run_behind(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "模型")
    config = TrainConfig(model=str(base), output_dir=tmp_path / "runs", method="lora", lora_targets=("查询",))
    with pytest.raises(UserError, match="lora_targets"):
        train(config, rows(), [], Console(quiet=True))
    assert not list(tmp_path.glob("runs/*"))
