import json
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from deft.errors import UserError
from deft.hub.cache import find_in_cache
from deft.hub.quiet import quiet_transformers
from deft.model.device import choose_dtype
from deft.model.generate import generate
from deft.model.load import load_model, load_tokenizer
from deft.model.sampling import Sampling
from deft.testing.tiny import VOCAB_SIZE, byte_tokenizer, save_tiny, tiny_model

TEXT = "今天天气很好，hello!"
IDS = torch.tensor([byte_tokenizer().encode(TEXT)])


pytestmark = pytest.mark.usefixtures("away")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "模型" / "tiny-llama")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits[0]


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def in_cache(source: Path, hub_id: str) -> Path:
    repository = Path("hub").absolute() / ("models--" + hub_id.replace("/", "--"))
    snapshot = repository / "snapshots" / "abc"
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return snapshot


# --- loading ----------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_quietly_and_computes_the_same(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(tiny, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert torch.equal(logits(loaded.model), logits(tiny_model("llama")))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(TEXT)) == TEXT
    assert loaded.path == tiny
    assert not loaded.model.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_can_be_chosen(tiny: Path, dtype: str) -> None:
    model = load_model(tiny, dtype=dtype, device="cpu").model
    assert {weights.dtype for weights in model.parameters()} == {getattr(torch, dtype)}


def test_auto_is_float32_on_a_cpu_whatever_was_saved(tmp_path: Path) -> None:
    folder = tmp_path / "半精度"
    tiny_model("qwen3").bfloat16().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    assert load_model(folder, device="cpu").model.dtype == torch.float32


def test_auto_is_bfloat16_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, yes=supported: yes)
        assert choose_dtype(torch.device("cuda")) == dtype
    assert choose_dtype(torch.device("cpu")) == torch.float32


def test_the_attention_implementation_is_passed_on(tiny: Path) -> None:
    assert load_model(tiny, device="cpu", attn_implementation="eager").model.config._attn_implementation == "eager"
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tiny, device="cpu", attn_implementation="no_such_attention")


def test_unknown_dtypes_and_devices_are_told(tiny: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_model(tiny, dtype="bfloat")
    assert "did you mean 'bfloat16'?" in str(caught.value)
    for device in ("显卡", "cuda:99"):
        with pytest.raises(UserError, match="cannot use that device") as caught:
            load_model(tiny, device=device)
        assert str(caught.value.got).startswith(device)


def test_shards_and_bin_files_load(tiny: Path, tmp_path: Path) -> None:
    expected = logits(tiny_model("llama"))
    sharded = tmp_path / "分片"
    with quiet_transformers():
        tiny_model("llama").save_pretrained(sharded, max_shard_size="100KB")
    byte_tokenizer().save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_model(sharded, device="cpu").model), expected)
    state = load_file(tiny / "model.safetensors")
    (tiny / "model.safetensors").unlink()
    torch.save(state, tiny / "pytorch_model.bin")
    assert torch.equal(logits(load_model(tiny, device="cpu").model), expected)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "分片"
    with quiet_transformers():
        tiny_model("llama").save_pretrained(folder, max_shard_size="100KB")
    byte_tokenizer().save_pretrained(folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert caught.value.what.endswith(f"it lacks {shard.name}")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match="lists no weights"):
        load_model(folder)


# --- nothing of a checkpoint runs -------------------------------------------------------------------------------


def test_a_checkpoint_with_its_own_code_is_refused(tiny: Path) -> None:
    (tiny / "modeling_evil.py").write_text(f"open({str(tiny / 'ran')!r}, 'w')")
    auto_map = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}
    edit_json(tiny / "config.json", model_type="evil", auto_map=auto_map)
    with pytest.raises(UserError, match="needs code of its own") as caught:
        load_model(tiny)
    assert caught.value.got == "modeling_evil.EvilForCausalLM"
    assert "deft never runs code from a checkpoint" in str(caught.value.fix)
    assert not (tiny / "ran").exists()


