"""Measuring by one plain call: against losses of rows encoded by hand, by ability, and what is left out."""

from pathlib import Path

import pytest

from deft.errors import UserError
from deft.evaluation.loss import row_losses
from deft.evaluation.measure import evaluate_loss
from deft.model.load import load_model
from deft.prompt.encode import encode_examples
from deft.prompt.formats.kinds import chat_format_for
from deft.testing.tiny import save_tiny
from deft.types import Example, Message


def example(number: int, ability: str | None, reply: str = "好的。") -> Example:
    messages = (Message(role="user", content=f"第 {number} 题"), Message(role="assistant", content=reply))
    return Example.create(messages, ability=ability)


EXAMPLES = [example(number, "数学" if number < 6 else None, "答" * (number + 1)) for number in range(8)]


def test_means_by_ability_are_those_of_the_rows(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "小模型", "llama", seed=3)
    result = evaluate_loss(str(folder), EXAMPLES, max_length_tokens=256)
    loaded = load_model(folder)
    rows = encode_examples(EXAMPLES, chat_format_for(loaded.tokenizer), max_length_tokens=256).sequences
    expected = row_losses(loaded.model, rows, pack_length_tokens=64)
    assert [row.id for row in result.rows] == [one.id for one in EXAMPLES]
    assert [row.nll for row in result.rows] == pytest.approx([row.nll for row in expected], rel=1e-5)
    other, maths, every = result.abilities
    assert [one.ability for one in result.abilities] == ["other", "数学", "all"]
    assert [one.num_rows for one in result.abilities] == [2, 6, 8]
    assert maths.loss == pytest.approx(sum(row.nll for row in expected[:6]) / maths.num_supervised)
    assert maths.low <= maths.loss <= maths.high and every.low <= every.loss <= every.high
    assert other.low != other.low, "two rows are too few for an interval"
    assert result.dropped == ()


def test_what_cannot_be_measured_is_listed_and_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "小模型", "llama", seed=3)
    long = example(9, "数学", "长" * 200)
    result = evaluate_loss(folder, [*EXAMPLES, long], max_length_tokens=256)
    assert [(one.id, one.reason) for one in result.dropped] == [(long.id, "too_long")]
    assert len(result.rows) == len(EXAMPLES)
    with pytest.raises(UserError, match="no example") as caught:
        evaluate_loss(folder, [long], max_length_tokens=256)
    assert "too_long" in str(caught.value)
    with pytest.raises(UserError, match="no example"):
        evaluate_loss(folder, [])
