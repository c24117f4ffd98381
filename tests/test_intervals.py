"""The change of a loss and its interval: by hand, against brute force, and how often it holds the truth."""

import math
from dataclasses import replace

import numpy as np
import pytest

from deft.errors import UserError
from deft.intervals import mean_losses, paired_change, paired_changes, student_quantile, tail_probability
from deft.losses import RowLoss


def row(id: str, nll: float, tokens: int, ability: str = "生物") -> RowLoss:
    return RowLoss(id=id, ability=ability, nll=nll, num_supervised=tokens)


def rows_of(nll: np.ndarray, tokens: np.ndarray, ability: str = "历史") -> list[RowLoss]:
    return [
        row(f"{ability}{i:05}", float(n), int(t), ability) for i, (n, t) in enumerate(zip(nll, tokens, strict=True))
    ]


def test_change_is_that_of_the_token_weighted_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deft.intervals.FEWEST_DEGREES", 1)
    before = [row("a", 6.0, 2), row("b", 10.0, 8)]
    after = [row("a", 4.0, 2), row("b", 4.0, 8)]
    change = paired_change(before, after)
    assert change.before == pytest.approx(1.6)  # 16 / 10, not the mean of 3 and 1.25
    assert change.after == pytest.approx(0.8)
    assert change.difference == pytest.approx(-0.8)
    assert change.relative_percent == pytest.approx(-50.0)
    assert change.num_rows == 2
    # the only resamples are aa, ab, bb: differences -2/2, -8/10, -6/8; relative -1/3, -1/2, -0.6
    assert (change.low, change.high) == pytest.approx((-1.0, -0.75))
    assert (change.relative_low, change.relative_high) == pytest.approx((-60.0, -100 / 3))
    assert change.is_clear


