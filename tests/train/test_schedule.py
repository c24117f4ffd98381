"""The learning rate, by hand."""

import pytest

from deft.train.schedule import Schedule


def test_a_straight_line_from_the_first_rate_to_the_last() -> None:
    schedule = Schedule(warmup_ratio=0.0, end_ratio=0.1, power=1.0)
    assert [schedule.factor(step, 4) for step in range(6)] == pytest.approx([1.0, 0.775, 0.55, 0.325, 0.1, 0.1])


def test_a_parabola_after_a_warm_up_over_a_fifth_of_the_steps() -> None:
    schedule = Schedule(warmup_ratio=0.2, end_ratio=0.0, power=2.0)
    expected = [0.0, 0.5, 1.0, (7 / 8) ** 2, (6 / 8) ** 2]
    assert [schedule.factor(step, 10) for step in range(5)] == pytest.approx(expected)


def test_a_rate_that_stays_constant() -> None:
    assert {Schedule(warmup_ratio=0.0, end_ratio=1.0, power=1.0).factor(step, 3) for step in range(4)} == {1.0}
