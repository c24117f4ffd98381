"""Rows that are several sequences, because the chat template rewrites earlier turns: counted, trained and compared."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from deft.errors import UserError
from deft.estimate.workload import workload
from deft.evaluation.measure import evaluate_loss
from deft.hub.find import find
from deft.intervals import paired_changes
from deft.prompt.store import FILE_NAME
from deft.testing.tiny import CHATML_TEMPLATE, save_tiny
from deft.training.config import TrainConfig
from deft.training.outcome import losses_by_step
from deft.training.run import TrainResult, encode, start_of, train
from deft.types import Example, Message

OPENING = "'<|im_start|>assistant\n'"
CLOSED_THINKING = CHATML_TEMPLATE.replace(
    f"{{{{ {OPENING} }}}}", f"{{{{ {OPENING} + ('' if enable_thinking else '<think>\n\n</think>\n\n') }}}}"
)
"""The served prompt closes an empty thinking block, which no earlier turn shows; with `enable_thinking` it does not."""
THINKING = {"enable_thinking": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("tiny") / "llama", "llama", seed=5)
    (folder / "chat_template.jinja").write_text(CLOSED_THINKING, encoding="utf-8")
    return folder


def rows(count: int) -> list[Example]:
    """Rows of one, two and three exchanges in turn."""
    made = []
    for number in range(count):
        messages = []
        for turn in range(1 + number % 3):
            messages.append(Message(role="user", content=f"{number} 加 {turn} 等于几？"))
            messages.append(Message(role="assistant", content=f"答案是 {number + turn}。"))
        made.append(Example.create(messages, ability="数学" if number % 2 else "math"))
    return made


def settings(model: Path, runs: Path, **changes: Any) -> TrainConfig:
    values = {"model": str(model), "output_dir": runs, "valid": (Path("given"),), "batch_size": 4, "num_epochs": 1}
    return TrainConfig(**(values | {"learning_rate": 2e-3, "max_length_tokens": 256} | changes))


def trained(model: Path, runs: Path, **changes: Any) -> tuple[TrainResult, dict[str, Any], str]:
    """Train on nine rows and validate on six; return the result, `run.json`, and what was said."""
    said = Console(file=StringIO(), width=300)
    result = train(settings(model, runs, **changes), rows(9), rows(15)[9:], said)
    return result, json.loads((result.folder / "run.json").read_text("utf-8")), said.file.getvalue()  # type: ignore[attr-defined]


def test_rows_and_sequences_are_counted_each_by_its_name(model: Path, tmp_path: Path) -> None:
    result, stored, said = trained(model, tmp_path)
    assert (stored["num_train_rows"], stored["num_train_sequences"], stored["num_valid_rows"]) == (9, 18, 6)
    assert "training: 9 rows make 18 sequences, because the chat template rewrites earlier turns" in said
    assert "validation: 6 rows make 12 sequences" in said
    assert "step 5/5" in said, "18 sequences, 4 in a step"
    recorded = pq.read_table(result.folder / "rows.parquet").to_pylist()
    met = [row for row in recorded if row["split"] == "train"]
    assert sorted(row["row"] for row in met) == list(range(18))
    third = rows(9)[2].id
    assert [row["part"] for row in sorted(met, key=lambda row: row["row"]) if row["id"] == third] == [0, 1, 2]
    before, after = (losses_by_step(result.folder)[step] for step in (0, 5))
    assert len(before) == len(after) == 6, "the row is the sample"
    total = sum(row["num_supervised"] for row in recorded if row["split"] == "valid" and row["step"] == 0)
    assert sum(row.num_supervised for row in before) == total
    assert paired_changes(before, after)["all"].num_rows == 6


def test_rows_held_out_are_listed_once(model: Path, tmp_path: Path) -> None:
    _, stored, _ = trained(model, tmp_path, valid=())
    assert stored["held_out"] == [row.id for row in rows(15)[9:]]


def test_an_evaluation_gives_each_row_one_loss(model: Path) -> None:
    found = evaluate_loss(model, rows(6))
    assert [row.id for row in found.rows] == [row.id for row in rows(6)]
    assert found.abilities[-1].num_rows == 6
    served = evaluate_loss(model, rows(6), template_kwargs=THINKING)
    assert [row.num_supervised for row in served.rows] == [row.num_supervised for row in found.rows]
    assert [row.nll for row in served.rows] != [row.nll for row in found.rows]


@pytest.mark.parametrize(("kwargs", "expected"), [(None, (9, 18, 5)), (THINKING, (9, 9, 3))])
def test_an_estimate_counts_both(
    model: Path, tmp_path: Path, kwargs: dict[str, Any] | None, expected: tuple[int, int, int]
) -> None:
    config = settings(model, tmp_path, template_kwargs=kwargs)
    encoded = encode(rows(9), start_of(config, find(model)), config, split="training", console=Console(quiet=True))
    work = workload(config, encoded)
    assert (work.num_rows, work.num_sequences, work.steps_per_epoch) == expected


def test_what_the_template_is_given_decides_the_rows_and_stays_with_the_checkpoint(model: Path, tmp_path: Path) -> None:
    result, stored, said = trained(model, tmp_path, template_kwargs='{"enable_thinking": true}')
    assert (stored["num_train_rows"], stored.get("num_train_sequences")) == (9, None) and "sequences" not in said
    assert stored["settings"]["template_kwargs"] == THINKING
    assert json.loads((result.best / FILE_NAME).read_text("utf-8"))["template_kwargs"] == THINKING
    going_on, again, _ = trained(result.best, tmp_path)
    assert again["num_train_rows"] == 9 and "num_train_sequences" not in again, "what is stored with the model"
    assert json.loads((going_on.best / FILE_NAME).read_text("utf-8"))["template_kwargs"] == THINKING
    assert trained(result.best, tmp_path, template_kwargs={})[1]["num_train_sequences"] == 18, "none, asked for"


def test_a_run_is_resumed_with_the_same_reasoning_and_template_kwargs_only(model: Path, tmp_path: Path) -> None:
    result, stored, _ = trained(model, tmp_path)
    file = result.folder / "run.json"
    file.write_text(json.dumps(stored | {"finished": False}), encoding="utf-8")
    for changes in ({"train_reasoning": "all"}, {"template_kwargs": THINKING}):
        with pytest.raises(UserError, match="started differently") as caught:
            trained(model, tmp_path, resume_training=True, **changes)
        assert next(iter(changes)) in str(caught.value)
    for name in ("train_reasoning", "template_kwargs"):  # a run of an earlier version names neither
        del stored["settings"][name]
    file.write_text(json.dumps(stored | {"finished": False}), encoding="utf-8")
    resumed, _, _ = trained(model, tmp_path, resume_training=True)
    assert resumed.folder == result.folder


WITH_REASONING = CHATML_TEMPLATE.replace(
    "message['content']",
    "('<think>' + message['reasoning_content'] + '</think>' if message['reasoning_content'] else '')"
    " + message['content']",
)


@pytest.mark.parametrize(("train_reasoning", "num_reasonings"), [("none", 0), ("last", 1), ("all", 2)])
def test_reasoning_is_trained_where_asked_for(tmp_path: Path, train_reasoning: str, num_reasonings: int) -> None:
    """Each of two replies is 3 bytes and its end; its reasoning, with the words around it, 22 bytes."""
    folder = save_tiny(tmp_path / "model", "llama", seed=5)
    (folder / "chat_template.jinja").write_text(WITH_REASONING, encoding="utf-8")
    messages = []
    for turn in range(2):
        messages.append(Message(role="user", content=f"第 {turn} 问"))
        messages.append(Message(role="assistant", content="好", reasoning=f"想想{turn}"))
    config = settings(folder, tmp_path / "runs", train_reasoning=train_reasoning, max_steps=1)
    result = train(config, [Example.create(messages)], [], Console(quiet=True))
    [met] = pq.read_table(result.folder / "rows.parquet").to_pylist()
    assert met["num_supervised"] == 2 * (3 + 1) + 22 * num_reasonings
