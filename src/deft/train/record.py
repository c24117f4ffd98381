"""What a run leaves behind to read: `metrics.jsonl`, one line per logged step, and `rows.parquet`, every row's loss."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deft.rundir import write_text, written_whole
from deft.train.checkpoint import checkpoint_step

SUMMARY_KEYS = {"train_runtime"}
"""What only the last line of a run has, which sums it up; a resumed run writes it anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLoss:
    """The loss of one row in one epoch: `nll` in nats, summed over its `num_supervised` tokens.

    Training losses are those met on the way (each row before its own update), validation losses those after the epoch.
    """

    id: str
    split: str
    epoch: int
    ability: str | None
    nll: float
    num_supervised: int


class RunRecord:
    """Collects row losses and metrics of a run, and writes them into its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[RowLoss] = []

    def log(self, values: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values, ensure_ascii=False) + "\n")

    def pack_capacity_tokens(self) -> int | None:
        """Return what the run last shortened its packs to, if it ran out of memory."""
        found = [line["pack_capacity_tokens"] for line in read_metrics(self.folder) if "pack_capacity_tokens" in line]
        return found[-1] if found else None

    def save_rows(self, folder: Path) -> None:
        """Write all row losses so far to `folder/rows.parquet`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, list[Any]] = {name: [] for name in RowLoss.__dataclass_fields__}
        for row in self.rows:
            for name, value in asdict(row).items():
                columns[name].append(value)
        schema = pa.schema(
            [
                ("id", pa.string()),
                ("split", pa.string()),
                ("epoch", pa.int32()),
                ("ability", pa.string()),
                ("nll", pa.float64()),
                ("num_supervised", pa.int32()),
            ]
        )
        with written_whole(folder / "rows.parquet") as temporary:
            pq.write_table(pa.table(columns, schema=schema), temporary)

    def resume(self, checkpoint: Path | None) -> None:
        """Take up the record as `checkpoint` holds it (None: as at the start): what came later is forgotten."""
        import pyarrow.parquet as pq

        rows = pq.read_table(checkpoint / "rows.parquet").to_pylist() if checkpoint else []
        self.rows = [RowLoss(**row) for row in rows]
        step = checkpoint_step(checkpoint) if checkpoint else 0
        lines = read_metrics(self.folder)
        kept = [line for line in lines if line["step"] <= step and not line.keys() & SUMMARY_KEYS]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; a last line cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def loss_by_ability(rows: Iterable[RowLoss]) -> dict[str, float]:
    """Return the mean NLL per supervised token of each ability, in nats; rows without one count as `other`."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        total = sums.setdefault(row.ability or "other", [0.0, 0.0])
        total[0] += row.nll
        total[1] += row.num_supervised
    return {ability: nll / count for ability, (nll, count) in sorted(sums.items())}


def mean_loss(rows: Sequence[RowLoss]) -> float:
    """Return the mean NLL per supervised token over all rows, in nats."""
    return sum(row.nll for row in rows) / sum(row.num_supervised for row in rows)
