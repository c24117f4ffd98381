"""Rows kept from the training, so that what it changed can be measured: a function of the rows and a seed.

In: examples. Out: those to train on and those held out, in whole clusters of equal prompts, since a prompt seen in
training tells little about one that is new.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from deft.data.audit import prompt_key
from deft.types import Example

HELD_OUT_RATIO = 0.05
FEWEST_HELD_OUT, MOST_HELD_OUT = 20, 500
FEWEST_ROWS = 2 * FEWEST_HELD_OUT
"""Of fewer rows none are held out: what is left would teach less than what is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Examples to train on, and examples held out, both in the order they came in."""

    train: Sequence[Example]
    held_out: Sequence[Example]


def hold_out(examples: Sequence[Example], *, seed: int) -> Split:
    """Hold out 5 % of the examples, at least 20 and at most 500, of each ability about its share.

    Examples with the same prompt stay together. Neither their order nor their files matter. Where that cannot be done
    (fewer than 40 examples, or prompts that nearly all examples share), none are held out.
    """
    keys = [prompt_key(example) for example in examples]
    wanted = min(max(round(HELD_OUT_RATIO * len(examples)), FEWEST_HELD_OUT), MOST_HELD_OUT)
    chosen: set[str] = set()
    num_chosen = 0
    for prompt, size in in_order_of_choice(examples, keys, seed) if len(examples) >= FEWEST_ROWS else ():
        if num_chosen >= wanted:
            break
        if size <= wanted and num_chosen + size <= min(MOST_HELD_OUT, len(examples) // 2):
            chosen.add(prompt)
            num_chosen += size
    if num_chosen < FEWEST_HELD_OUT:
        chosen = set()
    return Split(
        train=[example for example, key in zip(examples, keys, strict=True) if key not in chosen],
        held_out=[example for example, key in zip(examples, keys, strict=True) if key in chosen],
    )


def in_order_of_choice(examples: Sequence[Example], keys: Sequence[str], seed: int) -> list[tuple[str, int]]:
    """Return the prompts with their numbers of examples, so ordered that a beginning holds a share of each ability.

    `keys` are the examples' prompts. Within an ability the order is that of a hash; its n prompts then stand at 1/2n,
    3/2n, 5/2n, … of the way.
    """
    size_of: dict[str, int] = defaultdict(int)
    ability_of: dict[str, str] = {}
    for example, key in zip(examples, keys, strict=True):
        ability = example.ability or ""
        size_of[key] += 1
        ability_of[key] = min(ability, ability_of.get(key, ability))
    prompts_of: dict[str, list[str]] = defaultdict(list)
    for key in sorted(size_of, key=lambda key: drawn(key, seed)):
        prompts_of[ability_of[key]].append(key)
    places = {key: (place + 0.5) / len(prompts) for prompts in prompts_of.values() for place, key in enumerate(prompts)}
    return [(key, size_of[key]) for key in sorted(places, key=lambda key: (places[key], drawn(key, seed)))]


def drawn(key: str, seed: int) -> bytes:
    """Return the place of a prompt in a random order of the seed's."""
    return hashlib.sha256(f"{seed}\n{key}".encode()).digest()
