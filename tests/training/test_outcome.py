"""How `deft train` ends on a user's own file: rows held out, losses before and after, report, next commands."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from deft.commands import app as cli
from deft.intervals import paired_changes
from deft.losses import RowLoss
from deft.report.texts import ENDING_TEXTS
from deft.testing.tiny import save_tiny
from deft.training.outcome import changes_of, evaluated_rows, losses_by_step
from deft.training.progress import Progress
from deft.training.record import read_metrics

SETTINGS = ["--learning-rate", "2e-3", "--end-learning-rate", "1e-4", "--max-length-tokens", "256", "--show-rows", "0"]
EPOCHS = ["--num-epochs", "2"]
DATA = "数据[旧].jsonl"
HELD_OUT, ROWS = 20, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "小[模型]", "llama", seed=1)


def data(abilities: tuple[str | None, ...] = ("数学", "$$"), count: int = ROWS) -> str:
    made = []
    for n in range(count):
        row = {"instruction": f"{n} 加 {n % 7} 等于几？", "output": f"答案是 {n + n % 7}。"}
        made.append(row | ({"type": ability} if (ability := abilities[n % len(abilities)]) else {}))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)


def deft(*arguments: str) -> int:
    """Run a command line and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def walk(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run on 60 rows without `--valid`, and what was printed at 80 columns."""
    import contextlib
    import io

    folder, screen = tmp_path_factory.mktemp("走一遍"), io.StringIO()
    (folder / DATA).write_text(data(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(screen):
        patch.chdir(folder)
        patch.setenv("COLUMNS", "80")
        assert deft("train", "--model", str(model), "--train", DATA, *SETTINGS, *EPOCHS) == 0
    return (folder / "runs/latest").resolve(), screen.getvalue()


def test_twenty_rows_are_held_out_and_named_in_the_run(walk: tuple[Path, str]) -> None:
    folder, printed = walk
    stored = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (stored["num_train_rows"], stored["num_valid_rows"]) == (ROWS - HELD_OUT, HELD_OUT)
    assert len(set(stored["held_out"])) == HELD_OUT
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    assert {row["id"] for row in rows if row["split"] == "valid"} == set(stored["held_out"])
    assert {row["id"] for row in rows if row["split"] == "train"}.isdisjoint(stored["held_out"])
    assert "held out 20 of 60 rows" in printed


def test_the_loss_before_is_that_of_the_untrained_model(walk: tuple[Path, str], model: Path) -> None:
    from deft.data.read import read_examples
    from deft.evaluation.loss import row_losses
    from deft.model.load import load_model
    from deft.prompt.encode import encode_examples
    from deft.prompt.formats.kinds import chat_format_for

    folder, _ = walk
    before = {row.id.split()[0]: row.nll for row in losses_by_step(folder)[0]}
    examples = [one for one in read_examples([folder.parents[1] / DATA]).examples if one.id in before]
    loaded = load_model(model)
    rows = encode_examples(examples, chat_format_for(loaded.tokenizer), max_length_tokens=256).sequences
    for row in row_losses(loaded.model, rows, pack_length_tokens=256):
        assert before[row.id] == pytest.approx(row.nll, rel=1e-4)


def test_it_ends_with_table_picture_report_and_next_commands(walk: tuple[Path, str]) -> None:
    folder, printed = walk
    changes = changes_of(folder)
    assert set(changes) == {"数学", "$$", "all"}
    for name, change in changes.items():
        shown = re.escape({"all": "all rows"}.get(name, name))
        pattern = rf"^  {shown} +{change.num_rows} +{change.before:.3f} +{change.after:.3f} "
        assert re.search(pattern, printed, re.MULTILINE), name
    assert changes["all"].after < changes["all"].before
    last = f"✓ Loss on 20 held-out rows: {changes['all'].before:.3f} → {changes['all'].after:.3f} nats per token"
    assert last in printed
    assert "  40 training rows · " in printed
    for command in ("deft chat runs/latest/best", "deft export runs/latest/best exported", "deft runs list"):
        assert f"    {command}\n" in printed
    for name in ("report.html", "abilities.png"):
        assert (folder / name).is_file()
        assert f"runs/{folder.name}/{name}\n" in printed
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<td>{changes['数学'].before:.3f}</td><td>{changes['数学'].after:.3f}</td>" in report
    assert str(folder.parent) not in report
    assert "20 rows held out of those to train on" in report
    assert ENDING_TEXTS["en"]["chosen"] in report, "of two epochs, the better one by the same rows"
    assert ENDING_TEXTS["en"]["chosen"].split()[-1] in printed


def test_after_is_the_best_checkpoint(walk: tuple[Path, str]) -> None:
    folder, _ = walk
    losses = {line["step"]: line["eval_loss"] for line in read_metrics(folder) if "eval_loss" in line}
    assert list(losses) == [0, 5, 10]
    best = min((5, 10), key=lambda step: losses[step])
    changes = changes_of(folder)
    assert changes["all"].before == pytest.approx(losses[0])
    assert changes["all"].after == pytest.approx(losses[best])
    measured = losses_by_step(folder)
    assert changes == paired_changes(measured[0], measured[best])


def test_lines_fit_80_columns(walk: tuple[Path, str]) -> None:
    from rich.cells import cell_len

    broken = [line for line in walk[1].splitlines() if cell_len(line) > 80 and "/" not in line]
    assert not broken, "only lines with a path or progress in a file may be longer"


class StopAfter(Progress):
    """A user who presses Ctrl-C during the third step."""

    def stepped(self, step: int) -> None:
        super().stepped(step)
        self.stop_asked = step >= 3


def test_a_resumed_run_holds_out_the_same_rows_and_measures_before_only_once(
    model: Path, walk: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DATA).write_text(data(), encoding="utf-8")
    command = ("train", "--model", str(model), "--train", DATA, *SETTINGS, *EPOCHS)
    monkeypatch.setattr("deft.training.run.Progress", StopAfter)
    assert deft(*command) == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert capsys.readouterr().out.count("before training") == 1
    assert deft(*command, "--resume-training", "--lang", "zh") == 0
    printed = capsys.readouterr().out
    assert "before training" not in printed, "it stands in the record"
    folder = (tmp_path / "runs/latest").resolve()
    assert changes_of(folder) == changes_of(walk[0]), "the same rows, and the same weights"
    assert "20 条留出数据上的损失" in printed
    assert "续跑用时" in printed
    assert '<html lang="zh-CN">' in (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_killed_before_its_first_checkpoint_measures_before_anew(
    model: Path, walk: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DATA).write_text(data(), encoding="utf-8")
    command = ("train", "--model", str(model), "--train", DATA, *SETTINGS, *EPOCHS)

    def killed(*_: Any, **__: Any) -> None:
        raise ConnectionAbortedError

    with monkeypatch.context() as patched:
        patched.setattr("deft.training.trainer.SupervisedTrainer.training_step", killed)
        with pytest.raises(ConnectionAbortedError):
            deft(*command)
    assert [line["step"] for line in read_metrics(tmp_path / "runs/latest") if "eval_loss" in line] == [0]
    assert deft(*command, "--resume-training") == 0
    folder = (tmp_path / "runs/latest").resolve()
    assert [line["step"] for line in read_metrics(folder) if "eval_loss" in line].count(0) == 1
    assert changes_of(folder) == changes_of(walk[0]), "as if nothing had happened"


def test_the_recipe_of_a_run_holds_out_the_same_rows(
    walk: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = walk
    monkeypatch.chdir(folder.parents[1])
    assert deft("train", str(folder / "recipe.yaml"), "--output-dir", str(tmp_path), "--max-steps", "1") == 0
    runs = (folder, (tmp_path / "latest").resolve())
    held_out = [json.loads((run / "run.json").read_text(encoding="utf-8"))["held_out"] for run in runs]
    assert held_out[0] == held_out[1]


def test_without_validation_it_ends_with_the_training_loss(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DATA).write_text(data(), encoding="utf-8")
    (tmp_path / "none.yaml").write_text(
        f"train: {{model: '{model}', train: ['{DATA}'], valid: none}}", encoding="utf-8"
    )
    assert deft("train", "none.yaml", "--method", "lora", *SETTINGS, "--num-epochs", "1") == 0
    printed = " ".join(capsys.readouterr().out.split())
    folder = (tmp_path / "runs/latest").resolve()
    stored = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (stored["num_train_rows"], stored["num_valid_rows"], stored.get("held_out")) == (60, 0, None)
    losses = [line["loss"] for line in read_metrics(folder) if "loss" in line]
    assert f"Training loss: {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last" in printed
    assert "deft merge runs/latest/best merged" in printed
    assert not (folder / "report.html").exists()
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "- none" in recipe, "the recipe repeats the run"


def test_of_few_rows_none_are_held_out_and_that_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DATA).write_text(data(count=39), encoding="utf-8")
    assert deft("train", "--model", str(model), "--train", DATA, *SETTINGS, "--max-steps", "2") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "of 39 rows none can be held out" in printed
    assert "Training loss: " in printed


@pytest.mark.parametrize(
    "command", ["train", "runs compare", "runs list", "data audit", "export", "chat", "quickstart"]
)
def test_help_fits_80_columns_and_breaks_no_word(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert deft(*command.split(), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines).replace("report_to, …", ""), "nothing is cut off"
    if command == "train":
        words = {word.strip("[],.;:()") for line in lines for word in line.strip("│╭╮╰╯─ ").split()}
        assert {"transformers.TrainingArguments", "--checkpointing-keeps", "--gradient-accumulation"} <= words


def test_none_beside_files_is_refused(capsys: Any) -> None:
    assert deft("train", "--train", "a.jsonl", "--valid", "none", "数据.jsonl") == 2
    assert "valid is out of range" in capsys.readouterr().err


def test_the_old_commands_validate_only_on_what_they_are_given() -> None:
    from deft.ancestor.flags import config_from_flags

    flags = ["--train_dir", "a", "--model_name_or_path", "m"]
    assert not config_from_flags(flags).validates
    assert config_from_flags([*flags, "--valid_dir", "验证"]).valid == (Path("验证"),)


def test_rows_of_a_record_are_compared_once_each() -> None:
    """One conversation twice, under another ability, under none, and under the name of all rows together."""
    rows = [
        {"id": "a", "ability": ability, "nll": 2.0, "num_supervised": 4}
        for ability in ("数学", "数学", "诗", None, "all")
    ]
    found = [(row.ability, row.nll) for row in evaluated_rows(rows)]
    assert found == [("数学", 2.0), ("诗", 2.0), ("other", 2.0), ("all (ability)", 2.0)]
    assert len({row.id for row in evaluated_rows(rows)}) == 4
    assert isinstance(evaluated_rows(rows)[0], RowLoss)


def test_the_sequences_of_a_conversation_are_one_row_however_often_it_occurs() -> None:
    one = {"id": "对话", "ability": "数学", "nll": 2.0, "num_supervised": 4, "weight": 4.0, "part": 0}
    two = one | {"nll": 3.0, "num_supervised": 5, "weight": 2.5, "part": 1}
    rows = [values | {"row": place} for place, values in enumerate([one, two, one, two])]
    [found] = evaluated_rows(rows)
    assert (found.nll, found.num_supervised, found.total_weight) == (5.0, 9, 6.5)


def test_both_languages_say_the_same_at_the_end() -> None:
    assert ENDING_TEXTS["en"].keys() == ENDING_TEXTS["zh"].keys()
    for name, text in ENDING_TEXTS["en"].items():
        assert set(re.findall(r"\{(\w+)", text)) == set(re.findall(r"\{(\w+)", ENDING_TEXTS["zh"][name])), name
        assert re.search(r"[一-鿿]", ENDING_TEXTS["zh"][name]), name
