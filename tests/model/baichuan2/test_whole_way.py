"""The whole way on a small Baichuan2 in the 13B's layout, as it would be downloaded: official files, `.bin` shards.

Train by the ancestor's command, look at the loss per ability, talk to the result, export it; the same with adapters and
a merge; and with two processes, sharded or not, that follow the curve of one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from baichuan2_models import differ, logits

from deft.ancestor.flags import config_from_flags
from deft.commands import app as cli
from deft.commands.train import train_files
from deft.data.write import write_examples
from deft.hub.quiet import quiet_transformers
from deft.model.baichuan2.modelling import BaichuanForCausalLM
from deft.model.load import load_model
from deft.publish.export import weights_of
from deft.testing.baichuan2_tokenizer import save_tiny_tokenizer
from deft.testing.tiny import tiny_model
from deft.training.record import read_metrics
from deft.types import Example, Message

ROOT = Path(__file__).parents[3]
TURNS = (
    ("数学", "一加一等于几？", "等于二。"),
    ("数学", "What is 3 + 4?", "3 + 4 is 7."),
    ("语文", "春眠不觉晓的下一句？", "处处闻啼鸟。"),
    ("语文", "法国的首都是哪里？", "法国的首都是巴黎。"),
)
FLAGS = ("--batch_size", "4", "--gradient_accumulation", "1", "--num_train_epochs", "20", "--learning_rate", "1e-2")
NEVER_RUN = "raise SystemExit('code of a checkpoint ran')\n"
MODES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"trainer": {"fsdp": True, "fsdp_config": str(ROOT / "configs/fsdp2.json")}},
    "fsdp2-checkpointing": {
        "trainer": {"fsdp": True, "fsdp_config": str(ROOT / "configs/fsdp2.json")},
        "gradient_checkpointing": True,
    },
    "fsdp2-lora": {"trainer": {"fsdp": True, "fsdp_config": str(ROOT / "configs/fsdp2.json")}, "method": "lora"},
}


def save_as_released(folder: Path) -> Path:
    """Write a random model as the official 13B is released, and code that must not run."""
    model = tiny_model("baichuan2", seed=6, vocab_size=1024)
    with quiet_transformers():
        model.save_pretrained(save_tiny_tokenizer(folder))
    state = {name: weights.clone() for name, weights in weights_of(folder).items()}
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(state)[::2], sorted(state)[1::2]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = json.loads((folder / "config.json").read_text())
    del config["position_embedding"]
    assert "max_position_embeddings" not in config
    config["auto_map"] = {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    }
    config["tokenizer_class"] = "BaichuanTokenizer"
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration", "modeling", "tokenization"):
        (folder / f"{name}_baichuan.py").write_text(NEVER_RUN)
    return folder


def examples(copies: int = 1) -> list[Example]:
    made = []
    for copy in range(copies):
        for ability, question, reply in TURNS:
            messages = [
                Message(role="user", content=question + "请说。" * copy),
                Message(role="assistant", content=reply * (1 + copy)),
            ]
            made.append(Example.create(messages, ability=ability))
    return made


def write_rows(file: Path, rows: list[Example]) -> None:
    """Write a JSON array with the fields of the ancestor's data."""
    file.parent.mkdir(parents=True, exist_ok=True)
    messages = [[{"role": turn.role, "content": turn.content} for turn in row.messages] for row in rows]
    records = [{"messages": turns, "type": row.ability} for turns, row in zip(messages, rows, strict=True)]
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("百川")
    save_as_released(folder / "Baichuan2-13B")
    for split in ("train", "valid"):
        write_rows(folder / split / "rows.json", examples())
    return folder


def flags(place: Path, runs: str, *more: str) -> list[str]:
    folders = ["--train_dir", place / "train", "--valid_dir", place / "valid", "--output_dir", place / runs]
    return [*map(str, folders), "--model_name_or_path", str(place / "Baichuan2-13B"), *FLAGS, *more]


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """The folder of a run by `train_sft.py`'s flags."""
    return train_files(config_from_flags(flags(place, "runs"))).folder


@pytest.fixture(scope="module")
def adapted(place: Path) -> Path:
    """The same with adapters."""
    more = ("--method", "lora", "--learning_rate", "2e-2", "--num_train_epochs", "10")
    return train_files(config_from_flags(flags(place, "adapters", *more))).folder


def losses(folder: Path, key: str = "loss") -> list[float]:
    return [line[key] for line in read_metrics(folder) if key in line]


