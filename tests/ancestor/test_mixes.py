"""The paper's mixes: their sizes, that smaller ones are part of larger ones, and that no order of files matters."""

from pathlib import Path

import pytest

from deft.ancestor.mixes import ABILITIES, RECONSTRUCT, make_mix, mix_table
from deft.data.write import write_examples
from deft.errors import UserError
from deft.types import Example, Message


def rows(name: str, count: int) -> list[Example]:
    return [
        Example.create([Message(role="user", content=f"{name}问{n}"), Message(role="assistant", content=f"答{n}")])
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("数据")
    for ability in ABILITIES:
        write_examples(folder / f"curated/full/{ability}_full.json", rows(ability, 70))
    write_examples(folder / "synthetic/40960/general.json", rows("合成", 200))
    return folder


def test_there_are_nineteen_mixes_of_the_sizes_in_the_paper() -> None:
    table = mix_table()
    assert len(table) == 19
    assert sum(table["curated-640"][0].values()) == 640
    assert sum(count or 0 for count in RECONSTRUCT.values()) + 1042 == 10_001, "biology has 1,242 - 200 training rows"
    assert table["baseline"] == table["curated-10000"] and table["mix-0"] == table["maximum"]


def test_a_smaller_mix_is_part_of_a_larger_one_and_balanced(data: Path) -> None:
    small, large = make_mix("curated-40", data), make_mix("curated-160", data)
    assert len(small) == 40 and {row.id for row in small} < {row.id for row in large}
    assert {ability: sum(row.ability == ability for row in large) for ability in ABILITIES} == dict.fromkeys(
        ABILITIES, 16
    )
    assert make_mix("curated-40", data, seed=1) != small


def test_synthetic_rows_come_from_their_own_folder(data: Path) -> None:
    assert all("合成" in row.messages[0].content for row in make_mix("synthetic-160", data))


@pytest.mark.parametrize(
    ("data_type", "words"),
    [
        ("curated-2560", ["more rows than there are", "70 of 256", "biology"]),
        ("curated-41", ["no such data mix", "did you mean 'curated-40'"]),
    ],
)
def test_what_cannot_be_made_is_told(data: Path, data_type: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        make_mix(data_type, data)
    assert all(word in str(caught.value) for word in words)


def test_a_folder_in_another_layout_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows of biology"):
        make_mix("curated-10", tmp_path)
