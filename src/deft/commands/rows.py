"""What commands read: files named by the user in; examples out, and on the screen what was read and what was not."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.errors import UserError
from deft.screen import console, say

if TYPE_CHECKING:
    from deft.training.config import TrainConfig
    from deft.types import Example


def read(
    paths: Sequence[Path],
    *,
    skip_broken: bool = False,
    ability: str | None = None,
    ignore_fields: Sequence[str] = (),
    fields: Sequence[str] = (),
    written: Path | None = None,
) -> Sequence["Example"]:
    """Read examples; tell the files that were read and those that were not, the rows skipped and the fields unused."""
    from deft.data.columns import ability_column
    from deft.data.read import read_examples
    from deft.data.show import files_told, problems_table, unused_lines

    result = read_examples(
        paths, skip_broken=skip_broken, ability=ability, ignore_fields=ignore_fields, fields=fields, written=written
    )
    for line in files_told(result.sources, result.left_out):
        say(console(), "{line!t}", line=line)
    if not result.examples:
        first = result.broken[0]
        raise UserError(
            "no row is left: all are broken",
            got=f"{len(result.broken):,} rows; the first: {first.reason}",
            where=first.source,
            fix=first.fix or "correct the rows",
        )
    if result.broken:
        console().print(problems_table(result.broken))
    for line in unused_lines(result.unused):
        say(console(), "[yellow]note:[/] {line}", line=line, fold=True)
    if ability is None and (found := ability_column(result.examples)):
        what = "[yellow]note:[/] no row names its ability; --fields ability={column} takes it from there ({num} values)"
        say(console(), what, column=found[0], num=found[1], fold=True)
    return result.examples


def read_configured(config: "TrainConfig") -> tuple[Sequence["Example"], Sequence["Example"]]:
    """Return the rows to train on and those to measure on, some of the first where `config` names no others."""
    from deft.data.hold_out import hold_out

    if not config.train:
        raise UserError("no data to train on was given", fix="give --train FILE_OR_FOLDER, or a recipe that names it")
    how: dict[str, Any] = {
        "skip_broken": config.skip_broken,
        "ignore_fields": config.ignore_fields,
        "fields": config.fields,
    }
    examples = read(config.train, **how)
    if not config.validates:
        return examples, []
    if config.valid:
        return examples, read(config.valid, **how)
    split = hold_out(examples, seed=config.seed)
    if split.held_out:
        what = "held out {held_out} of {rows:,} rows, to measure the gain (--valid FILE: others, --valid none: none)"
    else:
        what = "of {rows:,} rows none can be held out, so what is learned is not measured (--valid FILE measures it)"
    say(console(), what, held_out=len(split.held_out), rows=len(examples), fold=True)
    return split.train, split.held_out
