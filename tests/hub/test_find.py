"""Names become models: what each name leads to, that a model is found once, and that nothing heavy loads for it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deft.errors import UserError
from deft.hub import find as module
from deft.hub.find import find, locate
from deft.testing.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("away")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "模型" / "tiny-llama")


def adapter(folder: Path, base: str | None) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    (folder / "adapter_model.safetensors").touch()
    return folder


# --- where a name leads -----------------------------------------------------------------------------------------------


def test_a_folder_is_found_by_its_path(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(tiny) == tiny
    assert locate("模型/tiny-llama") == Path("模型/tiny-llama")
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert locate("~/tiny-llama") == tiny


def test_a_hub_id_is_passed_on_and_an_alias_becomes_one() -> None:
    assert locate("some/model-1.5") == "some/model-1.5"
    assert locate("qwen3-0.6b") == locate("Qwen/Qwen3-0.6B-Base") == "Qwen/Qwen3-0.6B-Base"


def test_the_embedded_model_must_be_pulled_first() -> None:
    with pytest.raises(UserError) as caught:
        locate("smollm2-135m")
    assert (caught.value.what, caught.value.fix) == ("smollm2-135m is not in models", "deft pull smollm2-135m")


def test_the_place_of_an_alias_means_the_alias_until_something_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEFT_MODELS_DIR", raising=False)
    assert locate("models/qwen3-0.6b") == "Qwen/Qwen3-0.6B-Base"
    with pytest.raises(UserError, match="smollm2-135m is not in models"):
        locate("models/smollm2-135m")
    monkeypatch.setenv("DEFT_MODELS_DIR", str(tmp_path / "模型"))
    with pytest.raises(UserError, match=r"smollm2-135m is not in .*模型"):
        locate(tmp_path / "模型" / "smollm2-135m")
    (tmp_path / "models" / "qwen3-0.6b").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.json"):
        locate("models/qwen3-0.6b")


def test_a_run_that_is_not_there_yet_is_no_model_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/latest", "runs/latest/best", "我的/latest/checkpoint-1"):
        with pytest.raises(UserError, match=f"there is no run in {Path(name).parts[0]} yet") as caught:
            locate(name)
        assert "deft quickstart" in str(caught.value.fix)
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    with pytest.raises(UserError, match="the latest run has no best checkpoint yet"):
        locate("runs/latest/best")
    with pytest.raises(UserError, match="there is no such model"):
        locate("models/my-own")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'?"),
        ("models/smollm2-135", "did you mean 'smollm2-135m'?"),
        ("模型/tiny-lama", "did you mean 模型/tiny-llama?"),
        ("./模型/tiny-lama", "did you mean 模型/tiny-llama?"),
        ("模型x", "did you mean 模型?"),
        ("随便", "give a folder, a hub id (org/name), or one of: smollm2-135m"),
        ("a/b/c", "give a folder, a hub id (org/name), or one of: smollm2-135m"),
    ],
)
def test_near_names_are_suggested(tiny: Path, name: str, fix: str) -> None:
    with pytest.raises(UserError, match="there is no such model") as caught:
        locate(name)
    assert str(caught.value.fix).startswith(fix)


def test_a_hub_id_in_a_folder_that_exists_is_taken_for_a_path() -> None:
    Path("Org").mkdir()
    with pytest.raises(UserError) as caught:
        locate("Org/model")
    assert caught.value.fix == "the folder Org holds no model; for the hub's: deft pull Org/model, then give its path"


def test_a_file_is_no_model(tiny: Path) -> None:
    with pytest.raises(UserError, match="a model is a folder, and this is a file"):
        locate(tiny / "model.safetensors")


def test_what_a_folder_lacks_is_listed(tiny: Path) -> None:
    with pytest.raises(UserError) as caught:
        locate("模型")
    assert caught.value.what == (
        "模型 is not a complete model: it lacks config.json, its weights (model.safetensors or pytorch_model.bin)"
    )
    assert caught.value.fix == "these folders in it hold a model: tiny-llama"
    (tiny / "model.safetensors").unlink()
    with pytest.raises(UserError, match="it lacks its weights") as caught:
        locate(tiny)
    assert "config.json" not in caught.value.what


def test_finding_a_model_needs_no_torch(tiny: Path) -> None:
    code = f"import sys; from deft.hub.find import locate; locate({str(tiny)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- a model is found once --------------------------------------------------------------------------------------------


def test_a_found_model_is_not_looked_up_again_until_more_is_asked_of_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny / "model.safetensors").rename(tiny / "放开")
    without = find("模型/tiny-llama", weights=False)
    assert (without.name, without.folder, without.is_adapter) == ("模型/tiny-llama", Path("模型/tiny-llama"), False)
    assert find(without, weights=False) is without
    with pytest.raises(UserError, match="it lacks its weights"):
        find(without)
    (tiny / "放开").rename(tiny / "model.safetensors")
    whole = find(without)
    monkeypatch.setattr(module, "locate", lambda *_, **__: pytest.fail("it was looked up again"))
    assert whole.has_weights and find(whole) is find(whole, weights=False) is whole


def test_the_base_of_an_adapter_is_looked_up_when_it_is_asked_for_and_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find(adapter(tmp_path / "适配器", "不在/这里"))
    assert found.is_adapter
    for _ in range(2):  # an error is not kept
        with pytest.raises(UserError, match="there is no such model") as caught:
            _ = found.base
        assert caught.value.where == f"{found.folder / 'adapter_config.json'}: base_model_name_or_path"
    shutil.copytree(tiny, tmp_path / "不在/这里")
    base = found.base
    assert (base.folder, base.is_adapter, base.has_weights) == (Path("不在/这里"), False, True)
    monkeypatch.setattr(module, "locate", lambda *_, **__: pytest.fail("it was looked up again"))
    assert found.base is base


def test_an_adapter_that_names_itself_as_its_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is itself an adapter"):
        _ = find(adapter(tmp_path / "适配器", "../适配器")).base
