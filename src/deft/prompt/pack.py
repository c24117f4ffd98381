"""Rows into packs: as few sequences of a fixed capacity as best-fit decreasing finds.

In: row lengths. Out: packs, which are lists of row numbers. Only the lengths matter, so the same rows always make the
same packs.
"""

from collections.abc import Sequence
from heapq import heappop, heappush


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return packs of row numbers, each row in one pack, no pack longer than `capacity`.

    Best-fit decreasing: the longest row first, each into the pack that it leaves least room in, or into a new one;
    ties go to the lower row and the older pack. It needs at most 11/9 of the best possible number of packs, plus one
    (Johnson et al. 1974), and n log(capacity) steps.

    Raises:
        ValueError: if a row is empty or longer than the capacity.
    """
    for row, length in enumerate(lengths):
        if not 0 < length <= capacity:
            raise ValueError(f"row {row} has {length} tokens; a pack takes 1 to {capacity}")
    packs: list[list[int]] = []
    room = RoomIndex(capacity)
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        found = room.take_tightest(lengths[row])
        if found is None:
            found = (capacity, len(packs))
            packs.append([])
        space, pack = found
        packs[pack].append(row)
        room.put(space - lengths[row], pack)
    return packs


class RoomIndex:
    """Packs by the room they have left, from which the tightest one with enough room is taken in log(capacity) steps.

    A binary tree over the rooms 0 to `capacity`: each node counts the packs below it; each leaf is a heap of packs.
    """

    def __init__(self, capacity: int) -> None:
        self._first_leaf = 1 << capacity.bit_length()
        self._counts = [0] * (2 * self._first_leaf)
        self._packs: dict[int, list[int]] = {}

    def put(self, room: int, pack: int) -> None:
        """Note that `pack` has `room` left."""
        heappush(self._packs.setdefault(room, []), pack)
        self._count(room, 1)

    def take_tightest(self, length: int) -> tuple[int, int] | None:
        """Remove the pack with the least room that holds `length`; return its room and its number, or None."""
        node = self._first_leaf + length
        while not self._counts[node]:
            while node & 1:
                node >>= 1
            if node == 0:
                return None
            node += 1
        while node < self._first_leaf:
            node = 2 * node if self._counts[2 * node] else 2 * node + 1
        room = node - self._first_leaf
        self._count(room, -1)
        return room, heappop(self._packs[room])

    def _count(self, room: int, change: int) -> None:
        node = self._first_leaf + room
        while node:
            self._counts[node] += change
            node >>= 1
