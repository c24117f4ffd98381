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
from deft.model.checkpoint_files import LARGEST_JSON_BYTES
from deft.model.load import base_of, find_folder, load_model, load_tokenizer
from deft.model.tiny import save_tiny
from deft.prompt.detect import find_chat_format


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
        stream.truncate(LARGEST_JSON_BYTES + 1)
    assert error_of(folder).what == "this file is far too large for what it is called"


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
    with pytest.raises(UserError, match="the tokenizer's own code gave up"):
        load_tokenizer(folder)


# --- an adapter's base ------------------------------------------------------------------------------------------------


def adapter(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    (folder / "adapter_model.safetensors").touch()
    return folder


def test_a_relative_base_is_looked_up_from_the_adapter(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "基座")
    found = base_of(adapter(tmp_path / "甲/适配器", "../../基座"))
    assert Path(found).resolve() == (tmp_path / "基座").resolve()


def test_a_name_without_end_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no base model"):
        base_of(adapter(tmp_path / "适配器", "长" * 5_000))


def test_a_hub_is_announced_before_it_is_asked_for_what_a_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "缓存"))
    folder = adapter(tmp_path / "适配器", "some/base")
    assert base_of(folder) == "some/base"
    assert f"{folder}/adapter_config.json names some/base as its base model" in capfd.readouterr().err


def test_a_trained_adapter_names_its_base_by_the_whole_path(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from deft.train.config import TrainConfig
    from deft.train.run import train
    from deft.types import Example, Message

    shutil.copytree(whole, tmp_path / "基座")
    monkeypatch.chdir(tmp_path)
    rows = [
        Example.create([Message(role="user", content=f"{n}?"), Message(role="assistant", content="好")]) for n in "甲乙"
    ]
    config = TrainConfig(model="./基座", output_dir=Path("跑"), method="lora", num_epochs=1, learning_rate=1e-3)
    best = train(config, rows, [], Console(quiet=True)).best.resolve()
    monkeypatch.chdir("/")
    assert base_of(best) == str((tmp_path / "基座").resolve())
    assert find_folder(best) == best and torch.is_tensor(next(load_model(best).model.parameters()))
