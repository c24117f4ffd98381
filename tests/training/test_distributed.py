"""Two processes (gloo, on the CPU) train to the same loss as one, however unequal their shares are."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from deft.data.read import read_examples
from deft.data.write import write_examples
from deft.errors import UserError
from deft.testing.tiny import save_tiny, tiny_model
from deft.training.arguments import arguments_of
from deft.training.checkpoint import checkpoint_step, checkpoints
from deft.training.config import TrainConfig
from deft.training.prepare import check_packing_where_it_fits
from deft.training.record import read_metrics
from deft.training.run import train
from deft.training.sharding import check_layer_names, check_sharding, reads_once
from deft.training.trainer import SupervisedTrainer
from deft.types import Example, Message

CONFIGS = Path(__file__).parents[2] / "configs"
MODES = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": str(CONFIGS / "fsdp2.json")},
    "read everywhere": {"fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": False}},
    "zero2": {"deepspeed": str(CONFIGS / "zero2.json")},
    "zero3": {"deepspeed": str(CONFIGS / "zero3.json")},
}
DEEPSPEED = Path(sys.prefix) / "deepspeed"
"""Where `make test-slow` installs DeepSpeed, for the processes of these tests alone."""
WITH_DEEPSPEED = pytest.mark.skipif(not DEEPSPEED.exists(), reason="make test-slow installs DeepSpeed")
SLOW_MODES = [
    pytest.param("read everywhere", marks=pytest.mark.slow),
    pytest.param("zero2", marks=[pytest.mark.slow, WITH_DEEPSPEED]),
    pytest.param("zero3", marks=[pytest.mark.slow, WITH_DEEPSPEED]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 23 rows (the last step has fewer than others, and some weigh more or less), and a run of one process."""
    folder = tmp_path_factory.mktemp("分布")
    save_tiny(folder / "model", "llama", seed=1)
    rows = []
    for number in range(23):
        reply = f"{number} 的平方是 {number * number}。" * (1 + number % 3)
        messages = [Message(role="user", content=f"{number} 的平方?" * (1 + number % 4))]
        messages.append(Message(role="assistant", content=reply, weight=(1, 0.25, 1, 3)[number % 4]))
        rows.append(Example.create(messages, ability=f"能力{number % 2}"))
    write_examples(folder / "rows.jsonl", rows)
    run(folder, "one", batch_size=6)
    return folder


