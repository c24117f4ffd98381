"""`deft init`: what it writes runs as its README says; it writes all of it or nothing, and over nothing."""

import re
from pathlib import Path

import pytest

from deft.commands import app as cli
from deft.commands import init as command
from deft.data.audit import leaks
from deft.data.read import read_examples
from deft.testing.tiny import save_tiny


def deft(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize(("lang", "letters"), [("en", "[a-z]"), ("zh", "[一-鿿]")])
def test_a_starter_has_a_recipe_rows_and_a_readme(
    lang: str, letters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert deft("init", "新 项目", "--lang", lang) == 0
    assert "cd '新 项目'" in capsys.readouterr().out
    folder = tmp_path / "新 项目"
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert written == ["README.md", "data/train.jsonl", "data/valid.jsonl", "recipe.yaml"]
    train, valid = (read_examples(folder / f"data/{name}.jsonl").examples for name in ("train", "valid"))
    assert (len(train), len(valid)) == (24, 18)
    assert {row.ability for row in train} == {row.ability for row in valid} == set(command.ABILITIES)
    assert not leaks(train, valid)
    assert all(re.search(letters, row.messages[-1].content) for row in train)
    monkeypatch.chdir(folder)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    for line in re.findall(r"`?(deft [a-z]+ [^`\n]+)", readme):
        cli.app.parse_args(line.split()[1:], exit_on_error=False, print_error=False)
    assert readme.count("\ndeft ") == 3


@pytest.mark.slow
def test_the_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny(tmp_path / "小模型", "llama", max_length_tokens=1024)
    (tmp_path / "项目").mkdir()
    monkeypatch.chdir(tmp_path / "项目")
    assert deft("init", ".") == 0
    flags = ("--model", str(model), "--max-length-tokens", "1000")
    assert deft("train", "recipe.yaml", *flags, "--dry-run") == 0
    assert not Path("runs").exists()
    assert "24" in capsys.readouterr().out
    assert deft("train", "recipe.yaml", *flags, "--max-steps", "1") == 0
    assert Path("runs/latest/best/chat_format.json").exists() and Path("runs/latest/report.html").exists()


def test_what_is_there_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "数据.jsonl").write_text("{}\n", encoding="utf-8")
    assert deft("init", str(tmp_path)) == 2
    said = capfd.readouterr().err
    assert "the folder is not empty" in said and "数据.jsonl" in said
    assert [path.name for path in tmp_path.iterdir()] == ["数据.jsonl"]
    assert deft("init", str(tmp_path / "数据.jsonl")) == 2
    assert "this is not a folder" in capfd.readouterr().err


@pytest.mark.parametrize("there", [False, True])
def test_it_is_written_whole_or_not_at_all(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "项目"
    if there:
        folder.mkdir()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "write_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        command.init(folder)
    assert folder.exists() == there
    assert list(tmp_path.rglob("*")) == ([folder] if there else [])