def command(*words: object) -> None:
    """Run a `deft` command in this process."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    assert stopped.value.code == 0


def test_the_loss_of_each_ability_is_measured_and_falls(trained: Path) -> None:
    rows = [row for row in pq.read_table(trained / "rows.parquet").to_pylist() if row["split"] == "valid"]
    assert len(rows) == 21 * len(TURNS), "before training, and after each epoch"
    for ability in ("数学", "语文"):
        curve = losses(trained, f"eval_loss_{ability}")
        assert len(curve) == 21
        assert curve[-1] < 0.2 < 2 < curve[0]
        last = [row for row in rows if row["ability"] == ability and row["epoch"] == 20]
        mean = sum(row["nll"] for row in last) / sum(row["num_supervised"] for row in last)
        assert curve[-1] == pytest.approx(mean, rel=1e-5)


def test_the_assistant_says_what_was_taught(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from inference import Assistant

    assistant = Assistant(str(trained / "best"), identity_file=None, max_new_tokens=32)
    assert type(assistant.model) is BaichuanForCausalLM
    contexts = [{"messages": [{"role": "user", "content": question}]} for _, question, _ in TURNS]
    replies, scores = assistant.inference(contexts)
    assert replies == [reply for _, _, reply in TURNS]
    assert len(scores) == len(TURNS)
    untaught = Assistant(str(trained.parents[1] / "Baichuan2-13B"), identity_file=None, max_new_tokens=8)
    assert untaught.inference(contexts[:1])[0] != replies[:1]


def test_the_export_is_the_checkpoint_in_official_names(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "发布"
    command("export", trained / "best", out, "--license", "other")
    official = set(
        json.loads((trained.parents[1] / "Baichuan2-13B/pytorch_model.bin.index.json").read_text())["weight_map"]
    )
    assert set(weights_of(out)) == official
    assert not list(out.glob("*.py"))
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["position_embedding"]) == (["BaichuanForCausalLM"], "alibi")
    assert "auto_map" not in config
    ids = torch.arange(200, 320)
    assert torch.equal(*(logits(load_model(each, device="cpu").model, ids) for each in (trained / "best", out)))


def test_merged_adapters_give_the_same_logits(adapted: Path, tmp_path: Path) -> None:
    merged = tmp_path / "合"
    command("merge", adapted / "best", merged)
    ids = torch.arange(200, 320)
    folders = (adapted / "best", merged, adapted.parents[1] / "Baichuan2-13B")
    by_adapter, by_merged, before = (logits(load_model(each, device="cpu").model, ids) for each in folders)
    assert differ(by_adapter, by_merged) < 1e-4
    assert differ(by_adapter, before) > 0.1, "the adapter does something"
    assert losses(adapted, "eval_loss")[-1] < losses(adapted, "eval_loss")[0] - 1


@pytest.mark.slow
def test_run_train_sh_is_that_run(place: Path, trained: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    words = ["bash", str(ROOT / "run_train.sh"), *flags(place, "by_script")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    by_script = (place / "by_script/latest").resolve()
    assert losses(by_script) == pytest.approx(losses(trained), abs=1e-5)
    assert (by_script / "best/chat_format.json").is_file()


# --- two processes ------------------------------------------------------------------------------------------------


def run(folder: Path, name: str, *, num_processes: int = 1, **changes: object) -> Path:
    """Train by the command line and return the run's folder."""
    settings = {
        "model": str(folder / "Baichuan2-13B"),
        "train": ["rows.jsonl"],
        "valid": ["rows.jsonl"],
        "num_epochs": 2,
        "learning_rate": 1e-3,
        "max_length_tokens": 256,
        "pack_length_tokens": 256,
        "output_dir": name,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"train": settings | changes}), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--standalone"]
    words = [sys.executable, *(launcher if num_processes > 1 else []), "-m", "deft", "train", f"{name}.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / name / "latest").resolve()


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Path]:
    """Runs of one process, by method; 23 rows, so that the last step has fewer than the others."""
    write_examples(place / "rows.jsonl", examples(6)[:23])
    return {
        method: run(place, f"one_{method}", batch_size=6, method=method)
        for method in dict.fromkeys(mode.get("method", "full") for mode in MODES.values())
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_follow_the_curve_of_one(mode: str, place: Path, alone: dict[str, Path]) -> None:
    one = alone[MODES[mode].get("method", "full")]
    two = run(place, mode, num_processes=2, batch_size=3, **MODES[mode])
    assert (two / "best/pytorch_model_fsdp.bin").exists() == mode.startswith("fsdp2"), "a file that FSDP alone writes"
    assert len(losses(one)) == 8
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert losses(two, "eval_loss_语文") == pytest.approx(losses(one, "eval_loss_语文"), abs=1e-5)
    ids = torch.arange(200, 320)
    by_two, by_one = (logits(load_model(each / "best", device="cpu").model, ids) for each in (two, one))
    assert differ(by_two, by_one) < 1e-3, "what was gathered and saved is what one process saves"
