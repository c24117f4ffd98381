"""A run as a whole, on tiny models: its loss curve against a plain reference, its folder, stopping and resuming."""

import json
import math
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from deft.errors import UserError
from deft.hub.find import find
from deft.model.likelihood import PackedRows
from deft.model.load import load_model, load_tokenizer
from deft.model.vocabulary import make_room
from deft.prompt.encode import encode_examples
from deft.prompt.formats.kinds import chat_format_for
from deft.prompt.formats.role_tokens import add_role_tokens
from deft.prompt.store import load_chat_format
from deft.testing.tiny import CHATML_TEMPLATE, byte_tokenizer, save_tiny
from deft.training.config import TrainConfig
from deft.training.order import RowOrder
from deft.training.progress import Progress
from deft.training.record import read_metrics
from deft.training.run import TrainResult, shortened, train
from deft.training.runfolder import rows_fingerprint
from deft.training.utilisation import Utilisation
from deft.types import IGNORED_LABEL, Example, Message, TokenSequence

QUIET = Console(quiet=True)


def examples(count: int) -> list[Example]:
    """Rows of uneven lengths, in Chinese and English, over two abilities."""
    made = []
    for number in range(count):
        question = f"{number} 加 {number % 7} 等于几?" + " 请想一想。" * (number % 4)
        reply = f"答案是 {number + number % 7}。" if number % 2 else f"The answer is {number + number % 7}." * 2
        messages = [Message(role="user", content=question), Message(role="assistant", content=reply)]
        made.append(Example.create(messages, ability="数学" if number % 2 else "math"))
    return made


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / request.param, request.param, seed=5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "llama", "llama", seed=5)


def settings(checkpoint: Path, runs: Path, **changes: object) -> TrainConfig:
    values = {
        "model": str(checkpoint),
        "output_dir": runs,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "end_learning_rate": 1e-4,
        "max_length_tokens": 256,
        "num_epochs": 2,
    }
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


def reference_curve(config: TrainConfig, rows: list[Example], num_steps: int) -> list[float]:
    """Train the plain way: no packs, full logits, one backward per step, PyTorch's own AdamW."""
    loaded = load_model(config.model)
    model = loaded.model.train()
    encoded = encode_examples(rows, chat_format_for(loaded.tokenizer), max_length_tokens=256).sequences
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
    )
    order = RowOrder(len(encoded), config.batch_size * config.gradient_accumulation, config.seed)
    curve: list[float] = []
    for epoch in range(math.ceil(num_steps / len(order))):
        order.set_epoch(epoch)
        for batch in order:
            if len(curve) == num_steps:
                return curve
            share = len(curve) / num_steps
            for group in optimizer.param_groups:
                group["lr"] = config.end_learning_rate + (config.learning_rate - config.end_learning_rate) * (1 - share)
            total, weight = torch.zeros(()), 0.0
            for index in batch:
                row = encoded[index]
                logits = model(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0]
                labels = torch.from_numpy(row.labels).long()
                weights = torch.ones(len(row)) if row.weights is None else torch.from_numpy(row.weights)
                total = total + (weights[1:] * cross_entropy(logits[:-1], labels[1:], reduction="none")).sum()
                weight += float(weights[labels != IGNORED_LABEL].sum())
            loss = total / weight
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            curve.append(loss.item())
    return curve


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_twenty_packed_steps_follow_the_unpacked_full_logit_reference(
    checkpoint: Path, tmp_path: Path, accumulation: int
) -> None:
    rows = examples(22)
    config = settings(checkpoint, tmp_path, gradient_accumulation=accumulation, batch_size=2, max_steps=20)
    result = train(config, rows, [], QUIET)
    ours = [line["loss"] for line in read_metrics(result.folder) if "loss" in line]
    expected = reference_curve(config, rows, 20)
    assert len(ours) == 20
    assert max(abs(a - b) for a, b in zip(ours, expected, strict=True)) < 1e-4
    assert expected[0] - expected[-1] > 0.3, "a curve that does not move would pass any comparison"