def torchrun(num_processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--standalone"]


def run(folder: Path, name: str, *flags: str, num_processes: int = 1, **changes: object) -> Path:
    """Train by the command line and return the run's folder."""
    settings = {
        "model": "model",
        "train": ["rows.jsonl"],
        "valid": ["rows.jsonl"],
        "num_epochs": 2,
        "learning_rate": 1e-3,
        "max_length_tokens": 512,
        "pack_length_tokens": 512,
        "output_dir": name,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"train": settings | changes}), encoding="utf-8")
    launcher = torchrun(num_processes) if num_processes > 1 else [sys.executable]
    command = [*launcher, "-m", "deft", "train", f"{name}.yaml", *flags]
    packages = [str(DEEPSPEED)] if "deepspeed" in (settings | changes).get("trainer", {}) else []
    paths = os.pathsep.join([*packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("✓ trained") == 1, "one process speaks for all"
    return (folder / name / "latest").resolve()


def losses(folder: Path, key: str = "loss") -> list[float]:
    return [line[key] for line in read_metrics(folder) if key in line]


@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow), *SLOW_MODES])
def test_two_processes_follow_the_curve_of_one(mode: str, place: Path) -> None:
    one = (place / "one/latest").resolve()
    two = run(place, mode, num_processes=2, batch_size=3, trainer=MODES[mode])
    assert (two / "best/pytorch_model_fsdp.bin").exists() == ("fsdp" in MODES[mode]), "a file that FSDP alone writes"
    assert len(list((two / "best").glob("global_step8/*optim_states.pt"))) == (2 if "zero" in mode else 0)
    assert len(losses(one)) == 8
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert losses(two, "eval_loss_能力1") == pytest.approx(losses(one, "eval_loss_能力1"), abs=1e-5)
    tables = [pq.read_table(folder / "rows.parquet").to_pylist() for folder in (one, two)]
    met = [{(row["id"], row["split"], row["epoch"]): row["nll"] for row in table} for table in tables]
    assert [len(table) for table in tables] == [len(met[0])] * 2, "every row is met once, by one of the processes"
    assert met[1] == pytest.approx(met[0], rel=1e-4)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_one(place: Path) -> None:
    two = run(place, "parts", num_processes=2, batch_size=3)
    stored = json.loads((two / "run.json").read_text(encoding="utf-8"))
    (two / "run.json").write_text(json.dumps(stored | {"finished": False}), encoding="utf-8")
    for late in checkpoints(two)[1:]:
        late.rename(two / "later")
    resumed = run(place, "parts", "--resume-training", batch_size=6)
    assert resumed == two
    assert losses(resumed) == pytest.approx(losses((place / "one/latest").resolve()), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp2", *SLOW_MODES[1:]])
def test_all_processes_hold_out_the_same_rows_and_measure_them_before_training(mode: str, place: Path) -> None:
    rows = []
    for number in range(60):
        messages = [
            Message(role="user", content=f"{number} 的两倍?"),
            Message(role="assistant", content=f"{2 * number}。"),
        ]
        rows.append(Example.create(messages, ability="数学"))
    write_examples(place / "sixty.jsonl", rows)
    settings = {"train": ["sixty.jsonl"], "valid": [], "num_epochs": 1}
    one = run(place, f"one-held-out-{mode}", batch_size=6, **settings)
    two = run(place, f"held-out-{mode}", num_processes=2, batch_size=3, trainer=MODES[mode], **settings)
    records = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in (one, two)]
    assert len(records[0]["held_out"]) == 20
    assert records[1]["held_out"] == records[0]["held_out"]
    assert losses(two, "eval_loss") == pytest.approx(losses(one, "eval_loss"), abs=1e-5)
    assert len(losses(one, "eval_loss")) == 2
    assert (two / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fsdp2", *SLOW_MODES[1:]])
def test_a_sharded_run_goes_on_from_its_checkpoint(mode: str, place: Path) -> None:
    two = run(place, f"shards-{mode}", num_processes=2, batch_size=3, trainer=MODES[mode])
    weights = load_file(two / "best/model.safetensors")
    stored = json.loads((two / "run.json").read_text(encoding="utf-8"))
    (two / "run.json").write_text(json.dumps(stored | {"finished": False}), encoding="utf-8")
    for late in checkpoints(two)[1:]:
        late.rename(two / "later")
    resumed = run(place, two.parent.name, "--resume-training", num_processes=2, batch_size=3, trainer=MODES[mode])
    assert resumed == two
    assert losses(resumed) == pytest.approx(losses((place / "one/latest").resolve()), abs=1e-5)
    for name, tensor in load_file(two / "best/model.safetensors").items():
        assert torch.allclose(tensor, weights[name], atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fsdp2", *SLOW_MODES[1:]])
def test_shared_models_with_adapters_and_tied_weights_follow_the_curve_of_one(mode: str, place: Path) -> None:
    save_tiny(place / "tied", "qwen3", seed=1)
    settings = {"model": "tied", "gradient_checkpointing": True}
    for method, file in (("full", "model.safetensors"), ("lora", "adapter_model.safetensors")):
        one = run(place, f"one-{method}-{mode}", batch_size=6, method=method, **settings)
        two = run(
            place, f"{method}-{mode}", num_processes=2, batch_size=3, method=method, trainer=MODES[mode], **settings
        )
        assert losses(two) == pytest.approx(losses(one), abs=1e-5)
        weights = load_file(one / "best" / file)
        saved = load_file(two / "best" / file)
        assert saved.keys() == weights.keys(), "a tied weight is saved once"
        assert all(torch.allclose(saved[name], weights[name], atol=1e-5) for name in weights)


@pytest.mark.slow
def test_sharded_losses_are_not_rounded_to_16_bits(place: Path) -> None:
    two = run(place, "halves", num_processes=2, batch_size=3, trainer=MODES["fsdp2"], dtype="bfloat16")
    sums = [row["nll"] * 256 for row in pq.read_table(two / "rows.parquet").to_pylist()]
    assert sum(value.is_integer() for value in sums) < len(sums) / 10, "bfloat16 counts in 1/256 from 0.5 nats on"
    assert losses(two) == pytest.approx(losses((place / "one/latest").resolve()), abs=0.03)


def test_layers_to_share_that_a_model_does_not_have_are_refused() -> None:
    def check(*layers: str) -> None:
        settings = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": list(layers)}}
        check_layer_names(tiny_model("qwen3"), arguments_of(TrainConfig(trainer=settings), Path("unused")))

    check("Qwen3DecoderLayer")
    check()
    with pytest.raises(UserError, match="Qwen3ForCausalLM has no layers of that name") as caught:
        check("Qwen3DecoderLayer", "Qwen2DecoderLayer")
    assert caught.value.got == "Qwen2DecoderLayer"
    assert str(caught.value.fix).startswith("did you mean 'Qwen3DecoderLayer'?")


def test_fsdp_in_one_process_is_refused(place: Path) -> None:
    config = TrainConfig(model=str(place / "model"), output_dir=place / "alone", trainer={"fsdp": True})
    with pytest.raises(UserError, match="there is only one") as caught:
        train(config, read_examples([place / "rows.jsonl"]).examples, [], Console(quiet=True))
    assert "torchrun" in str(caught.value.fix)
    assert not list((place / "alone").glob("*"))


def test_only_the_process_that_writes_saves_weights(tmp_path: Path) -> None:
    """The others come to the same place with no weights to save."""
    other = SimpleNamespace(args=SimpleNamespace(should_save=False))
    SupervisedTrainer._save(other, str(tmp_path / "checkpoint"), state_dict={})  # type: ignore[arg-type]
    assert not (tmp_path / "checkpoint").exists()


READ_EVERYWHERE = [{"method": "qlora"}, {"kernels": "liger"}]


@pytest.mark.parametrize("settings", READ_EVERYWHERE)
def test_one_process_reads_for_all_unless_each_needs_the_weights_first(settings: dict[str, str]) -> None:
    plain, special = TrainConfig(), TrainConfig(**settings)  # type: ignore[arg-type]

    def reads(config: TrainConfig, **trainer: object) -> bool:
        given = dataclasses.replace(config, trainer=trainer)
        return reads_once(given, arguments_of(given, Path("unused")))

    assert reads(plain, fsdp=True)
    assert not reads(plain), "processes that share nothing"
    assert not reads(plain, fsdp=True, fsdp_config={"cpu_ram_efficient_loading": False})
    assert not reads(special, fsdp=True)
    asked = {"fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": True}}
    wrong = dataclasses.replace(special, trainer=asked)
    with pytest.raises(UserError, match=f"every process must read the weights, because of --{next(iter(settings))}"):
        check_sharding(wrong, arguments_of(wrong, Path("unused")), 2)


@pytest.mark.slow
def test_the_others_are_told_why_the_first_could_not_read(place: Path) -> None:
    shutil.copytree(place / "model", place / "坏")
    whole = (place / "坏/model.safetensors").read_bytes()
    (place / "坏/model.safetensors").write_bytes(whole[:-100])
    settings = {"model": "坏", "train": ["rows.jsonl"], "output_dir": "none", "trainer": {"fsdp": True}}
    (place / "坏.yaml").write_text(yaml.safe_dump({"train": settings}), encoding="utf-8")
    command = [*torchrun(2), "-m", "deft", "train", "坏.yaml"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("error: 坏/model.safetensors is damaged") == 2
    assert "Traceback" not in done.stderr.partition("torch/distributed")[0], "torchrun's own is last"


STOP_BEFORE_SHARING = """
from accelerate import PartialState
from pathlib import Path
from rich.console import Console
from transformers import AutoModelForCausalLM
import deft.training.prepare as prepare
import deft.training.run as run
from deft.data.read import read_examples
from deft.training.config import TrainConfig

read, checked = [], []
plain = AutoModelForCausalLM.from_pretrained

def from_pretrained(*names, **settings):
    read.append(names)
    return plain(*names, **settings)

def stop(config, ready, **_):
    weights = ready.loaded.model.state_dict()
    devices, formats = ({str(getattr(tensor, kind)) for tensor in weights.values()} for kind in ("device", "dtype"))
    Path(f"seen-{PartialState().process_index}").write_text(
        f"read {len(read)} times, checked {len(checked)} times, {len(weights)} weights, {devices}, {sorted(formats)}"
    )
    raise SystemExit

def check(model, rows):
    checked.append(1)
    model.lm_head.double()

AutoModelForCausalLM.from_pretrained = from_pretrained
prepare.check_packing = check
run.make_trainer = stop
config = TrainConfig(model="model", output_dir=Path("loads"), trainer={"fsdp": True})
run.train(config, read_examples([Path("rows.jsonl")]).examples, [], Console(quiet=True))
"""


@pytest.mark.slow
def test_one_process_reads_the_weights_and_the_others_hold_them_as_it_does(place: Path) -> None:
    (place / "stop.py").write_text(STOP_BEFORE_SHARING, encoding="utf-8")
    done = subprocess.run([*torchrun(2), "stop.py"], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    same = f"{len(load_file(place / 'model/model.safetensors'))} weights, {{'cpu'}}, ['torch.float32', 'torch.float64']"
    assert (place / "seen-0").read_text() == f"read 1 times, checked 1 times, {same}"
    assert (place / "seen-1").read_text() == f"read 0 times, checked 0 times, {same}"


LEAVES_EARLY = """
import sys
from pathlib import Path
from rich.console import Console
import deft.training.run as run
from deft.data.read import read_examples
from deft.errors import UserError
from deft.training.config import TrainConfig

def stop(config, ready, **_):
    raise {"SystemExit": SystemExit, "UserError": UserError("坏了"), "KeyError": KeyError("坏了")}[sys.argv[1]]

run.make_trainer = stop
config = TrainConfig(model="model", output_dir=Path("leaves"), valid=(Path("none"),))
run.train(config, read_examples([Path("rows.jsonl")]).examples, [], Console(quiet=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["SystemExit", "UserError", "KeyError"])
def test_a_group_is_left_in_the_same_way_whatever_ends_a_process(way: str, place: Path) -> None:
    (place / "leaves.py").write_text(LEAVES_EARLY, encoding="utf-8")
    done = subprocess.run([*torchrun(2), "leaves.py", way], cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (way == "SystemExit"), done.stderr
    # torchrun itself ends the other process by SIGTERM where it lives longer than the first
    assert "terminate called" not in done.stderr and "SIGABRT" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(number: signal.Signals, place: Path) -> None:
    name = f"signal-{number.name}"
    settings = {"model": "model", "train": ["rows.jsonl"], "valid": ["none"], "num_epochs": 500, "batch_size": 3}
    recipe = yaml.safe_dump({"train": settings | {"output_dir": name, "max_length_tokens": 512}})
    (place / f"{name}.yaml").write_text(recipe, encoding="utf-8")
    command = [*torchrun(2), "-m", "deft", "train", f"{name}.yaml"]
    started = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = place / name / "latest/metrics.jsonl"
    waited_until = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("loss") > 3):
        assert started.poll() is None and time.monotonic() < waited_until
        time.sleep(0.05)
    children = [int(one) for one in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()]
    os.kill(children[-1], number)
    told, _ = started.communicate(timeout=120)
    run = (place / name / "latest").resolve()
    assert checkpoint_step(checkpoints(run)[-1]) == len(losses(run)) < 2000, told
    assert "continue with the same command and --resume-training" in told
    assert "terminate called" not in told
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["finished"] is False


def test_packing_is_checked_on_the_cpu_if_the_whole_model_does_not_fit_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []

    def check(model: torch.nn.Module, rows: object) -> float:
        tried.append(str(next(model.parameters()).device))
        if len(tried) == 1:
            raise torch.OutOfMemoryError
        return 0.0

    class Model(torch.nn.Linear):
        def to(self, device: torch.device | str) -> "Model":  # type: ignore[override]
            self.places.append(str(device))
            return self

    monkeypatch.setattr("deft.training.prepare.check_packing", check)
    monkeypatch.setattr("deft.training.prepare.choose_device", lambda _: torch.device("cuda"))
    model = Model(2, 2)
    model.places = []
    check_packing_where_it_fits(model, [])  # type: ignore[arg-type]
    assert model.places == ["cuda", "cpu"]
    assert len(tried) == 2
