"""Rows held out: how many, whole clusters of prompts, of each ability its share, whatever the order and the files."""

import random

import pytest

from deft.data.hold_out import Split, hold_out
from deft.types import Example, Message


def row(prompt: str, reply: str = "好。", ability: str | None = None, source: str = "") -> Example:
    messages = [Message(role="user", content=prompt), Message(role="assistant", content=reply)]
    return Example.create(messages, ability=ability, source=source)


def rows(count: int, abilities: tuple[str | None, ...] = (None,)) -> list[Example]:
    return [row(f"第 {number} 题", ability=abilities[number % len(abilities)]) for number in range(count)]


def prompts(examples: object) -> set[str]:
    return {example.messages[0].content for example in examples}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("count", "held_out"),
    [(0, 0), (1, 0), (39, 0), (40, 20), (300, 20), (400, 20), (1000, 50), (10_000, 500), (12_000, 500)],
)
def test_five_percent_but_at_least_20_and_at_most_500(count: int, held_out: int) -> None:
    split = hold_out(rows(count), seed=0)
    assert (len(split.train), len(split.held_out)) == (count - held_out, held_out)


def test_the_choice_is_a_function_of_rows_and_seed() -> None:
    given = rows(120, ("数学", "code", None))
    shuffled = random.Random(3).sample(given, len(given))
    moved = [row(one.messages[0].content, ability=one.ability, source="别处.csv:9") for one in given]
    chosen = prompts(hold_out(given, seed=0).held_out)
    assert prompts(hold_out(shuffled, seed=0).held_out) == chosen
    assert prompts(hold_out(moved, seed=0).held_out) == chosen
    assert prompts(hold_out(given, seed=1).held_out) != chosen


def test_order_is_kept_and_nothing_is_lost() -> None:
    given = rows(90)
    split = hold_out(given, seed=0)
    assert [one for one in given if one in split.train] == split.train
    assert sorted(one.id for one in [*split.train, *split.held_out]) == sorted(one.id for one in given)


def test_rows_with_the_same_prompt_stay_together() -> None:
    """Spaces, width and case of a prompt do not make it another one."""
    given = [
        row(f"第 {n // 3} 题，ＡＢＣ" if n % 3 else f"第{n // 3}题, abc".replace(",", "，"), f"答{n}")
        for n in range(150)
    ]
    split = hold_out(given, seed=0)
    assert len(split.held_out) == 21, "seven clusters of three; six are fewer than 20"
    keys = [
        {one.messages[0].content.split("题")[0].replace(" ", "") for one in part}
        for part in (split.train, split.held_out)
    ]
    assert keys[0].isdisjoint(keys[1])


def test_each_ability_gives_its_share() -> None:
    given = [row(f"题 {n}", ability="数学" if n % 4 else "历史") for n in range(800)]
    found = [one.ability for one in hold_out(given, seed=0).held_out]
    assert (found.count("数学"), found.count("历史")) == (30, 10)


def test_a_single_row_of_an_ability_is_not_taken_from_training() -> None:
    given = [*rows(200, ("数学",)), row("独一题", ability="诗")]
    assert "独一题" in prompts(hold_out(given, seed=0).train)


@pytest.mark.parametrize(
    "given", [[row("同一题", f"答 {n}") for n in range(100)], [row("a", str(n // 50)) for n in range(300)]]
)
def test_prompts_that_all_rows_share_cannot_be_held_out(given: list[Example]) -> None:
    assert hold_out(given, seed=0) == Split(train=given, held_out=[])