def weighted_examples(count: int) -> list[Example]:
    """Rows of two exchanges whose replies weigh differently; every third row is as it is."""
    made = []
    for number, (one, two) in enumerate(pairwise(examples(count + 1))):
        weights = [(1.0, 1.0), (0.0, 0.25), (3.0, 0.5)][number % 3]
        messages = [*one.messages, *two.messages]
        messages[1], messages[3] = replace(messages[1], weight=weights[0]), replace(messages[3], weight=weights[1])
        made.append(Example.create(messages, ability=one.ability))
    return made


@pytest.mark.parametrize("accumulation", [1, 4])
def test_steps_and_validation_are_means_by_loss_weights(llama: Path, tmp_path: Path, accumulation: int) -> None:
    rows = weighted_examples(22)
    assert len({row.weights is None for row in encoded_of(llama, rows)}) == 2, "rows of both kinds"
    config = settings(llama, tmp_path, gradient_accumulation=accumulation, batch_size=8 // accumulation, num_epochs=3)
    result = train(config, rows, rows[:6], QUIET)
    lines = read_metrics(result.folder)
    ours = [line["loss"] for line in lines if "loss" in line]
    expected = reference_curve(config, rows, 9)
    assert ours == pytest.approx(expected, abs=1e-4) and expected[0] - expected[-1] > 0.1
    recorded = [row for row in pq.read_table(result.folder / "rows.parquet").to_pylist() if row["split"] == "valid"]
    before = [row for row in recorded if row["step"] == 0]
    assert [row["weight"] for row in sorted(before, key=lambda row: row["row"])] == pytest.approx(
        [row.total_weight for row in encoded_of(llama, rows[:6])]
    )
    of_rows = sum(row["nll"] for row in before) / sum(row["weight"] for row in before)
    assert next(line["eval_loss"] for line in lines if "eval_loss" in line) == pytest.approx(of_rows)
    last = [row for row in recorded if row["step"] == 9]
    assert result.valid_loss == pytest.approx(sum(row["nll"] for row in last) / sum(row["weight"] for row in last))


def encoded_of(checkpoint: Path, rows: list[Example]) -> tuple[TokenSequence, ...]:
    chat_format = chat_format_for(load_tokenizer(find(checkpoint)))
    return encode_examples(rows, chat_format, max_length_tokens=256).sequences


def test_the_identity_of_a_run_knows_its_loss_weights(llama: Path) -> None:
    plain = encoded_of(llama, examples(2))
    halves = [replace(row, weights=np.full(len(row), 0.5, np.float32)) for row in plain]
    assert rows_fingerprint(plain) != rows_fingerprint(halves)
    assert rows_fingerprint(plain) == rows_fingerprint([replace(row, place=7) for row in plain])


def finished_run(llama: Path, runs: Path, **changes: object) -> TrainResult:
    config = settings(llama, runs, valid=(Path("given"),), **changes)
    return train(config, examples(12), examples(30)[12:16], QUIET)


def test_the_run_folder_holds_everything_needed_to_read_and_repeat_it(llama: Path, tmp_path: Path) -> None:
    result = finished_run(llama, tmp_path / "runs")
    folder = result.folder
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "rows.parquet", "loss.png", "dropped.jsonl", "best"} <= names
    assert list((folder / "tensorboard").glob("events*"))
    assert (tmp_path / "runs/latest").resolve() == folder.resolve()
    stored = json.loads((folder / "run.json").read_text())
    assert stored["finished"] is True
    assert {"python", "torch", "transformers"} <= set(stored["versions"])
    assert {path.suffix for path in (folder / "best").iterdir()} & {".bin"} == set(), "weights are safetensors"
    assert (folder / "best/chat_format.json").exists()
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    assert sorted((r["split"], r["epoch"]) for r in rows) == sorted(
        [("train", e) for e in (1, 2) for _ in range(12)] + [("valid", e) for e in (0, 1, 2) for _ in range(4)]
    )
    metrics = read_metrics(folder)
    last = [line for line in metrics if "eval_loss" in line][-1]
    assert set(last) >= {"eval_loss", "eval_loss_math", "eval_loss_数学"}
    of_rows = [r for r in rows if r["split"] == "valid" and r["epoch"] == 2]
    assert last["eval_loss"] == pytest.approx(
        sum(r["nll"] for r in of_rows) / sum(r["num_supervised"] for r in of_rows)
    )
    assert result.valid_loss == pytest.approx(last["eval_loss"])


