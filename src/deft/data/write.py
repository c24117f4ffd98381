"""Examples go in; a file in deft's own layout comes out, whole or not at all.

Each row is `{"id", "messages", "type", **meta}`, which any reader of DoIT's files understands. A key of `meta` that
would take the place of one that means something there is packed into an object under `meta`. In Parquet the columns
are `id`, `messages`, `type`, and `meta` as JSON text.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deft.data.conversations import has_meaning
from deft.errors import UserError
from deft.files import written_whole
from deft.types import Example

PARQUET_BATCH_ROWS = 1024


def write_examples(path: Path | str, examples: Iterable[Example]) -> int:
    """Write examples as JSON Lines (`.jsonl`, `.json`) or Parquet (`.parquet`); return how many were written.

    Reading the file back gives equal examples, apart from `source`.

    Raises:
        UserError: if the name ends otherwise, a `meta` value is not JSON, or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise UserError("cannot tell the format to write", got=str(path), fix=f"end the name in {', '.join(WRITERS)}")
    with written_whole(path) as temporary:
        return WRITERS[suffix](temporary, examples)


def to_row(example: Example) -> dict[str, Any]:
    """Return an example as the JSON object that is written for it."""
    row: dict[str, Any] = {"id": example.id, "messages": message_rows(example)}
    if example.ability is not None:
        row["type"] = example.ability
    packed = {key: value for key, value in example.meta.items() if has_meaning(key)}
    row |= {key: value for key, value in example.meta.items() if not has_meaning(key)}
    return row | {"meta": packed} if packed else row


def message_rows(example: Example) -> list[dict[str, str]]:
    """Return the messages of an example as `[{"role", "content"}]`."""
    return [{"role": message.role, "content": message.content} for message in example.messages]


def json_text(value: Any, example: Example) -> str:
    """Return a value as one line of JSON.

    Raises:
        UserError: naming the example, if it holds something that JSON does not.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
        return text
    except (TypeError, ValueError, RecursionError) as error:
        where = f"example {example.id} ({example.source})"
        raise UserError("`meta` is not JSON", got=str(error), where=where, fix="use JSON values only") from error


def write_json_lines(path: Path, examples: Iterable[Example]) -> int:
    """Write one JSON object a line; return how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for example in examples:
            stream.write(json_text(to_row(example), example) + "\n")
            count += 1
    return count


def write_parquet(path: Path, examples: Iterable[Example]) -> int:
    """Write a Parquet table; return the number of its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message_type = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns = [("id", pa.string()), ("messages", pa.list_(message_type)), ("type", pa.string()), ("meta", pa.string())]
    schema = pa.schema(columns)
    count, remaining = 0, iter(examples)
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(itertools.islice(remaining, PARQUET_BATCH_ROWS)):
            rows = [
                {
                    "id": example.id,
                    "messages": message_rows(example),
                    "type": example.ability,
                    "meta": json_text(dict(example.meta), example),
                }
                for example in batch
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(batch)
    return count


WRITERS = {".jsonl": write_json_lines, ".json": write_json_lines, ".parquet": write_parquet}
