"""Which model a `config.json` describes, what is written back, and that transformers knows it by then."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from baichuan2_models import official_folder
from transformers import AutoConfig

from deft.errors import UserError
from deft.model.architecture import check_architecture
from deft.model.baichuan2.configuration import Baichuan2Config
from deft.model.load import load_weights
from deft.testing.tiny import save_tiny, tiny_model

OFFICIAL = {
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    },
    "model_type": "baichuan",
    "tokenizer_class": "BaichuanTokenizer",
    "torch_dtype": "bfloat16",
    "vocab_size": 125_696,
    "model_max_length": 4096,
    "rms_norm_eps": 1e-6,
    "z_loss_weight": 0,
}
OFFICIAL_7B = OFFICIAL | {
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
OFFICIAL_13B = OFFICIAL | {
    "hidden_size": 5120,
    "intermediate_size": 13_696,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}


def write(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_both_official_layouts(tmp_path: Path) -> None:
    seven = AutoConfig.from_pretrained(write(tmp_path / "七", OFFICIAL_7B))
    assert isinstance(seven, Baichuan2Config)
    assert (seven.position_embedding, seven.max_position_embeddings, seven.rope_theta) == ("rope", 4096, 10_000.0)
    assert seven.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    thirteen = AutoConfig.from_pretrained(write(tmp_path / "十三", OFFICIAL_13B))
    assert (thirteen.position_embedding, thirteen.max_position_embeddings) == ("alibi", None)
    assert (thirteen.model_max_length, thirteen.rope_parameters, thirteen.dtype) == (4096, None, torch.bfloat16)


@pytest.mark.parametrize(("values", "parameters"), [(OFFICIAL_7B, 7_505_973_248), (OFFICIAL_13B, 13_896_668_160)])
def test_the_models_they_describe_are_of_the_official_sizes(values: dict[str, Any], parameters: int) -> None:
    from deft.model.baichuan2.modelling import BaichuanForCausalLM

    with torch.device("meta"):
        model = BaichuanForCausalLM(Baichuan2Config(**values))
    assert sum(weights.numel() for weights in model.parameters()) == parameters
    assert len(model.state_dict()) == 7 * values["num_hidden_layers"] + 3
    assert not list(model.buffers()), "nothing is stored beside the weights"


@pytest.mark.parametrize("values", [OFFICIAL_7B, OFFICIAL_13B])
def test_what_is_written_is_read_back_and_says_the_layout(values: dict[str, Any], tmp_path: Path) -> None:
    config = Baichuan2Config(**values)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    kept = {key: value for key, value in values.items() if key not in ("auto_map", "torch_dtype")}
    assert kept.items() <= written.items()
    assert written["position_embedding"] == ("rope" if "max_position_embeddings" in values else "alibi")
    assert ("max_position_embeddings" in written) == ("max_position_embeddings" in values)
    assert None not in (written.get("rope_parameters", 0), written.get("max_position_embeddings", 0))
    assert "auto_map" not in written, "the code files do not come along"
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)} or (
        AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    )


def test_code_in_a_repository_stays_named(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "baichuan-inc/Baichuan2-13B-Base--configuration_baichuan.BaichuanConfig"}
    Baichuan2Config(**OFFICIAL_13B | {"auto_map": auto_map}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == auto_map


def test_the_layout_that_is_written_goes_before_the_guess() -> None:
    assert Baichuan2Config(**OFFICIAL_7B, position_embedding="alibi").position_embedding == "alibi"
    cut = OFFICIAL_13B | {"vocab_size": 70_000}
    assert Baichuan2Config(**cut, position_embedding="alibi").vocab_size == 70_000
    with pytest.raises(UserError, match="names no max_position_embeddings"):
        Baichuan2Config(**OFFICIAL_13B, position_embedding="rope")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 64_000},
        {"vocab_size": 64_003},
        {"vocab_size": 64_000, "architectures": ["BaiChuanForCausalLM"], "max_position_embeddings": 4096},
        {"architectures": ["BaiChuanForCausalLM"]},
    ],
)
def test_the_first_generation_is_never_mistaken(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "一代", OFFICIAL_13B | changes)
    with pytest.raises(UserError, match="first generation, which deft does not compute"):
        AutoConfig.from_pretrained(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="first generation") as caught:
        load_weights(folder, dtype=torch.float32, attn_implementation=None)
    assert caught.value.where == str(folder / "config.json")


@pytest.mark.parametrize("vocab_size", [260, 125_696, 125_699])
def test_the_second_generation_may_have_other_vocabularies(vocab_size: int) -> None:
    assert Baichuan2Config(**OFFICIAL_13B | {"vocab_size": vocab_size}).vocab_size == vocab_size


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"position_embedding": "learned"}, "unknown position_embedding"),
        ({"num_attention_heads": 7}, "not a multiple of num_attention_heads"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "unscaled rotary positions"),
        ({"tie_word_embeddings": True}, "head is not its embedding"),
    ],
)
def test_what_cannot_be_computed_is_named(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        Baichuan2Config(**OFFICIAL_7B | changes)


def test_the_architecture_is_one_that_deft_loads() -> None:
    check_architecture(official_folder())


IMPORTS = [
    "from transformers import AutoModelForCausalLM as auto; import deft.model.baichuan2",
    # A model of transformers' own imports its Auto classes while its modules are still half loaded.
    "import deft.model.baichuan2; from transformers import LlamaForCausalLM, AutoModelForCausalLM as auto",
]


@pytest.mark.parametrize("imports", IMPORTS)
def test_auto_classes_know_the_model_in_any_order_of_imports(imports: str, tmp_path: Path) -> None:
    """Own code beside the weights is not asked for, nor run where someone allows it."""
    folder = save_tiny(tmp_path / "模型", "baichuan2")
    values = json.loads((folder / "config.json").read_text()) | {"auto_map": OFFICIAL["auto_map"]}
    write(folder, values)
    for name in ("configuration_baichuan.py", "modeling_baichuan.py"):
        (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w')")
    code = f"{imports}\nfor trust in (None, True):\n"
    code += (
        f"    model = auto.from_pretrained({str(folder)!r}, trust_remote_code=trust)\n    print(type(model).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["deft.model.baichuan2.modelling"] * 2, done.stderr
    assert not (folder / "ran").exists()


def test_importing_the_package_stays_light() -> None:
    code = "import sys, deft.model; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sharding_hints_name_what_is_there() -> None:
    model = tiny_model("baichuan2")
    assert {type(layer).__name__ for layer in model.model.layers} == set(model._no_split_modules)
    names = {name.replace("layers.0", "layers.*") for name, _ in model.model.named_modules()}
    assert set(model.config.base_model_tp_plan) <= names
    assert len(model.config.base_model_tp_plan) == 5
