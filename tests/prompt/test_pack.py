import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft.prompt.pack import pack_rows


def packed_by_brute_force(lengths, capacity):
    """Best-fit decreasing, by looking at every pack for every row."""
    packs, rooms = [], []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        fitting = [(room, pack) for pack, room in enumerate(rooms) if room >= lengths[row]]
        if fitting:
            pack = min(fitting)[1]
        else:
            pack = len(packs)
            packs.append([])
            rooms.append(capacity)
        packs[pack].append(row)
        rooms[pack] -= lengths[row]
    return packs


@given(st.integers(1, 70).flatmap(lambda c: st.tuples(st.lists(st.integers(1, c), max_size=60), st.just(c))))
def test_it_is_best_fit_decreasing(case):
    lengths, capacity = case
    packs = pack_rows(lengths, capacity)
    assert packs == packed_by_brute_force(lengths, capacity)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= capacity for pack in packs)


def test_a_case_by_hand():
    # 7 | 6 | 5 → room 3, 4, 5; then 4 goes into the room of 4, 3 into that of 3, the first 2 into that of 5
    assert pack_rows([2, 7, 4, 6, 5, 3], 10) == [[1, 5], [3, 2], [4, 0]]


def test_ties_go_to_the_lower_row_and_the_older_pack():
    assert pack_rows([6, 6, 4, 4], 10) == [[0, 2], [1, 3]]
    assert pack_rows([6, 6, 3], 10) == [[0, 2], [1]]


def test_nothing_and_full_rows():
    assert pack_rows([], 8) == []
    assert pack_rows([8, 8], 8) == [[0], [1]]


@pytest.mark.parametrize("length", [0, -1, 9])
def test_rows_that_fit_no_pack_are_errors(length):
    with pytest.raises(ValueError, match=f"row 1 has {length} tokens; a pack takes 1 to 8"):
        pack_rows([3, length], 8)
