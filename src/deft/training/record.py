"""What a run leaves behind to read: `metrics.jsonl`, one line per logged step, and `rows.parquet`, every row's loss."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deft.errors import UserError
from deft.files import read_regular, write_text, written_whole
from deft.losses import RowLoss
from deft.report.charts import losses_chart, plain_text, save_png
from deft.training.checkpoint import checkpoint_step

OF_ABILITY = "eval_loss_"
"""Before the name of an ability, in the lines of a validation."""
SUMMARY_KEYS = {"train_runtime"}
"""What only the last line of a run has, which sums it up; a resumed run writes it anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRow(RowLoss):
    """The loss of one row in one epoch.

    `row` is the place of its sequence among those of its split, counted from 0, which tells rows of equal content
    apart; `step` is the optimizer step in which it was met, for a validation the steps before it. The epoch of a
    validation is the one that it ends or cuts short, 0 before any training. Training losses are those met on the way,
    each row before its own update.
    """

    split: str
    epoch: int
    step: int
    row: int


class RunRecord:
    """Collects row losses and metrics of a run, and writes them into its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[RecordedRow] = []

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

        schema = pa.schema(
            [
                ("id", pa.string()),
                ("split", pa.string()),
                ("epoch", pa.int32()),
                ("ability", pa.string()),
                ("nll", pa.float64()),
                ("num_supervised", pa.int32()),
                ("step", pa.int32()),
                ("row", pa.int32()),
                ("weight", pa.float64()),
                ("part", pa.int32()),
            ]
        )
        with written_whole(folder / "rows.parquet") as temporary:
            rows = [asdict(row) | {"weight": row.total_weight} for row in self.rows]
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)

    def resume(self, checkpoint: Path | None) -> None:
        """Go on from the record as `checkpoint` holds it (None: as at the start): what came later is forgotten.

        At the start no loss is known: that before training is measured again.

        Raises:
            UserError: if the checkpoint's record of rows cannot be read.
        """
        self.rows = read_rows(checkpoint) if checkpoint else []
        step = checkpoint_step(checkpoint) if checkpoint else 0
        forgotten = SUMMARY_KEYS if checkpoint else SUMMARY_KEYS | {"eval_loss"}
        lines = read_metrics(self.folder)
        kept = [line for line in lines if line["step"] <= step and not line.keys() & forgotten]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def read_rows(folder: Path) -> list[RecordedRow]:
    """Return the row losses in a folder's `rows.parquet`; one of an earlier version has no steps and places: -1.

    Weights of tokens came later still: where there are none, all were 1, and each row was one sequence.

    Raises:
        UserError: if it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "rows.parquet"
    try:
        return [RecordedRow(**({"step": -1, "row": -1} | row)) for row in pq.read_table(file).to_pylist()]
    except (OSError, pa.ArrowException, TypeError) as error:
        fix = "go on from an older checkpoint (rename this one), or start without --resume-training"
        raise UserError(
            "the losses of a checkpoint cannot be read", got=str(error), where=str(file), fix=fix
        ) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`, up to the first that a crash cut off or damaged."""
    try:
        lines = read_regular(folder / "metrics.jsonl").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            values = json.loads(line)
            if not isinstance(values["step"], int):
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        found.append(values)
    return found


def draw_losses(folder: Path) -> None:
    """Draw a run's `loss.png` from its `metrics.jsonl`: training by step, validation of all rows and by ability."""
    lines = read_metrics(folder)
    validation = [line for line in lines if "eval_loss" in line]
    names = {name for line in validation for name in line if name.startswith(OF_ABILITY)}
    by_ability = {
        name.removeprefix(OF_ABILITY): [(line["step"], line[name]) for line in validation if name in line]
        for name in names
    }
    with plain_text():
        figure = losses_chart(
            [(line["step"], line["loss"]) for line in lines if "loss" in line],
            [(line["step"], line["eval_loss"]) for line in validation],
            by_ability=by_ability,
        )
        save_png(figure, folder / "loss.png")
