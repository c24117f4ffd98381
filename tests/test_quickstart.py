"""The whole path on a tiny model: what it shows and keeps, and how it takes up what exists."""

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deft.errors import UserError
from deft.files import read_object
from deft.hub.known import KNOWN_MODELS
from deft.intervals import paired_changes
from deft.losses import read_rows_kept
from deft.quickstart import job, quickstart, stages
from deft.quickstart.outcome import verdicts
from deft.quickstart.plan import Plan, plan_key
from deft.quickstart.prompts import PROMPTS
from deft.quickstart.stages import spread
from deft.report.texts import ENDING_TEXTS, QUICKSTART_TEXTS
from deft.testing.tiny import save_tiny
from deft.training.config import TrainConfig
from deft.types import Example, Message

ROOT = Path(__file__).parents[1]
NUM_TRAIN, NUM_TEST, BATCH = 20, 20, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "小模型", "llama", max_length_tokens=1024)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def start(model: Path, runs: Path, **other: Any) -> tuple[Path, str]:
    """Run a small quickstart; return the run's folder and what was printed."""
    screen = io.StringIO()
    settings: dict[str, Any] = {
        "model": str(model),
        "runs": runs,
        "console": Console(file=screen, width=120),
        "learning_rate": 5e-3,
        "batch_size": BATCH,
        "max_length_tokens": 1000,
        "max_train_rows": NUM_TRAIN,
        "num_valid_rows": 10,
        "max_test_rows": NUM_TEST,
        "max_new_tokens": 8,
    }
    try:
        folder = quickstart(**(settings | other))
    except BaseException as error:
        error.add_note(screen.getvalue())
        raise
    return folder, screen.getvalue()


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return start(model, tmp_path_factory.mktemp("runs"))


def must_not_run(*_: Any, **__: Any) -> Any:
    raise AssertionError("this should not have run again")