def test_rows_count_by_their_loss_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures as of rows with as many tokens as these have weight, which some tokens are without."""
    monkeypatch.setattr("deft.intervals.FEWEST_DEGREES", 1)
    before = [replace(row("甲", 6.0, 9), weight=2.0), row("乙", 10.0, 8)]
    after = [replace(row("甲", 4.0, 9), weight=2.0), row("乙", 4.0, 8)]
    plain = [row("甲", 6.0, 2), row("乙", 10.0, 8)], [row("甲", 4.0, 2), row("乙", 4.0, 8)]
    assert paired_change(before, after) == paired_change(*plain)
    [mean, _], [expected, _] = mean_losses(before), mean_losses(plain[0])
    assert (mean.loss, mean.low, mean.high) == (expected.loss, expected.low, expected.high)
    with pytest.raises(UserError, match="differs between before and after"):
        paired_change(before, [replace(after[0], weight=3.0), after[1]])


def test_unchanged_rows_have_no_change_and_are_not_clear() -> None:
    before = [row(str(i), 3.0 + i, 5) for i in range(6)]
    change = paired_change(before, before)
    assert (change.difference, change.low, change.high, change.relative_percent) == (0, 0, 0, 0)
    assert not change.is_clear


def test_one_row_has_no_interval() -> None:
    change = paired_change([row("a", 6.0, 2)], [row("a", 4.0, 2)])
    assert change.difference == -1.0
    assert all(math.isnan(bound) for bound in (change.low, change.high, change.relative_low, change.relative_high))
    assert not change.is_clear


@pytest.mark.parametrize(("num_rows", "has_interval"), [(2, False), (5, False), (6, True)])
def test_few_rows_have_no_interval(num_rows: int, has_interval: bool) -> None:
    tokens = np.arange(1, num_rows + 1) * 10
    change = paired_change(rows_of(tokens * 3.0, tokens), rows_of(tokens * np.linspace(1.0, 1.1, num_rows), tokens))
    assert math.isfinite(change.low) is math.isfinite(change.relative_high) is change.is_clear is has_interval


def test_interval_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(7)
    tokens = rng.integers(5, 60, 40)
    nll_before = tokens * rng.gamma(9, 0.3, 40)
    nll_after = nll_before * rng.uniform(0.3, 1.1, 40)
    strata = np.repeat(["数学", "code"], [25, 15])
    before = [row(str(i), float(nll_before[i]), int(tokens[i]), strata[i]) for i in range(40)]
    after = [row(str(i), float(nll_after[i]), int(tokens[i]), strata[i]) for i in range(40)]

    differences, relatives = [], []
    for _ in range(20_000):
        drawn = np.concatenate(
            [rng.choice(np.flatnonzero(strata == name), (strata == name).sum()) for name in set(strata)]
        )
        first, second, count = nll_before[drawn].sum(), nll_after[drawn].sum(), tokens[drawn].sum()
        differences.append(second / count - first / count)
        relatives.append(100 * (second / first - 1))
    tail = tail_probability(0.95, num_rows=40, num_strata=2)
    assert tail is not None
    change = paired_change(before, after, num_resamples=20_000)
    width = change.high - change.low
    assert (change.low, change.high) == pytest.approx(
        tuple(np.quantile(differences, [tail, 1 - tail])), abs=0.05 * width
    )
    width = change.relative_high - change.relative_low
    expected = tuple(np.quantile(relatives, [tail, 1 - tail]))
    assert (change.relative_low, change.relative_high) == pytest.approx(expected, abs=0.05 * width)


def test_overall_resamples_within_abilities() -> None:
    """Two abilities whose rows are alike inside: the difference between abilities is no noise."""
    before = [row(f"{ability}{i}", 10.0 * (1 + k), 10, ability) for k, ability in enumerate("甲乙") for i in range(8)]
    after = [row(r.id, r.nll / 2, 10, r.ability) for r in before]
    change = paired_change(before, after)
    assert (change.low, change.high) == pytest.approx((-0.75, -0.75))
    mixed = [RowLoss(id=r.id, ability="同", nll=r.nll, num_supervised=10) for r in before]
    mixed_after = [RowLoss(id=r.id, ability="同", nll=r.nll, num_supervised=10) for r in after]
    loose = paired_change(mixed, mixed_after)
    assert loose.high - loose.low > 0.1


@pytest.mark.parametrize("num_rows", [6, 10, 40])
def test_interval_holds_the_truth_about_as_often_as_it_says(num_rows: int) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(400):
        tokens = rng.integers(20, 60, num_rows)
        loss = rng.normal(3.0, 0.5, num_rows)
        drop = rng.normal(0.5, 0.4, num_rows)  # independent of the tokens: the true change is -0.5
        before, after = rows_of(tokens * loss, tokens), rows_of(tokens * (loss - drop), tokens)
        change = paired_change(before, after, num_resamples=500, seed=trial)
        held += change.low <= -0.5 <= change.high
    assert 0.92 <= held / 400 <= 0.98


def test_pairing_removes_what_rows_share() -> None:
    """Rows differ much, their change does not: an unpaired interval would be wide."""
    rng = np.random.default_rng(1)
    nll = rng.uniform(10, 100, 30)
    tokens = np.full(30, 10)
    change = paired_change(rows_of(nll, tokens), rows_of(nll - 5, tokens))
    assert (change.low, change.high) == pytest.approx((-0.5, -0.5))


def test_same_seed_same_interval_whatever_the_order() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(5, 50, 12)
    before = rows_of(tokens * 3.0, tokens)
    after = rows_of(tokens * rng.uniform(1, 3, 12), tokens)
    change = paired_change(before, after, seed=3)
    assert paired_change(before[::-1], after[3:] + after[:3], seed=3) == change
    assert paired_change(before, after, seed=4).low != change.low


def test_large_data_is_drawn_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    tokens = rng.integers(5, 50, 30)
    before, after = rows_of(tokens * 3.0, tokens), rows_of(tokens * rng.uniform(1, 3, 30), tokens)
    whole = paired_change(before, after)
    monkeypatch.setattr("deft.intervals.MAX_DRAWN_AT_ONCE", 100)
    in_pieces = paired_change(before, after)
    assert (in_pieces.low, in_pieces.high) == pytest.approx((whole.low, whole.high))


def test_changes_of_all_abilities_end_with_all() -> None:
    before = [row("a", 4.0, 2, "数学"), row("b", 6.0, 2, "数学"), row("c", 9.0, 3, "code"), row("d", 3.0, 3, "code")]
    after = [row("d", 3.0, 3, "code"), row("a", 2.0, 2, "数学"), row("c", 3.0, 3, "code"), row("b", 2.0, 2, "数学")]
    changes = paired_changes(before, after)
    assert list(changes) == ["code", "数学", "all"]
    assert changes["数学"].difference == pytest.approx(-1.5)
    assert changes["code"].difference == pytest.approx(-1.0)
    assert changes["all"].before == pytest.approx(2.2)
    assert changes["all"].after == pytest.approx(1.0)
    assert changes["all"].num_rows == 4


def test_the_interval_of_a_mean_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deft.intervals.FEWEST_DEGREES", 1)
    biology, every = mean_losses([row("a", 6.0, 2), row("b", 10.0, 8)])
    assert (biology.ability, every.ability) == ("生物", "all")
    assert biology.loss == every.loss == pytest.approx(1.6)
    assert (biology.low, biology.high) == pytest.approx((1.25, 3.0))  # resamples: aa 3, ab 1.6, bb 1.25


def test_the_interval_of_a_mean_is_that_of_its_change_from_nothing() -> None:
    rng = np.random.default_rng(3)
    rows = [*rows_of(rng.gamma(4.0, 5.0, 9), rng.integers(3, 30, 9)), row("甲", 3.0, 4), row("乙", 5.0, 3)]
    nothing = [RowLoss(id=one.id, ability=one.ability, nll=0.0, num_supervised=one.num_supervised) for one in rows]
    changes = paired_changes(nothing, rows)
    for mean in mean_losses(rows[::-1]):
        change = changes[mean.ability]
        assert mean.loss == pytest.approx(change.after)
        assert (mean.low, mean.high) == pytest.approx((change.low, change.high), nan_ok=True)


def test_other_rows_are_refused() -> None:
    before = [row("a", 4.0, 2), row("b", 4.0, 2)]
    with pytest.raises(UserError, match="same rows") as caught:
        paired_change(before, [row("a", 4.0, 2), row("c", 4.0, 2)])
    assert "b is only before" in str(caught.value)
    with pytest.raises(UserError, match="number of supervised tokens"):
        paired_change(before, [row("a", 4.0, 2), row("b", 4.0, 3)])
    with pytest.raises(UserError, match="ability"):
        paired_change(before, [row("a", 4.0, 2), row("b", 4.0, 2, "别的")])
    with pytest.raises(UserError, match="twice") as caught:
        paired_change([*before, before[1]], before)
    assert "got:   b" in str(caught.value)
    with pytest.raises(UserError, match="no rows"):
        paired_change([], [])


def test_settings_out_of_range_are_refused() -> None:
    rows = [row("a", 4.0, 2), row("b", 4.0, 2)]
    with pytest.raises(UserError, match="confidence"):
        paired_change(rows, rows, confidence=95)
    with pytest.raises(UserError, match="too few resamples"):
        paired_change(rows, rows, num_resamples=10)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (9, 2.262), (90, 1.987)]
)
def test_student_quantile_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(quantile, rel=0.01)


def test_a_wider_confidence_is_a_wider_interval() -> None:
    rng = np.random.default_rng(6)
    tokens = rng.integers(5, 50, 20)
    before, after = rows_of(tokens * 3.0, tokens), rows_of(tokens * rng.uniform(1, 3, 20), tokens)
    narrow, wide = (paired_change(before, after, confidence=share) for share in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.high < wide.high