@pytest.mark.parametrize("where", ["", "baichuan-inc/Baichuan2-13B-Base--"])
def test_a_baichuan2_checkpoint_is_loaded_without_the_code_it_names(tmp_path: Path, where: str) -> None:
    folder = save_tiny(tmp_path / "百川", "baichuan2")
    auto_map = {
        "AutoConfig": f"{where}configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": f"{where}modeling_baichuan.BaichuanForCausalLM",
    }
    edit_json(folder / "config.json", auto_map=auto_map)
    for name in ("configuration_baichuan.py", "modeling_baichuan.py"):
        (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w')")
    assert torch.equal(logits(load_model(folder, device="cpu").model), logits(tiny_model("baichuan2")))
    assert not (folder / "ran").exists()


def test_a_known_architecture_is_loaded_without_the_code_beside_it(tiny: Path) -> None:
    (tiny / "modeling_evil.py").write_text(f"open({str(tiny / 'ran')!r}, 'w')")
    edit_json(tiny / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"})
    assert torch.equal(logits(load_model(tiny, device="cpu").model), logits(tiny_model("llama")))
    assert not (tiny / "ran").exists()


def test_a_tokenizer_with_its_own_code_is_refused(tiny: Path) -> None:
    auto_map = {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]}
    edit_json(tiny / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto_map)
    (tiny / "tokenization_evil.py").write_text(f"open({str(tiny / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="needs code of its own") as caught:
        load_tokenizer(tiny)
    assert caught.value.got == "tokenization_evil.EvilTokenizer"
    assert not (tiny / "ran").exists()


class Evil:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle_with_code_does_not_run(tiny: Path, packed: bool) -> None:
    (tiny / "model.safetensors").unlink()
    weights = tiny / "pytorch_model.bin"
    if packed:
        torch.save({"恶意": Evil(str(tiny / "ran"))}, weights)
    else:
        weights.write_bytes(pickle.dumps(Evil(str(tiny / "ran"))))
    with pytest.raises(UserError, match="cannot be read as weights") as caught:
        load_model(tiny)
    assert str(weights) in caught.value.what
    assert not (tiny / "ran").exists()


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 300, -1])
def test_cut_safetensors_are_named(tiny: Path, keep: int) -> None:
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UserError) as caught:
        load_model(tiny)
    assert caught.value.what == f"{weights} is damaged"


@pytest.mark.parametrize("keep", [0, 1000, -1000])
def test_cut_bin_files_are_named(tiny: Path, keep: int) -> None:
    torch.save(load_file(tiny / "model.safetensors"), tiny / "pytorch_model.bin")
    (tiny / "model.safetensors").unlink()
    weights = tiny / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UserError) as caught:
        load_model(tiny)
    assert caught.value.what == f"{weights} is damaged"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "config.json is not a JSON object"),
        ("config.json", '{"hidden_size": 64}', "config.json names no model_type"),
        ("config.json", '{"model_type": "新模型"}', "this transformers does not know the model type"),
        ("config.json", '{"model_type": "vit"}', "is not a causal language model"),
        ("tokenizer.json", '{"截断": ', "tokenizer.json cannot be read"),
        ("tokenizer.json", "{}", "the tokenizer in "),
        ("tokenizer_config.json", "", "tokenizer_config.json cannot be read"),
    ],
)
def test_bad_json_files_are_named(tiny: Path, name: str, content: str, fault: str) -> None:
    (tiny / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_model(tiny)
    assert fault in caught.value.what
    assert str(tiny) in caught.value.what


def test_a_folder_without_a_tokenizer_is_told(tiny: Path) -> None:
    (tiny / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="it lacks a tokenizer"):
        load_model(tiny)


def test_weights_that_are_not_there_are_never_made_up(tiny: Path) -> None:
    state = load_file(tiny / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensors that its config") as caught:
        load_model(tiny)
    assert caught.value.got == "model.layers.1.mlp.up_proj.weight"


def test_weights_of_another_shape_are_told(tiny: Path) -> None:
    edit_json(tiny / "config.json", intermediate_size=96)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tiny)


def test_weights_that_the_model_does_not_use_are_told(tiny: Path) -> None:
    edit_json(tiny / "config.json", num_hidden_layers=1)
    with pytest.warns(UserWarning, match=r"tensors that the model does not use: model\.layers\.1\."):
        load_model(tiny, device="cpu")


def test_an_id_beyond_the_embeddings_is_refused_where_it_occurs(tiny: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<能力>"], special_tokens=True)
    tokenizer.save_pretrained(tiny)
    loaded = load_model(tiny, device="cpu")  # as Gemma 3 1B, whose tokenizer has an id for images
    generate(loaded.model, [tokenizer.encode("你好")], stop_token_ids=[], settings=Sampling(max_new_tokens=1))
    asked = tokenizer.encode("<能力>是什么？")
    assert max(asked) == 260
    with pytest.raises(UserError, match="no embedding for: it has 260") as refusal:
        generate(loaded.model, [asked], stop_token_ids=[], settings=Sampling(max_new_tokens=1))
    assert (refusal.value.got, refusal.value.where) == ("id 260", "prompt 1")


# --- the hub's cache --------------------------------------------------------------------------------------------


def test_a_cached_hub_model_loads_without_a_network(tiny: Path) -> None:
    assert find_in_cache("some/model") is None
    snapshot = in_cache(tiny, "some/model")
    loaded = load_model("some/model", device="cpu")
    assert loaded.path == snapshot
    assert torch.equal(logits(loaded.model), logits(tiny_model("llama")))
    (snapshot / "model.safetensors").unlink()
    assert load_tokenizer("some/model").decode(IDS[0]) == TEXT, "a tokenizer needs no weights"
    with pytest.raises(UserError, match="cannot reach the hub"):
        load_model("some/model")


def test_a_hub_model_that_is_not_here_fails_at_once_without_a_network() -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot reach the hub for some/model") as caught:
        load_model("some/model")
    assert time.monotonic() - start < 20
    assert "the folder's path" in str(caught.value.fix)


# --- adapters ---------------------------------------------------------------------------------------------------


def save_adapter(folder: Path, base: Path, *, new_tokens: int = 0, with_tokenizer: bool = True) -> torch.Tensor:
    """Write a LoRA adapter with random weights over `base`, and return the logits it should give."""
    model = load_model(base, device="cpu").model
    tokenizer = byte_tokenizer()
    if new_tokens:
        tokenizer.add_tokens([f"<能力{number}>" for number in range(new_tokens)], special_tokens=True)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules="all-linear",
        modules_to_save=["embed_tokens", "lm_head"] if new_tokens else None,
    )
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in adapted.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn_like(weights), alpha=0.2)
    adapted.save_pretrained(str(folder))
    if with_tokenizer:
        tokenizer.save_pretrained(folder)
    return logits(adapted.eval())


