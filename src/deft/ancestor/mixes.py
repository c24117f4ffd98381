"""The paper's data mixes (arXiv 2310.19651), made from a data set in DoIT's layout.

In: a folder with `curated/full` and, where a mix wants it, `synthetic/40960`. Out: the examples of a mix. Rows are
ordered by a hash of the seed and their id, so a smaller mix is part of every larger one, and the same on any machine.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from deft.data.read import read_examples
from deft.errors import UserError, did_you_mean
from deft.types import Example

ABILITIES = (
    "biology",
    "chinese",
    "code",
    "creative_writing",
    "ethics",
    "history",
    "math",
    "reasoning",
    "role_play",
    "understanding",
)
SIZES = (10, 40, 160, 640, 2560, 10000)
"""Rows in all: 1, 4, 16, 64, 256 and 1,000 per ability."""
RECONSTRUCT: Mapping[str, int | None] = {
    **dict.fromkeys(ABILITIES, 1305),
    "biology": None,
    "chinese": 1306,
    "creative_writing": 1000,
    "ethics": 64,
    "role_play": 64,
}
"""Rows per ability of the mix that follows the growth curves; None takes all."""

MAXIMUM: Mapping[str, int | None] = {
    **dict.fromkeys(ABILITIES, None),
    "creative_writing": 1000,
    "ethics": 64,
    "role_play": 64,
}


def mix_table() -> dict[str, tuple[Mapping[str, int | None], int]]:
    """Return every mix by name: rows per ability of the curated half, and rows in all of the synthetic half."""
    curated = {f"curated-{size}": (dict.fromkeys(ABILITIES, size // 10), 0) for size in SIZES}
    synthetic: dict[str, tuple[Mapping[str, int | None], int]] = {
        f"synthetic-{size}": ({}, size) for size in (*SIZES, 40960)
    }
    maximum = {f"mix-{size}": (MAXIMUM, size) for size in (0, 2560, 40960)}
    named = {"baseline": curated["curated-10000"], "reconstruct": (RECONSTRUCT, 0), "maximum": (MAXIMUM, 0)}
    return {**curated, **synthetic, **named, **maximum}


def make_mix(data_type: str, folder: Path, *, seed: int = 0) -> list[Example]:
    """Return the examples of the mix `data_type`, ability by ability, from a data set in `folder`.

    Raises:
        UserError: if there is no such mix, or an ability has fewer rows than the mix wants.
    """
    table = mix_table()
    if data_type not in table:
        raise UserError("there is no such data mix", got=data_type, fix=did_you_mean(data_type, table))
    counts, num_synthetic = table[data_type]
    chosen: list[Example] = []
    for ability, count in counts.items():
        files = sorted((folder / "curated/full").glob(f"{ability}_*.json"))
        if not files:
            place = folder / "curated/full"
            fix = "give the folder of a data set in DoIT's layout with --data_dir"
            raise UserError(f"there are no rows of {ability}", got=f"{ability}_*.json", where=str(place), fix=fix)
        rows = read_examples(files, ability=ability).examples
        chosen += first_rows(rows, count, seed, where=f"{folder}/curated/full: {ability}")
    if num_synthetic:
        rows = read_examples([folder / "synthetic/40960"]).examples
        chosen += first_rows(rows, num_synthetic, seed, where=f"{folder}/synthetic/40960")
    return chosen


def first_rows(rows: Sequence[Example], count: int | None, seed: int, *, where: str) -> list[Example]:
    """Return the first `count` rows in the order of their hashes; None is all of them.

    Raises:
        UserError: if there are fewer.
    """
    if count is not None and count > len(rows):
        fix = "choose a smaller mix, or add rows"
        raise UserError("the mix needs more rows than there are", got=f"{len(rows)} of {count}", where=where, fix=fix)
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row.id}".encode()).digest())[:count]
