"""Merging: the merged model computes what the adapter on its base computes, or nothing is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deft.errors import UserError
from deft.hub.find import find
from deft.model.adapters import add_lora
from deft.model.load import LoadedModel, load_model
from deft.prompt.formats.kinds import chat_format_for
from deft.prompt.formats.role_tokens import add_role_tokens
from deft.prompt.store import load_chat_format, save_chat_format
from deft.publish import merge as merging
from deft.publish.merge import TOLERANCES, merge
from deft.publish.provenance import provenance_of, public_name
from deft.testing.tiny import byte_tokenizer, save_tiny

TEXT = "今天天气很好，我们去公园。Hello, world!"
IDS = torch.tensor([byte_tokenizer().encode(TEXT)])
ARCHITECTURES = ["llama", "qwen3", "gemma3"]
TIED = {"llama": False, "qwen3": True, "gemma3": True}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("底") / request.param, request.param, seed=5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("底") / "llama", "llama", seed=5)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("底") / "qwen3", "qwen3", seed=5)


def moved(model: Any) -> Any:
    """Give everything that would be trained other values, as training does, so that the adapter is felt."""
    torch.manual_seed(11)
    with torch.no_grad():
        for weights in {id(each): each for each in model.parameters() if each.requires_grad}.values():
            weights.add_(torch.randn_like(weights), alpha=0.05)
    return model


def save_adapter(model: Any, loaded: LoadedModel, folder: Path) -> Path:
    """Save an adapter the way a run does."""
    model.save_pretrained(folder, save_embedding_layers=False)
    loaded.tokenizer.save_pretrained(folder)
    save_chat_format(chat_format_for(loaded.tokenizer), folder)
    return folder


def adapter_for(base: Path, folder: Path, method: str = "lora", *, role_tokens: bool = False) -> Path:
    loaded = load_model(base, device="cpu")
    if role_tokens:
        loaded.tokenizer.chat_template = None
        add_role_tokens(loaded.tokenizer)
        loaded.model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=False)
    settings: dict[str, Any] = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "train_embeddings": role_tokens}
    return save_adapter(moved(add_lora(loaded.model, method=method, **settings)), loaded, folder)


def peft_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """Save an adapter as peft makes it for others, whose settings deft would not choose."""
    loaded = load_model(base, device="cpu")
    with pytest.warns(UserWarning):
        model = get_peft_model(loaded.model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings))
    return save_adapter(moved(model), loaded, folder)


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(folder, dtype="float32", device="cpu").model(IDS).logits[0]


def difference(first: Path, second: Path) -> float:
    """Return the largest difference of logits, as a share of the largest logit."""
    a, b = logits(first), logits(second)
    return ((a - b).abs().max() / a.abs().max()).item()


def is_tied(folder: Path) -> bool:
    model = load_model(folder, device="cpu").model
    shared = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert shared == model.config.tie_word_embeddings
    return shared


@pytest.mark.parametrize("role_tokens", [False, True])
@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_a_merged_model_computes_what_its_adapter_does(
    base: Path, tmp_path: Path, method: str, role_tokens: bool
) -> None:
    adapter = adapter_for(base, tmp_path / "适配器", method, role_tokens=role_tokens)
    lines: list[str] = []
    out = merge(adapter, tmp_path / "合并", tell=lines.append)
    assert difference(adapter, out) < 1e-5
    with torch.inference_mode():  # and through transformers alone
        plain = AutoModelForCausalLM.from_pretrained(out)(IDS).logits[0]
    assert torch.allclose(plain, logits(adapter), atol=1e-3)
    num_tokens = logits(out).shape[1]
    change = (logits(base)[:, :num_tokens] - logits(adapter)[:, : logits(base).shape[1]]).abs().max()
    assert change > 0.1, "an adapter that changes nothing would pass any comparison"
    assert is_tied(out) == is_tied(base) == TIED[base.name]
    assert any("largest difference" in line and "0.0001" in line for line in lines)


def test_tokenizer_chat_format_and_generation_config_go_along(qwen3: Path, tmp_path: Path) -> None:
    source = shutil.copytree(qwen3, tmp_path / "底")
    (source / "generation_config.json").write_text('{"temperature": 0.3, "do_sample": true, "eos_token_id": 259}')
    adapter = adapter_for(source, tmp_path / "a", role_tokens=True)
    out = merge(adapter, tmp_path / "合并")
    loaded = load_model(out)
    stored = load_chat_format(out, loaded.tokenizer)
    assert stored is not None and stored.kind == "role_tokens"
    assert (out / "chat_format.json").read_bytes() == (adapter / "chat_format.json").read_bytes()
    assert loaded.tokenizer.encode(TEXT) == load_model(adapter).tokenizer.encode(TEXT)
    assert loaded.model.generation_config.temperature == 0.3
    assert not list(out.glob("adapter*"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_once_to_the_type_asked_for(base: Path, tmp_path: Path, dtype: str) -> None:
    adapter = adapter_for(base, tmp_path / "a")
    exact = load_file(merge(adapter, tmp_path / "exact") / "model.safetensors")
    rounded = load_file(merge(adapter, tmp_path / "rounded", dtype=dtype) / "model.safetensors")
    kind = getattr(torch, dtype)
    assert exact.keys() == rounded.keys()
    assert all(torch.equal(rounded[name], exact[name].to(kind)) for name in exact)
    assert json.loads((tmp_path / "rounded/config.json").read_text())["dtype"] == dtype
    assert 1e-5 < difference(tmp_path / "exact", tmp_path / "rounded") < TOLERANCES[dtype]


# --- tied embeddings, as others make adapters ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},  # trained apart
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},  # only one of the two
        {"target_modules": ["q_proj", "embed_tokens"]},  # added to one of two that share their weights
        {"target_modules": ["q_proj", "lm_head"]},
    ],
    ids=["both_whole", "embeddings_whole", "embeddings_added", "head_added"],
)
def test_a_tie_that_the_adapter_broke_is_not_put_back(qwen3: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter = peft_adapter(qwen3, tmp_path / "a", **settings)
    lines: list[str] = []
    out = merge(adapter, tmp_path / "合并", tell=lines.append)
    assert difference(adapter, out) < 1e-5
    assert not is_tied(out)
    assert any("one of each" in line for line in lines)


# --- refusals -----------------------------------------------------------------------------------------------------


def nothing_written(folder: Path) -> bool:
    return not list(folder.glob("*合并*"))


def test_a_wrong_merge_is_refused_and_nothing_is_written(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_for(qwen3, tmp_path / "a")

    def unscaled(adapted: Any) -> tuple[Any, tuple[str, ...]]:
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                layer.scaling = {"default": 1.0}  # instead of alpha / rank = 2
        return merge_weights(adapted)

    merge_weights = merging.merge_weights
    monkeypatch.setattr(merging, "merge_weights", unscaled)
    monkeypatch.setattr(merging, "save", lambda *_, **__: pytest.fail("it was written"))
    with pytest.raises(UserError, match="the merged model computes other logits") as caught:
        merge(adapter, tmp_path / "合并")
    assert "0.0001 is allowed" in str(caught.value)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("where", ["embeddings", "tie"])
def test_what_was_written_wrongly_is_refused(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    adapter = peft_adapter(qwen3, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    save = merging.save

    def damaged(ready: Any, folder: Path, **settings: Any) -> None:
        save(ready, folder, **settings)
        weights = load_file(folder / "model.safetensors")
        if where == "embeddings":  # peft#1035: the base model's instead of the trained ones
            weights["model.embed_tokens.weight"] = weights["lm_head.weight"].clone()
        else:  # transformers#45127: a head that was trained apart is lost on loading
            del weights["lm_head.weight"]
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merging, "save", damaged)
    with pytest.raises(UserError, match="the model as written computes other logits"):
        merge(adapter, tmp_path / "合并")
    assert nothing_written(tmp_path)


def test_rounding_beyond_the_tolerance_is_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCES, "bfloat16", 1e-5)
    adapter = adapter_for(llama, tmp_path / "a")
    with pytest.raises(UserError, match="rounded to bfloat16") as caught:
        merge(adapter, tmp_path / "合并", dtype="bfloat16")
    assert "float32" in str(caught.value.fix)
    assert nothing_written(tmp_path)


def test_an_adapter_that_is_no_number_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = adapter_for(llama, tmp_path / "a")
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="hold NaN or infinite numbers"):
        merge(adapter, tmp_path / "合并")
    assert nothing_written(tmp_path)


def test_a_whole_model_and_an_unknown_type_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no adapter") as caught:
        merge(llama, tmp_path / "合并")
    assert "deft export" in str(caught.value.fix)
    with pytest.raises(UserError, match="that type") as caught:
        merge(llama, tmp_path / "合并", dtype="bflot16")
    assert "did you mean 'bfloat16'" in str(caught.value.fix)


def test_a_folder_that_is_there_stays_unless_told(llama: Path, tmp_path: Path) -> None:
    adapter, out = adapter_for(llama, tmp_path / "a"), tmp_path / "合并"
    merge(adapter, out)
    (out / "旧.txt").write_text("旧", encoding="utf-8")
    with pytest.raises(UserError, match="already exists") as caught:
        merge(adapter, out)
    assert "--overwrite" in str(caught.value.fix)
    assert (out / "旧.txt").exists()
    merge(adapter, out, overwrite=True)
    assert not (out / "旧.txt").exists()
    assert difference(adapter, out) < 1e-5


def test_overwriting_spares_what_is_no_model_and_what_is_needed(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_for(llama, tmp_path / "a")
    photos = tmp_path / "照片"
    photos.mkdir()
    (photos / "猫.jpg").write_bytes(b"1")
    with pytest.raises(UserError, match="holds no model"):
        merge(adapter, photos, overwrite=True)
    with pytest.raises(UserError, match="would delete"):
        merge(adapter, adapter, overwrite=True)
    with pytest.raises(UserError, match="not a folder"):
        merge(adapter, photos / "猫.jpg", overwrite=True)
    monkeypatch.chdir(adapter)
    with pytest.raises(UserError, match="would delete"):
        merge(adapter, Path("..") / "a", overwrite=True)
    assert (photos / "猫.jpg").exists() and (adapter / "adapter_model.safetensors").exists()


# --- where weights came from --------------------------------------------------------------------------------------


def test_public_names_are_aliases_and_hub_ids_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert public_name("smollm2-135m") == "smollm2-135m"
    assert public_name("qwen3-0.6b") == "Qwen/Qwen3-0.6B-Base"
    assert public_name("/家/hub/models--Qwen--Qwen3-0.6B-Base/snapshots/abc") == "Qwen/Qwen3-0.6B-Base"
    assert public_name("/家/models/smollm2-135m") == "smollm2-135m"
    assert public_name("some/model") == "some/model"
    (tmp_path / "some/model").mkdir(parents=True)
    assert public_name("some/model") is None
    assert public_name(str(tmp_path / "我的模型")) is None


def test_a_merged_folder_remembers_its_base(llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "底")
    (source / "source.json").write_text('{"name": "smollm2-135m", "license": "Apache-2.0"}')
    out = merge(adapter_for(source, tmp_path / "a"), tmp_path / "合并")
    shutil.rmtree(source)
    found = provenance_of(find(out))
    assert (found.base_model, found.license, list(found.languages)) == ("smollm2-135m", "Apache-2.0", ["en"])
