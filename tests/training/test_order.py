"""The order of rows: a function of seed, epoch and step."""

import numpy as np

from deft.training.order import Batch, RowOrder, Share, lay_in_packs
from deft.types import TokenSequence


def batches(order: RowOrder, epoch: int) -> list[list[int]]:
    order.set_epoch(epoch)
    return list(order)


def test_every_row_comes_once_per_epoch() -> None:
    order = RowOrder(num_rows=10, batch_size=4, seed=3)
    for epoch in range(3):
        found = batches(order, epoch)
        assert [len(batch) for batch in found] == [4, 4, 2] and len(order) == 3
        assert sorted(row for batch in found for row in batch) == list(range(10))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    assert batches(RowOrder(50, 4, seed=1), 2) == batches(RowOrder(50, 4, seed=1), 2)
    assert batches(RowOrder(50, 4, seed=1), 2) != batches(RowOrder(50, 4, seed=1), 3)
    assert batches(RowOrder(50, 4, seed=1), 2) != batches(RowOrder(50, 4, seed=2), 2)


def test_packs_hold_whole_rows_and_no_more_tokens_than_allowed() -> None:
    rows = [
        TokenSequence(
            id=str(n), input_ids=np.arange(n, dtype=np.int32), labels=np.r_[-100, np.arange(1, n)].astype(np.int32)
        )
        for n in (5, 9, 3, 7, 2)
    ]
    packs = lay_in_packs(rows, capacity=12)
    assert all(pack.num_tokens <= 12 for pack in packs)
    assert sorted(row for pack in packs for row in pack.row_ids) == ["2", "3", "5", "7", "9"]
    assert len(packs) == 3


def row(length: int, supervised: int) -> TokenSequence:
    labels = np.full(length, -100, np.int32)
    labels[length - supervised :] = 7
    return TokenSequence(id=f"{length}-{supervised}", input_ids=np.full(length, 7, np.int32), labels=labels)


def test_processes_share_each_row_once_and_run_equally_many_packs() -> None:
    rows = (row(9, 2), row(8, 1), row(3, 1), row(3, 2), row(2, 1))
    batches = [Batch(rows=rows, share=Share(rank=rank, world_size=2)) for rank in (0, 1)]
    passes = [batch.passes(12) for batch in batches]
    packs = [[pack for pack, counts in one if counts] for one in passes]
    assert sorted(name for one in packs for pack in one for name in pack.row_ids) == sorted(r.id for r in rows)
    assert [batch.total_weight for batch in batches] == [7, 7]
    assert len({len(one) for one in passes}) == 1
    tokens = [sum(pack.num_tokens for pack in one) for one in packs]
    assert sorted(tokens) == [12, 13], "9 + 3 against 8 + 3 + 2"


def test_a_process_without_rows_idles_along() -> None:
    batch = Batch(rows=(row(5, 2),), share=Share(rank=1, world_size=2))
    assert batch.total_weight == 2
    assert [counts for _, counts in batch.passes(12)] == [False]


def test_a_row_longer_than_a_pack_is_one_alone() -> None:
    batch = Batch(rows=(row(9, 2), row(2, 1), row(2, 1)), share=Share())
    assert [pack.row_lengths for pack, _ in batch.passes(4)] == [(9,), (2, 2)]