def test_best_points_at_the_lowest_validation_loss_and_old_checkpoints_go(llama: Path, tmp_path: Path) -> None:
    result = finished_run(llama, tmp_path / "runs", num_epochs=4, save_total_limit=1, learning_rate=2e-2)
    losses = {line["step"]: line["eval_loss"] for line in read_metrics(result.folder) if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert result.best.resolve().name == f"checkpoint-{best}"
    kept = {path.name for path in result.folder.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{best}", f"checkpoint-{max(losses)}"}
    assert not list(result.folder.glob(".*")), "nothing half-written stays"


def test_save_steps_come_on_top_of_the_checkpoint_of_each_epoch(llama: Path, tmp_path: Path) -> None:
    result = finished_run(llama, tmp_path / "runs", save_steps=2, save_total_limit=9)
    assert {path.name for path in result.folder.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (2, 3, 4, 6)}
    assert (result.best / "model.safetensors").exists()


class StopAfter(Progress):
    """A user who presses Ctrl-C during a given step."""

    last_step = 0

    def stepped(self, step: int) -> None:
        super().stepped(step)
        self.stop_asked = step >= self.last_step


@pytest.mark.parametrize(
    ("method", "stop_after"),
    [
        ("full", 3),
        ("lora", 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("full", 2), ("full", 4), ("lora", 3), ("lora", 4)]),
    ],
)
def test_a_stopped_run_resumes_to_the_same_weights(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stop_after: int
) -> None:
    whole = finished_run(llama, tmp_path / "whole", method=method)
    monkeypatch.setattr(StopAfter, "last_step", stop_after)
    monkeypatch.setattr("deft.training.run.Progress", StopAfter)
    stopped = finished_run(llama, tmp_path / "parts", method=method)
    assert not stopped.finished
    monkeypatch.undo()
    resumed = finished_run(llama, tmp_path / "parts", method=method, resume_training=True)
    assert resumed.finished
    assert resumed.folder == stopped.folder
    for file in sorted(whole.best.glob("*.safetensors")):
        ours, theirs = load_file(resumed.best / file.name), load_file(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    keep = ("step", "loss", "eval_loss")
    curves = [
        [{k: line[k] for k in keep if k in line} for line in read_metrics(run.folder)] for run in (whole, resumed)
    ]
    assert curves[0] == curves[1]
    tables = [pq.read_table(run.folder / "rows.parquet").to_pylist() for run in (whole, resumed)]
    assert tables[0] == tables[1]


def test_resuming_with_other_data_is_refused_with_what_changed(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopAfter, "last_step", 1)
    monkeypatch.setattr("deft.training.run.Progress", StopAfter)
    finished_run(llama, tmp_path / "runs")
    config = settings(llama, tmp_path / "runs", valid=(Path("given"),), resume_training=True, learning_rate=1e-3)
    with pytest.raises(UserError) as caught:
        train(config, examples(11), examples(30)[12:16], QUIET)
    assert "train_rows" in str(caught.value)
    assert "learning_rate (was 0.002, is 0.001)" in str(caught.value)


def test_what_changed_may_be_allowed_by_name(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopAfter, "last_step", 1)
    monkeypatch.setattr("deft.training.run.Progress", StopAfter)
    stopped = finished_run(llama, tmp_path / "runs")
    monkeypatch.undo()
    changes = {"valid": (Path("given"),), "resume_training": True, "learning_rate": 1e-3, "show_rows": 0}
    with pytest.raises(UserError, match="allow_changed names nothing") as caught:
        config = settings(llama, tmp_path / "runs", allow_changed=("learning_rat",), **changes)
        train(config, examples(11), examples(30)[12:16], QUIET)
    assert "did you mean 'learning_rate'" in str(caught.value)
    config = settings(llama, tmp_path / "runs", allow_changed=("learning_rate",), **changes)
    with pytest.raises(UserError) as caught:
        train(config, examples(11), examples(30)[12:16], QUIET)
    assert "--allow-changed train_rows" in str(caught.value), "what is allowed is not listed again"
    config = settings(llama, tmp_path / "runs", allow_changed=("learning_rate", "train_rows"), **changes)
    resumed = train(config, examples(11), examples(30)[12:16], QUIET)
    assert resumed.finished and resumed.folder == stopped.folder
    stored = json.loads((resumed.folder / "run.json").read_text(encoding="utf-8"))
    assert stored["settings"]["learning_rate"] == 1e-3 and stored["num_train_rows"] == 11


def test_the_first_rows_are_painted_in_the_log(llama: Path, tmp_path: Path) -> None:
    console = Console(width=100, color_system=None, file=StringIO())
    config = settings(llama, tmp_path, show_rows=1, max_steps=1)
    rows = examples(4)
    train(config, rows, [], console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"id {rows[0].id}" in printed and f"id {rows[1].id}" not in printed
    assert "⟦" + rows[0].messages[-1].content in printed


def test_long_texts_are_painted_from_both_ends() -> None:
    assert shortened("短") == "短"
    text = "甲" * 120 + "乙" * 7 + "丙" * 120
    assert shortened(text) == "甲" * 120 + " …(7 characters)… " + "丙" * 120


def test_progress_counts_what_the_model_needs_against_what_the_machine_can_do(llama: Path, tmp_path: Path) -> None:
    """Three products for each weight of a layer and token: 6 · weights · tokens, and the head's at supervised ones."""
    run = finished_run(llama, tmp_path)
    used = [line["mfu_ratio"] for line in read_metrics(run.folder) if "loss" in line]
    assert used and all(0 < ratio < 1.5 for ratio in used)
    model = load_model(llama).model
    found = Utilisation.of(model, "full", torch.device("cpu"), torch.float32)
    sequence = encode_examples(examples(1), chat_format_for(byte_tokenizer()), max_length_tokens=256).sequences[0]
    length, width, layers = len(sequence), 64, 2
    weights = sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
    head = model.lm_head.weight.numel()
    expected = 6 * weights * length + 6 * head * sequence.num_supervised + 7 * layers * width * length**2
    assert found.flop(PackedRows.lay([sequence])) == pytest.approx(expected)


def test_nothing_to_resume_is_said(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no unfinished run"):
        finished_run(llama, tmp_path / "runs", resume_training=True)


def test_lora_trains_adapters_only_and_the_checkpoint_loads_as_a_model(llama: Path, tmp_path: Path) -> None:
    result = finished_run(llama, tmp_path / "runs", method="lora")
    assert (result.best / "adapter_model.safetensors").exists()
    assert not (result.best / "model.safetensors").exists()
    before, after = load_model(str(llama)).model, load_model(str(result.best)).model
    ids = torch.tensor([[5, 6, 7, 8]])
    assert not torch.allclose(before(input_ids=ids).logits, after(input_ids=ids).logits)


def test_an_adapter_is_no_model_to_train(llama: Path, tmp_path: Path) -> None:
    adapter = finished_run(llama, tmp_path / "一", method="lora").best
    for method in ("full", "lora"):
        with pytest.raises(UserError, match="training starts from a whole model, and this is an adapter") as caught:
            finished_run(adapter, tmp_path / "二", method=method)
        assert str(caught.value.fix).startswith(f"deft merge {adapter} ")
    assert not list((tmp_path / "二").glob("*"))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])  # an untied head, a tied one
def test_a_base_model_without_template_gets_role_tokens_that_are_trained_and_saved(
    tmp_path: Path, method: str, architecture: str
) -> None:
    base = save_tiny(tmp_path / "base", architecture, seed=5)
    (base / "chat_template.jinja").unlink()
    result = finished_run(base, tmp_path / "runs", method=method)
    loaded = load_model(str(result.best))
    ids = loaded.tokenizer.convert_tokens_to_ids(["<user>", "<assistant>", "<eot>"])
    assert loaded.tokenizer.unk_token_id not in ids
    chat_format = load_chat_format(result.best, loaded.tokenizer)
    assert chat_format is not None and chat_format.kind == "role_tokens"
    rows = encode_examples(examples(30)[12:16], chat_format, max_length_tokens=256).sequences
    assert rows[0].input_ids[0] == ids[0] and rows[0].labels[-1] == ids[2]
    total = 0.0
    for row in rows:
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0]
        total += cross_entropy(logits[:-1], torch.from_numpy(row.labels).long()[1:], reduction="sum").item()
    assert total / sum(row.num_supervised for row in rows) == pytest.approx(result.valid_loss, abs=1e-4)


def test_the_rows_of_new_tokens_are_those_of_the_seed(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", seed=5)
    rows = []
    for state, seed in ((1, 0), (2, 0), (1, 3)):
        loaded = load_model(base)
        add_role_tokens(loaded.tokenizer)
        torch.manual_seed(state)  # whatever was random before
        make_room(loaded, seed=seed)
        rows.append(loaded.model.get_input_embeddings().weight[-3:].detach())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_an_id_of_the_tokenizer_that_no_row_has_hinders_nothing(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "底座", seed=5)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<图像>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    best = finished_run(base, tmp_path / "runs").best
    assert load_model(best, device="cpu").model.config.vocab_size == 260  # no row was added for it
    tokenizer.chat_template = CHATML_TEMPLATE.replace("<|im_start|>", "<图像>")
    tokenizer.save_pretrained(base)
    with pytest.raises(UserError, match="no embedding for: it has 260"):
        finished_run(base, tmp_path / "more")


def test_a_loss_that_is_not_a_number_names_the_rows_and_stops(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(loss|gradient) became (nan|inf) at step \d") as caught:
        finished_run(llama, tmp_path / "runs", learning_rate=1e30, max_grad_norm=0.0)
    assert any(row.id in str(caught.value) for row in examples(12))
    assert "lower learning_rate" in str(caught.value)


def test_gradient_checkpointing_changes_nothing_but_memory(llama: Path, tmp_path: Path) -> None:
    plain = finished_run(llama, tmp_path / "a")
    for keeps in ("nothing", "products"):
        saved = finished_run(llama, tmp_path / keeps, gradient_checkpointing=True, checkpointing_keeps=keeps)
        assert saved.valid_loss == pytest.approx(plain.valid_loss, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_epochs": 0}, "num_epochs"),
        ({"end_learning_rate": 1.0}, "end_learning_rate"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
        ({"pack_length_tokens": 10}, "pack_length_tokens"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(Path("x"), Path("y"), **changes)


def test_an_unknown_trainer_setting_is_refused_before_a_model_loads(tmp_path: Path) -> None:
    config = settings(Path("no/such/model"), tmp_path, trainer={"wurmup_steps": 3})
    with pytest.raises(UserError, match="unknown setting") as caught:
        train(config, examples(2), [], QUIET)
    assert "warmup_steps" in str(caught.value)