@pytest.mark.parametrize("new_tokens", [0, 3])
def test_an_adapter_loads_its_base_and_resizes_the_embeddings(tiny: Path, tmp_path: Path, new_tokens: int) -> None:
    expected = save_adapter(tmp_path / "适配器", tiny, new_tokens=new_tokens)
    loaded = load_model(tmp_path / "适配器", device="cpu")
    assert torch.equal(logits(loaded.model), expected)
    assert expected.shape[-1] == len(loaded.tokenizer) == VOCAB_SIZE + new_tokens
    assert (expected[:, :VOCAB_SIZE] - logits(tiny_model("llama"))).abs().max() > 0.1, "the adapter does something"
    assert loaded.path == tmp_path / "适配器"
    assert not loaded.model.training
    assert not any(weights.requires_grad for weights in loaded.model.parameters())


def test_an_adapter_over_a_cached_hub_model_keeps_its_vocabulary(tiny: Path, tmp_path: Path) -> None:
    in_cache(tiny, "some/base")
    expected = save_adapter(tmp_path / "adapter", tiny, with_tokenizer=False)
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="some/base")
    loaded = load_model("adapter", device="cpu")
    assert torch.equal(logits(loaded.model), expected)
    assert loaded.tokenizer.decode(IDS[0]) == TEXT, "without its own tokenizer, the base model's"


@pytest.mark.parametrize(
    ("base", "fault"),
    [
        ("模型/没有", "there is no such model"),
        ("/elsewhere/models/smollm2-135m", "smollm2-135m is not in models"),
        (None, "names no base model"),
    ],
)
def test_an_adapter_without_its_base_says_which(tiny: Path, tmp_path: Path, base: str | None, fault: str) -> None:
    save_adapter(tmp_path / "adapter", tiny)
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(UserError) as caught:
        load_model("adapter")
    assert fault in caught.value.what
    assert "adapter_config.json" in str(caught.value)


def test_an_adapter_saved_as_a_bin_file_loads_too(tiny: Path, tmp_path: Path) -> None:
    expected = save_adapter(tmp_path / "adapter", tiny, new_tokens=2)
    torch.save(
        load_file(tmp_path / "adapter" / "adapter_model.safetensors"), tmp_path / "adapter" / "adapter_model.bin"
    )
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    assert torch.equal(logits(load_model("adapter", device="cpu").model), expected)


def test_a_base_beside_the_adapter_is_found_from_anywhere(tiny: Path, tmp_path: Path) -> None:
    expected = save_adapter(tmp_path / "模型" / "adapter", tiny)
    edit_json(tmp_path / "模型" / "adapter" / "adapter_config.json", base_model_name_or_path="../tiny-llama")
    assert torch.equal(logits(load_model("模型/adapter", device="cpu").model), expected)


def test_damaged_adapters_are_named(tiny: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "适配器"
    save_adapter(adapter, tiny)
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(UserError) as caught:
        load_model(adapter)
    assert caught.value.what == f"{weights} is damaged"
    weights.write_bytes(whole)
    state = load_file(weights)
    save_file(dict(list(state.items())[1:]), weights)
    with pytest.raises(UserError, match="lacks weights of the adapter"):
        load_model(adapter)
    weights.unlink()
    with pytest.raises(UserError, match="it lacks its weights"):
        load_model(adapter)


def test_an_adapter_of_another_shape_is_told(tiny: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", tiny)
    save_tiny(tmp_path / "other", hidden_size=32)
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(UserError, match="does not fit its base model"):
        load_model("adapter")


def test_an_adapter_on_an_adapter_is_refused(tiny: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "first", tiny)
    save_adapter(tmp_path / "second", tiny)
    edit_json(tmp_path / "second" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "first"))
    with pytest.raises(UserError, match="is itself an adapter"):
        load_model("second")
