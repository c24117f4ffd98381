"""Checkpoints from anywhere: whatever their files are, they are told in words, at once, and nothing of them runs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deft.errors import UserError
from deft.files import LARGEST_READ_BYTES
from deft.hub.find import find, locate_base
from deft.model.load import load_model, load_tokenizer
from deft.prompt.detect import find_chat_format
from deft.testing.tiny import save_tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("模型") / "llama", "llama", seed=2)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "别人的模型"))


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def error_of(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        loaded = load_model(folder)
        find_chat_format(loaded.tokenizer, folder)
    assert "\x1b" not in str(caught.value)
    return caught.value


SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_format.json"]


@pytest.mark.parametrize("name", [*SMALL, "model.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_should_be_a_file_and_is_none(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink(missing_ok=True)
    if kind == "folder":
        (folder / name).mkdir()
    else:
        os.mkfifo(folder / name)
    error = error_of(folder)
    assert name in str(error)


def test_a_file_far_too_large_for_its_name_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as stream:
        stream.truncate(LARGEST_READ_BYTES + 1)
    assert error_of(folder).what == "this file is far too large to be what its name says"


def test_links_as_a_hub_cache_has_them_are_followed(folder: Path) -> None:
    (folder / "blobs").mkdir()
    for file in [path for path in folder.iterdir() if path.is_file()]:
        moved = file.rename(folder / "blobs" / file.name)
        file.symlink_to(moved)
    assert load_model(folder).path == folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_nesting_without_end(folder: Path, name: str) -> None:
    (folder / name).write_text('{"a":' * 10_000 + "1" + "}" * 10_000, encoding="utf-8")
    assert str(error_of(folder))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 1_000_000_000}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"hidden_size": 10**10}, "hidden_size"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers"),
        ({"_attn_implementation": "org/kernel"}, "_attn_implementation"),
        ({"attn_implementation": "甲/乙"}, "attn_implementation"),
        ({"attention_dropout": 5}, "attention_dropout"),
    ],
)
def test_configurations_that_no_model_has(folder: Path, values: dict[str, Any], words: str) -> None:
    changed(folder / "config.json", **values)
    error = error_of(folder)
    assert f"`{words}`" in str(error) and error.where == str(folder / "config.json")


def test_a_length_that_is_text(folder: Path) -> None:
    changed(folder / "tokenizer_config.json", model_max_length="很长")
    try:
        load_tokenizer(folder)
    except UserError as error:
        assert "tokenizer" in str(error)


def test_shards_outside_of_the_folder_are_not_loaded(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "外面.safetensors"
    (folder / "model.safetensors").rename(outside)
    names = dict.fromkeys(load_file(outside), "../外面.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    error = error_of(folder)
    assert (error.what, error.got) == ("an index names a shard outside of its folder", "../外面.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_told_by_name(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    error = error_of(folder)
    assert (error.got, "NaN or infinite" in error.what) == ("model.layers.1.mlp.up_proj.weight", True)


def test_a_panic_of_the_tokenizer_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    class PanicException(BaseException):
        """What pyo3 raises."""

    def gives_up(*_: Any, **__: Any) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", gives_up)
    with pytest.raises(UserError, match="the tokenizer's own code crashed"):
        load_tokenizer(folder)


# --- an adapter's base ------------------------------------------------------------------------------------------------


def adapter(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    (folder / "adapter_model.safetensors").touch()
    return folder


def test_a_relative_base_is_looked_up_from_the_adapter(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "基座")
    found = locate_base(adapter(tmp_path / "甲/适配器", "../../基座"))
    assert Path(found).resolve() == (tmp_path / "基座").resolve()


def test_a_name_without_end_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no base model"):
        locate_base(adapter(tmp_path / "适配器", "长" * 5_000))


def test_a_hub_is_announced_before_it_is_asked_for_what_a_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "缓存"))
    folder = adapter(tmp_path / "适配器", "some/base")
    assert locate_base(folder) == "some/base"
    assert f"{folder}/adapter_config.json names some/base as its base model" in capfd.readouterr().err


def test_a_trained_adapter_names_its_base_by_the_whole_path(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from deft.training.config import TrainConfig
    from deft.training.run import train
    from deft.types import Example, Message

    shutil.copytree(whole, tmp_path / "基座")
    monkeypatch.chdir(tmp_path)
    rows = [
        Example.create([Message(role="user", content=f"{n}?"), Message(role="assistant", content="好")]) for n in "甲乙"
    ]
    config = TrainConfig(model="./基座", output_dir=Path("跑"), method="lora", num_epochs=1, learning_rate=1e-3)
    best = train(config, rows, [], Console(quiet=True)).best.resolve()
    monkeypatch.chdir("/")
    assert str(locate_base(best)) == str((tmp_path / "基座").resolve())
    moved = Path(shutil.copytree(best, tmp_path / "搬走"))
    assert find(best).folder == best and torch.is_tensor(next(load_model(best).model.parameters()))
    weights = load_file(moved / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, moved / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="they hold NaN or infinite numbers"):
        load_model(moved)
    changed(moved / "adapter_config.json", lora_alpha=float("nan"))
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        load_model(moved)


# --- what a configuration asks for, and what it says -----------------------------------------------------------------


@pytest.mark.parametrize("values", [{"hidden_act": "未\x1b]0;名"}, {"rope_scaling": {"type": "无\x07", "factor": 2}}])
def test_a_configuration_of_which_no_model_can_be_made(
    folder: Path, values: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    from deft.model.size import num_parameters

    changed(folder / "config.json", **values)
    with pytest.raises(UserError, match="cannot be used") as caught:
        num_parameters(folder)
    said = str(caught.value) + "".join(capfd.readouterr())
    assert "\x1b" not in said and "\x07" not in said and "KeyError" in said


def test_weights_of_another_place_are_not_loaded(folder: Path, whole: Path) -> None:
    changed(folder / "config.json", transformers_weights=str(whole / "model.safetensors"))
    error = error_of(folder)
    assert (error.what, error.got) == ("the model names weights in another place", str(whole / "model.safetensors"))


@pytest.mark.parametrize("value", ["很多", {"甲": 1}, True, None])
def test_numbers_of_experts_that_are_none(folder: Path, value: Any) -> None:
    from deft.model.selftest import has_experts

    changed(folder / "config.json", n_routed_experts=value)
    assert not has_experts(load_model(folder).model)


@pytest.mark.parametrize("template", [5, {"default": 5}])
def test_a_chat_template_that_is_no_text(folder: Path, template: Any) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    changed(folder / "tokenizer_config.json", chat_template=template)
    assert "chat template is not text" in error_of(folder).what


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_link_that_leads_nowhere_is_not_passed_over(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(name)  # to itself
    assert error_of(folder).what == "this link is broken"


def test_attention_is_looked_for_at_any_depth(folder: Path) -> None:
    changed(folder / "config.json", thinker={"parts": [{"text_config": {"_attn_implementation": "甲/乙"}}]})
    assert error_of(folder).got == "甲/乙"


@pytest.mark.parametrize("name", ["merges.txt", "tokenizer.model", "chat_templates/工具.jinja", "pytorch_model.bin"])
def test_no_pipe_of_any_name_is_read(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    assert error_of(folder).got == str(folder / name)


def test_names_of_tensors_are_shown_safely(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"多余\x1b]0;名": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="does not use: 多余") as warned:
        load_model(folder)
    assert "\x1b" not in str(warned[0].message)


@pytest.mark.parametrize("name", ["", "长" * 100, "a/" * 600])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="there is no such model"):
        find(name)
    with pytest.raises(UserError, match="names no base model"):
        locate_base(adapter(tmp_path / "适配器", name))


def test_transformers_is_told_to_fetch_no_kernels() -> None:
    assert os.environ["USE_HUB_KERNELS"] == "NO"
