"""What `import deft` offers: imported when asked for, seen by editors and type checkers, callable without ceremony."""

import ast
import inspect
import io
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import deft
from deft.data.shipped import SPLITS, shipped_rows
from deft.language.choose import LANGUAGES
from deft.testing.tiny import save_tiny

ROOT = Path(__file__).parents[1]
MOST_S = 0.05
"""Of `import deft`."""


def imported_for_checkers() -> dict[str, str]:
    """Return the names that a type checker sees, and where they lie."""
    tree = ast.parse((ROOT / "src/deft/__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    return {alias.name: f"{node.module}:{alias.name}" for node in block.body for alias in node.names}  # type: ignore[attr-defined]


def test_the_table_what_checkers_see_and_all_agree() -> None:
    assert imported_for_checkers() == deft.PLACES
    assert sorted(deft.__all__) == sorted([*deft.PLACES, "__version__"])
    assert set(deft.__all__) <= set(dir(deft))


@pytest.mark.parametrize("name", sorted(deft.PLACES))
def test_each_name_is_there_and_documented(name: str) -> None:
    found = getattr(deft, name)
    assert found.__name__ == name
    assert inspect.getdoc(found)


def test_a_wrong_name_is_an_attribute_error_that_knows_the_right_one() -> None:
    code = "import deft\ndeft.trian"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "has no attribute 'trian'" in done.stderr and "'train'" in done.stderr
    assert not hasattr(deft, "训练")


def test_importing_deft_is_quick_and_loads_nothing_heavy() -> None:
    code = "import sys, time; began_at = time.perf_counter(); import deft; print(time.perf_counter() - began_at)\n"
    code += "heavy = {'torch', 'transformers', 'numpy', 'rich', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(3)]
    assert not runs[0].stderr
    assert min(float(run.stdout) for run in runs) < MOST_S


def test_help_says_what_to_give_and_shows_how() -> None:
    for function in (deft.audit, deft.train, deft.evaluate_loss):
        page = pydoc.plain(pydoc.render_doc(function))
        assert ">>> " in page and "Raises:" in page


def test_the_path_by_plain_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings where paths are meant, no console, no rows to validate with."""
    monkeypatch.chdir(tmp_path)
    model = str(save_tiny(tmp_path / "小模型", "llama", max_length_tokens=1024))
    rows = deft.read_examples(ROOT / "examples/abilities/zh/curated/test/math_test.json").examples
    assert deft.audit(rows, model=model, max_length_tokens=1000).total.num_rows == 10
    before = deft.evaluate_loss(model, rows, max_length_tokens=1000)
    config = deft.TrainConfig(model=model, output_dir="跑", max_length_tokens=1000, max_steps=2, learning_rate=5e-3)
    result = deft.train(config, rows, console=Console(file=(said := io.StringIO())))
    assert result.finished and result.folder.parent == Path("跑") and "step 2/2" in said.getvalue()
    after = deft.evaluate_loss(result.best, rows, max_length_tokens=1000)
    assert deft.paired_changes(before.rows, after.rows)["math"].difference < 0
    assert deft.export(str(result.best), "出").folder == Path("出")


def test_paths_of_a_config_may_be_strings() -> None:
    config = deft.TrainConfig(train="数据.jsonl", valid=["a", Path("b")], output_dir="跑")  # type: ignore[arg-type]
    assert (config.train, config.valid) == ((Path("数据.jsonl"),), (Path("a"), Path("b")))
    assert not deft.TrainConfig(valid=("none",)).validates  # type: ignore[arg-type]


def test_the_rows_that_come_with_deft_are_in_the_package() -> None:
    for lang in LANGUAGES:
        assert sorted(path.name for path in shipped_rows(lang).iterdir()) == sorted(SPLITS)
    assert (ROOT / "examples/abilities").resolve() == shipped_rows("zh").parents[1].resolve()


@pytest.mark.slow
def test_the_walkthrough_goes_the_whole_way(tmp_path: Path) -> None:
    from deft.hub.embedded import find_damage
    from deft.hub.known import KNOWN_MODELS, models_folder

    models = models_folder() if models_folder().is_absolute() else ROOT / models_folder()
    if find_damage(models / "smollm2-135m", KNOWN_MODELS["smollm2-135m"]) is not None:
        pytest.skip("the embedded model is not here: deft pull smollm2-135m")
    (tmp_path / "models").symlink_to(models)
    command = [sys.executable, str(ROOT / "examples/walkthrough.py"), "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20 rows to train on, 20 to validate with, 20 to test on" in done.stdout
    assert done.stdout.count("\nasked   ") == 2 and "creative_writing" in done.stdout
    assert (tmp_path / "runs/latest/best/model.safetensors").exists()