def test_a_run_holds_everything(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    for name in (
        "abilities.png",
        "report.html",
        "quickstart.json",
        "rows_before.jsonl",
        "rows_after.jsonl",
        "run.json",
    ):
        assert (folder / name).is_file(), name
    assert (folder / "best" / "model.safetensors").is_file()
    assert not list(folder.glob("checkpoint-*/optimizer.pt"))
    assert (folder.parent / "latest").resolve() == folder
    assert not list(folder.parent.glob(".quickstart/*"))
    assert json.loads((folder / "run.json").read_text())["num_valid_rows"] == 10


def test_the_figures_are_those_of_the_rows(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    before, after = (read_rows_kept(folder / f"rows_{when}.jsonl") for when in ("before", "after"))
    assert len(before) == len(after) == NUM_TEST
    computed = paired_changes(before, after)
    stored = json.loads((folder / "quickstart.json").read_text(encoding="utf-8"))["results"]["changes"]
    assert stored["all"]["after"] == pytest.approx(computed["all"].after)
    assert computed["all"].after < computed["all"].before
    report = (folder / "report.html").read_text(encoding="utf-8")
    for name, change in computed.items():
        pattern = rf"{'all rows' if name == 'all' else name.replace('_', ' ')} +{change.num_rows} +"
        assert re.search(pattern + f"{change.before:.3f} +{change.after:.3f} ", printed), name
        assert f"<td>{change.before:.3f}</td><td>{change.after:.3f}</td>" in report
    *_, cost = printed.splitlines()
    result = " ".join(printed.split())
    assert f"{computed['all'].before:.3f} → {computed['all'].after:.3f} nats per token" in result
    assert re.fullmatch(rf"  {NUM_TRAIN} training rows · \d+ s in all", cost)


def test_losses_before_and_after_are_those_of_the_two_models(finished: tuple[Path, str], model: Path) -> None:
    from deft.data.read import read_examples
    from deft.evaluation.loss import row_losses
    from deft.model.load import load_model
    from deft.prompt.encode import encode_examples
    from deft.prompt.formats.kinds import chat_format_for

    folder, _ = finished
    examples = spread(read_examples([ROOT / "examples/abilities/en/curated/test"]).examples, NUM_TEST)
    for name, file in ((model, "rows_before.jsonl"), (folder / "best", "rows_after.jsonl")):
        loaded = load_model(name)
        rows = encode_examples(examples, chat_format_for(loaded.tokenizer), max_length_tokens=1000).sequences
        expected = row_losses(loaded.model, rows, pack_length_tokens=1000)
        kept = {row.id: row for row in read_rows_kept(folder / file)}
        assert [kept[row.id].nll for row in expected] == pytest.approx([row.nll for row in expected], rel=1e-4)


def test_stages_are_counted_and_the_next_commands_name_the_run(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    headings = re.findall(r"^(\d)/6  (.+?) ─", printed, re.MULTILINE)
    stages = ("model", "data", "before", "training", "after", "replies")
    assert headings == [(str(n), QUICKSTART_TEXTS["en"][name]) for n, name in enumerate(stages, start=1)]
    assert f"deft chat {folder.parent}/latest/best" in printed
    assert f"python chat_gradio.py --model_name_or_path {folder.parent}/latest/best" in printed
    assert "30 checked" in printed
    assert "every weight · 20 rows · 4 steps of 5 rows" in printed
    assert PROMPTS["en"][1] in printed


def test_the_report_tells_no_path_of_the_machine(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert str(folder.parent) not in report
    assert str(ROOT) not in report
    assert "/tmp" not in report
    assert "examples/abilities/en/curated/full" in report
    assert "小模型" in report
    assert "<dt>learning_rate</dt><dd>0.005</dd>" in report
    assert "lora_rank" not in report  # every weight was trained
    assert not re.search(r"https?:", report)


def test_a_second_start_shows_what_exists(
    finished: tuple[Path, str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = finished
    for part in ("deft.model.load.load_model", "deft.training.run.train", "deft.evaluation.loss.row_losses"):
        monkeypatch.setattr(part, must_not_run)
    again, printed = start(model, folder.parent)
    assert again == folder
    assert "to run it again: deft quickstart --model" in printed and printed.rstrip().endswith("--again")
    assert str(folder) in printed.splitlines()[0]
    assert next(line for line in first.splitlines() if "all rows" in line) in printed
    assert "\n".join(first.splitlines()[-3:]) in printed


def test_paths_are_never_broken(finished: tuple[Path, str], model: Path, tmp_path: Path) -> None:
    runs = tmp_path / "很长的文件夹名" / ("a long name " * 10).strip()
    shutil.copytree(finished[0].parent, runs, symlinks=True)
    folder = runs / finished[0].name
    for width in (80, 120):
        again, printed = start(model, runs, console=Console(file=(screen := io.StringIO()), width=width))
        assert again == folder
        assert not printed
        lines = screen.getvalue().splitlines()
        assert lines[0].endswith(f": {folder}")
        assert f"  report   {folder}/report.html" in lines
        assert f"    deft chat '{runs}/latest/best'" in lines


def test_a_missing_report_is_written_again(finished: tuple[Path, str], model: Path, tmp_path: Path) -> None:
    shutil.copytree(finished[0].parent, tmp_path / "runs", symlinks=True)
    folder = tmp_path / "runs" / finished[0].name
    report = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").unlink()
    start(model, tmp_path / "runs")
    assert (folder / "report.html").read_text(encoding="utf-8") == report


def test_another_setting_or_model_or_row_is_another_quickstart(
    finished: tuple[Path, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: Any, **__: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(job, "run", reached)
    runs = finished[0].parent
    start(model, runs)  # the same: nothing runs
    for other in (
        {"learning_rate": 1e-3},
        {"max_test_rows": 10},
        {"max_new_tokens": 9},
        {"lang": "zh"},
        {"again": True},
    ):
        with pytest.raises(NotImplementedError):
            start(model, runs, **other)
    trained = shutil.copytree(model, tmp_path / model.name)
    weights = bytearray((trained / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (trained / "model.safetensors").write_bytes(weights)
    with pytest.raises(NotImplementedError):
        start(trained, runs)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    start(model, runs)  # the same data elsewhere
    file = tmp_path / "examples/abilities/en/curated/test/history_test.json"
    file.write_text(file.read_text(encoding="utf-8").replace("the", "The", 1), encoding="utf-8")
    with pytest.raises(NotImplementedError):
        start(model, runs)


def stop_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Have the user press Ctrl-C while the training is at this step."""
    from deft.training.progress import Progress

    stepped: Callable[[Progress, int], None] = Progress.stepped

    def pressed(self: Progress, now: int) -> None:
        stepped(self, now)
        if now == step:
            self.ask_to_stop(2, None)

    monkeypatch.setattr(Progress, "stepped", pressed)


def test_an_interrupted_training_is_resumed(
    finished: tuple[Path, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at_step(patch, 2)
        with pytest.raises(KeyboardInterrupt) as stopped:
            start(model, tmp_path)
    told = re.sub(r"\s+", " ", stopped.value.__notes__[0])
    assert "What is done is kept: deft quickstart --model" in told and "goes on from here." in told
    [unfinished] = list(tmp_path.glob("2*"))
    assert (unfinished / "checkpoint-2").is_dir()
    monkeypatch.setattr("deft.evaluation.loss.row_losses", counted := Counted())
    folder, printed = start(model, tmp_path)
    assert folder == unfinished
    assert QUICKSTART_TEXTS["en"]["resuming"] in printed
    assert counted.sizes == [0, NUM_TEST]  # before was kept; after is measured
    assert "since it was resumed" in printed.splitlines()[-1]
    times = json.loads((folder / "quickstart.json").read_text(encoding="utf-8"))["results"]["stage_times_s"]
    assert "Fine-tuning (what was left)" in times
    assert "Loss on held-out rows, after" in times
    uninterrupted = read_rows_kept(finished[0] / "rows_after.jsonl")
    resumed = read_rows_kept(folder / "rows_after.jsonl")
    assert [row.nll for row in resumed] == pytest.approx([row.nll for row in uninterrupted], rel=1e-5)


class Counted:
    """Stands in for `row_losses`, and notes how many rows each call was given."""

    def __init__(self, *, fail_after_packs: int | None = None) -> None:
        from deft.evaluation.loss import row_losses

        self.real = row_losses
        self.sizes: list[int] = []
        self.packs_left = fail_after_packs

    def __call__(self, model: Any, sequences: Any, *, pack_length_tokens: int, on_progress: Any = None) -> Any:
        self.sizes.append(len(sequences))

        def progress(pack: Any) -> None:
            on_progress(pack)
            if self.packs_left is not None:
                self.packs_left -= 1
                if self.packs_left == 0:
                    raise KeyboardInterrupt

        return self.real(model, sequences, pack_length_tokens=pack_length_tokens, on_progress=progress)


def test_an_interrupted_evaluation_goes_on_where_it_was(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("deft.evaluation.loss.row_losses", Counted(fail_after_packs=2))
        with pytest.raises(KeyboardInterrupt) as stopped:
            start(model, tmp_path, lang="zh")
    assert "即可从中断处继续" in stopped.value.__notes__[0]
    [kept] = tmp_path.glob(".quickstart/*/rows_before.jsonl")
    num_kept = len(read_rows_kept(kept))
    assert 0 < num_kept < NUM_TEST
    with kept.open("a", encoding="utf-8") as stream:
        stream.write('{"id": "半')  # a line that was cut off
    with monkeypatch.context() as patch:
        patch.setattr("deft.evaluation.loss.row_losses", counted := Counted())
        patch.setattr("deft.training.run.train", interrupted)
        with pytest.raises(KeyboardInterrupt) as stopped:
            start(model, tmp_path, lang="zh")
    assert counted.sizes == [NUM_TEST - num_kept]
    assert f"{NUM_TEST} 条中有 {num_kept} 条此前已测过" in stopped.value.__notes__[0]
    assert len(read_rows_kept(kept)) == NUM_TEST


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_a_start_after_the_training_does_not_train_again(
    finished: tuple[Path, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished[0].parent, tmp_path / "runs", symlinks=True)
    folder = tmp_path / "runs" / finished[0].name
    (folder / "quickstart.json").unlink()
    (folder / "rows_after.jsonl").unlink()
    monkeypatch.setattr("deft.training.run.train", must_not_run)
    again, printed = start(model, tmp_path / "runs")
    assert again == folder
    assert QUICKSTART_TEXTS["en"]["trained_already"].format(folder=folder) in printed
    assert (folder / "quickstart.json").is_file()


def test_again_makes_a_new_run(finished: tuple[Path, str], model: Path, tmp_path: Path) -> None:
    shutil.copytree(finished[0].parent, tmp_path / "runs", symlinks=True)
    folder, _ = start(model, tmp_path / "runs", again=True)
    assert folder.name != finished[0].name
    assert (tmp_path / "runs" / "latest").resolve() == folder


def test_a_damaged_record_is_not_taken_up(finished: tuple[Path, str], tmp_path: Path) -> None:
    assert read_object(finished[0] / "quickstart.json")["key"]
    (tmp_path / "quickstart.json").write_text('{"key": "', encoding="utf-8")
    assert read_object(tmp_path / "quickstart.json") == {}
    assert read_object(tmp_path / "absent.json") == {}


def test_an_unfinished_run_of_another_kind_is_left_alone(
    model: Path, tmp_path: Path, finished: tuple[Path, str]
) -> None:
    """`resume_training` takes the newest unfinished run: if that is not ours, a new one is started."""
    other = tmp_path / "29990101-000000"
    other.mkdir()
    (other / "run.json").write_text(json.dumps({"settings": {}, "finished": False}), encoding="utf-8")
    folder, printed = start(model, tmp_path)
    assert folder != other
    assert QUICKSTART_TEXTS["en"]["resuming"] not in printed


def test_the_chinese_half_speaks_chinese(model: Path, tmp_path: Path) -> None:
    folder, printed = start(model, tmp_path, lang="zh", max_train_rows=10, max_test_rows=10)
    assert ENDING_TEXTS["zh"]["next"] in printed
    assert re.search(r"^  能力 +条数 +词元 +监督词元 ", printed, re.MULTILINE)
    assert re.search(r"^  合计 +10 ", printed, re.MULTILINE)
    assert "条训练数据" in printed.splitlines()[-1]
    assert PROMPTS["zh"][1] in printed
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "用 10 条数据训练之后的变化" in report
    assert "examples/abilities/zh/curated/full" in report


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_model_that_hardly_knows_chinese_is_told_at_both_ends_with_the_way_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lang: str
) -> None:
    known = dataclasses.replace(KNOWN_MODELS["smollm2-135m"], alias=str(model))
    monkeypatch.setitem(KNOWN_MODELS, str(model), known)
    for module in (job, stages):
        monkeypatch.setattr(module, "is_present", lambda model: True)
    monkeypatch.setattr("deft.hub.find.locate", lambda name, **_: Path(name))
    monkeypatch.setattr("deft.quickstart.stages.bring_model", lambda plan, tell: None)
    _, printed = start(model, tmp_path, lang=lang, max_train_rows=5, max_test_rows=10)
    told = [number for number, line in enumerate(printed.splitlines()) if "几乎不懂中文" in line]
    if lang == "en":
        assert not told and "gemma3" not in printed
        return
    lines = printed.splitlines()
    assert len(told) == 2 and told[0] < 3 and told[1] >= len(lines) - 4
    command = "deft quickstart --lang zh --model gemma3-270m --accept-license"
    assert [line.strip() for line in lines].count(command) == 2 and lines[-1].strip() == command


@pytest.mark.parametrize(
    ("reply", "lang", "said"),
    [
        ("水星离太阳最近。\n答案：B", "zh", "答对了"),
        ("金星最亮。\n答案：A", "zh", "答错了：正确答案是 B. 水星"),
        ("答案是 D。", "zh", "答错了：正确答案是 B. 水星"),
        ("B", "zh", "答对了"),
        ("A. 金星 B. 水星", "zh", "没有选出答案：正确答案是 B. 水星"),
        ("离太阳最近的行星是哪一颗？", "zh", "没有选出答案：正确答案是 B. 水星"),
        ("", "en", "no answer: B. Mercury is right"),
        ("A planet close to the Sun.\nAnswer: B", "en", "right"),
        ("A planet.", "en", "no answer: B. Mercury is right"),
        ("Answer: A. No, answer: C", "en", "wrong: B. Mercury is right"),
        ("B. Mercury", "en", "right"),
    ],
)
def test_a_showcased_answer_is_judged(reply: str, lang: Any, said: str) -> None:
    question, story = PROMPTS[lang]
    assert verdicts(question, reply, "", lang)["before_verdict"] == said
    assert verdicts(story, reply, "", lang) == {}


def test_the_verdict_stands_beside_the_reply(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    [question, story] = json.loads((folder / "quickstart.json").read_text(encoding="utf-8"))["results"]["replies"]
    assert f"← {question['after_verdict']}" in printed and question["after_verdict"]
    assert story["after_verdict"] == ""
    assert f"<em>← {question['after_verdict']}</em>" in (folder / "report.html").read_text(encoding="utf-8")
    assert QUICKSTART_TEXTS["en"]["worth"].split(".")[0] in printed


def test_the_commands_named_do_the_same_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "run", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        start(model, tmp_path / "我的 runs", lang="zh")
    again = f"deft quickstart --lang zh --model '{model}' --runs '{tmp_path}/我的 runs'"
    assert again.replace(" ", "") in re.sub(r"\s", "", stopped.value.__notes__[0])


def test_in_an_empty_folder_it_takes_the_rows_that_come_with_deft(
    finished: tuple[Path, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, printed = start(model, Path("runs"), lang="zh", max_train_rows=10, max_test_rows=10)
    assert "chat_gradio.py" not in printed, "there is no such file here"
    assert "    deft chat runs/latest/best" in printed.splitlines()
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "deft/data/abilities/zh/curated/full" in report
    assert str(ROOT) not in report and str(tmp_path) not in report
    monkeypatch.setattr(job, "run", must_not_run)
    assert start(model, Path("runs"), lang="zh", max_train_rows=10, max_test_rows=10)[0] == folder
    with pytest.raises(UserError, match="language"):
        start(model, tmp_path / "runs", lang="fr")


def test_a_leak_stops_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "examples/abilities/zh/curated"
    row = (folder / "full/history_full.json").read_text(encoding="utf-8").splitlines()[0]
    test_file = folder / "test/history_test.json"
    test_file.write_text(row + "\n" + test_file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="1 held-out rows occur in the training rows") as caught:
        start(model, tmp_path / "runs", lang="zh")
    assert "history_test.json:1" in str(caught.value)
    assert "history_full.json:1" in str(caught.value)


def test_the_prompts_are_not_in_the_data() -> None:
    for lang, prompts in PROMPTS.items():
        files = list((ROOT / "examples/abilities" / lang).rglob("*.json"))
        assert len(files) == 30
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        questions = {json.loads(line)["messages"][0]["content"] for line in text.splitlines() if line}
        assert not questions & set(prompts)
        assert not [question for question in questions if prompts[0].splitlines()[0] in question]


def test_both_languages_say_the_same_things() -> None:
    assert QUICKSTART_TEXTS["en"].keys() == QUICKSTART_TEXTS["zh"].keys()
    for name, text in QUICKSTART_TEXTS["en"].items():
        fields = set(re.findall(r"\{(\w+)", text))
        assert fields == set(re.findall(r"\{(\w+)", QUICKSTART_TEXTS["zh"][name])), name
        assert re.search(r"[一-鿿]", QUICKSTART_TEXTS["zh"][name]), name


def test_a_part_is_spread_over_the_abilities() -> None:
    def example(ability: str, number: int) -> Example:
        messages = (Message(role="user", content=f"{ability}{number}"), Message(role="assistant", content="好"))
        return Example.create(messages, ability=ability)

    rows = [example(ability, number) for ability in ("数学", "code", "历史") for number in range(4)]
    assert [row.messages[0].content for row in spread(rows, 5)] == ["数学0", "数学1", "code0", "code1", "历史0"]
    assert spread(rows, None) == rows
    assert spread(rows, 99) == rows


def test_every_setting_of_the_plan_is_in_its_key(model: Path) -> None:
    def key(**changes: Any) -> str:
        config = TrainConfig(
            model=str(model), train=(ROOT / "examples/abilities/zh/curated/full",), output_dir=Path("a")
        )
        plan = Plan(
            lang="zh",
            config=config,
            test=ROOT / "examples/abilities/zh/curated/test",
            max_train_rows=None,
            num_valid_rows=None,
            max_test_rows=None,
            max_new_tokens=8,
        )
        inner = {name: changes.pop(name) for name in list(changes) if name not in Plan.__slots__}
        return plan_key(dataclasses.replace(plan, config=dataclasses.replace(config, **inner), **changes), model)

    same = key()
    assert key(output_dir=Path("b"), resume_training=True) == same
    others = [key(seed=1), key(num_epochs=2), key(max_new_tokens=9), key(num_valid_rows=3), key(lang="en")]
    assert len({same, *others}) == 6


def test_entering_the_environment_is_told_where_it_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deft.quickstart.outcome import needs_activation

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert not needs_activation(), "there is nothing to enter"
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    assert needs_activation()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/deft").touch(mode=0o755)
    assert not needs_activation(), "deft is found already"
