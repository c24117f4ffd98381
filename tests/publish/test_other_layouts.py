"""Baichuan2 written in layouts for other tools: Llama's, and its own with a plain head; the logits stay the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from deft.errors import UserError
from deft.model.baichuan2.norm_head import DirectionHead
from deft.model.load import load_model
from deft.publish import layouts as module
from deft.publish.export import export
from deft.testing.tiny import byte_tokenizer, save_tiny, tiny_model

IDS = torch.arange(0, 250, 3)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0]  # type: ignore[no-any-return]


def differ(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first - second).abs().max().item()


# --- Llama's ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "百川七", "baichuan2_rope", seed=6)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_the_export_is_a_plain_llama_with_the_same_logits(seven: Path, tmp_path: Path, dtype: str | None) -> None:
    export(seven, tmp_path / "出", to="llama", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "出", dtype=torch.float32)
    assert type(model) is LlamaForCausalLM
    config = json.loads((tmp_path / "出" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    expected = logits(tiny_model("baichuan2_rope", seed=6), IDS)
    assert differ(logits(model.eval(), IDS), expected) < (1e-5 if dtype is None else 0.01 * expected.abs().max())
    weights = load_file(tmp_path / "出" / "model.safetensors")
    assert not [name for name in weights if "W_pack" in name]
    assert differ(weights["lm_head.weight"].float().norm(dim=-1), torch.ones(260)) < 5e-3


def test_an_adapter_is_merged_first(seven: Path, tmp_path: Path) -> None:
    base = load_model(seven, device="cpu").model
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in adapted.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn_like(weights), alpha=0.1)
    adapted.save_pretrained(str(tmp_path / "适配器"))
    byte_tokenizer().save_pretrained(tmp_path / "适配器")
    expected = logits(adapted.eval(), IDS)
    export(tmp_path / "适配器", tmp_path / "出", to="llama")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "出").eval()
    assert differ(logits(found, IDS), expected) < 1e-4
    with pytest.raises(UserError, match="an adapter keeps its base model's layout"):
        export(tmp_path / "适配器", tmp_path / "出二", to="llama", keep_adapter=True)


def test_alibi_has_no_equal_in_llama(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "百川十三", "baichuan2")
    with pytest.raises(UserError, match=r"biases attention by distance \(ALiBi\), Llama cannot"):
        export(folder, tmp_path / "出", to="llama")
    assert not (tmp_path / "出").exists()


def test_other_models_and_layouts_are_refused(tmp_path: Path, seven: Path) -> None:
    qwen = save_tiny(tmp_path / "千问", "qwen3")
    with pytest.raises(UserError, match="only Baichuan2-7B is written in Llama's layout") as caught:
        export(qwen, tmp_path / "出", to="llama")
    assert caught.value.got == "qwen3"
    with pytest.raises(UserError, match="unknown layout") as caught:
        export(seven, tmp_path / "出", to="lama")
    assert "did you mean 'llama'" in str(caught.value.fix)


def test_a_wrong_conversion_never_takes_the_folders_place(
    seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = module.llama_weights

    def keys_and_queries_swapped(model: object) -> dict[str, torch.Tensor]:
        weights = right(model)
        name = "model.layers.0.self_attn.{}_proj.weight"
        return weights | {name.format("q"): weights[name.format("k")], name.format("k"): weights[name.format("q")]}

    monkeypatch.setattr(module, "llama_weights", lambda model: right(model) | {"lm_head.weight": torch.zeros(260, 64)})
    with pytest.raises(UserError, match="the model in Llama's layout computes other logits"):
        export(seven, tmp_path / "出", to="llama")
    monkeypatch.setattr(module, "llama_weights", keys_and_queries_swapped)
    with pytest.raises(UserError, match="the model in Llama's layout computes other logits"):
        export(seven, tmp_path / "出", to="llama")
    assert not (tmp_path / "出").exists()


# --- a plain head ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["baichuan2", "baichuan2_rope"])
def test_a_tool_without_norm_heads_computes_the_same_logits(architecture: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "百川", architecture, seed=6)  # type: ignore[arg-type]
    export(base, tmp_path / "出", to="plain_head")
    head = load_file(tmp_path / "出" / "model.safetensors")["lm_head.weight"]
    assert differ(head, load_file(base / "model.safetensors")["lm_head.weight"]) > 0.1
    model = tiny_model(architecture, seed=6)  # type: ignore[arg-type]
    hidden = model.get_decoder()(input_ids=IDS[None]).last_hidden_state[0]  # type: ignore[operator]
    assert differ(hidden @ head.T, logits(model, IDS)) < 1e-5
    written = load_model(tmp_path / "出", device="cpu").model
    assert differ(logits(written, IDS), logits(model, IDS)) < 1e-5, "normalising again changes nothing"
    export(tmp_path / "出", tmp_path / "再出", to="plain_head")
    assert differ(load_file(tmp_path / "再出" / "model.safetensors")["lm_head.weight"], head) < 1e-7


def test_a_head_that_is_not_normalised_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "百川", "baichuan2", seed=6)
    monkeypatch.setattr(DirectionHead, "effective_weight", lambda head: head.weight)
    with pytest.raises(UserError, match="the model with a plain head computes other logits"):
        export(base, tmp_path / "出", to="plain_head")
    assert not (tmp_path / "出").exists()


def test_a_model_without_such_a_head_is_refused(tmp_path: Path) -> None:
    qwen = save_tiny(tmp_path / "千问", "qwen3")
    with pytest.raises(UserError, match="only Baichuan2 has a head to normalise") as caught:
        export(qwen, tmp_path / "出", to="plain_head")
    assert caught.value.got == "qwen3"
