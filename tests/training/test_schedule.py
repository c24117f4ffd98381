"""The learning rate, by hand."""

import pytest

from deft.training.schedule import Schedule


def test_a_straight_line_from_the_first_rate_to_the_last() -> None:
    schedule = Schedule(warmup_ratio=0.0, end_ratio=0.1, power=1.0)
    assert [schedule.factor(step, 4) for step in range(6)] == pytest.approx([1.0, 0.775, 0.55, 0.325, 0.1, 0.1])


def test_a_parabola_after_a_warm_up_over_a_fifth_of_the_steps() -> None:
    schedule = Schedule(warmup_ratio=0.2, end_ratio=0.0, power=2.0)
    expected = [0.0, 0.5, 1.0, (7 / 8) ** 2, (6 / 8) ** 2]
    assert [schedule.factor(step, 10) for step in range(5)] == pytest.approx(expected)


def test_a_rate_that_stays_constant() -> None:
    assert {Schedule(warmup_ratio=0.0, end_ratio=1.0, power=1.0).factor(step, 3) for step in range(4)} == {1.0}


def test_half_a_cosine_after_a_warm_up_of_two_steps() -> None:
    schedule = Schedule(warmup_ratio=0.0, warmup_steps=2, end_ratio=0.2, power=1.0, shape="cosine")
    expected = [0.0, 0.5, 1.0, 0.2 + 0.8 * 0.75, 0.6, 0.2 + 0.8 * 0.25, 0.2]  # cos(π/3) = 1/2, cos(π/2) = 0
    assert [schedule.factor(step, 8) for step in (0, 1, 2, 4, 5, 6, 8)] == pytest.approx(expected)


def test_a_constant_rate_has_no_last_one() -> None:
    schedule = Schedule(warmup_ratio=0.0, warmup_steps=1, end_ratio=0.1, power=1.0, shape="constant")
    assert [schedule.factor(step, 4) for step in range(5)] == [0.0, 1.0, 1.0, 1.0, 1.0]
