"""Examples go in; a file in deft's own layout comes out, whole or not at all.

Each row is `{"id", "messages", "type", **meta}`, which any reader of DoIT's files understands, with `tools` where there
are any. Messages have what OpenAI's have (`tool_calls`, `tool_call_id`, `name`, `weight`) and `reasoning_content`, each
only where it says something. A key of `meta` that
would take the place of one that means something there is packed into an object under `meta`. In Parquet the columns
are `id`, `messages`, `type`, and `meta` as JSON text, and `tools`, where there are any, as JSON text too.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deft.data.conversations import has_meaning
from deft.errors import UserError
from deft.files import written_whole
from deft.types import Example, Message, ToolCall

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
    if example.tools:
        row["tools"] = list(example.tools)
    if example.ability is not None:
        row["type"] = example.ability
    packed = {key: value for key, value in example.meta.items() if has_meaning(key)}
    row |= {key: value for key, value in example.meta.items() if not has_meaning(key)}
    return row | {"meta": packed} if packed else row


def message_rows(example: Example) -> list[dict[str, Any]]:
    """Return the messages of an example as `[{"role", "content"}]`, and what else they hold."""
    return [message_row(message) for message in example.messages]


def message_row(message: Message) -> dict[str, Any]:
    """Return a message as the JSON object that is written for it."""
    further = {
        "reasoning_content": message.reasoning,
        "tool_calls": [call_row(call) for call in message.tool_calls],
        "name": message.name,
        "tool_call_id": message.call_id,
    }
    row = {
        "role": message.role,
        "content": message.content,
        **{name: value for name, value in further.items() if value},
    }
    return row | ({"weight": message.weight} if message.weight != 1 else {})


def call_row(call: ToolCall) -> dict[str, Any]:
    """Return a call of a tool as OpenAI writes it."""
    row = {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    return row | ({"id": call.id} if call.id else {})


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

    examples = list(examples)
    has_parts = any(len(row) > 2 for example in examples for row in message_rows(example))
    text = pa.string()
    function = pa.struct([("name", text), ("arguments", text)])
    call = pa.struct([("id", text), ("type", text), ("function", function)])
    parts = [("reasoning_content", text), ("tool_calls", pa.list_(call)), ("name", text), ("tool_call_id", text)]
    message = pa.struct([("role", text), ("content", text), *([*parts, ("weight", pa.float64())] if has_parts else [])])
    columns = [("id", text), ("messages", pa.list_(message)), ("type", text), ("meta", text)]
    columns += [("tools", text)] if any(example.tools for example in examples) else []
    schema = pa.schema(columns)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(examples), PARQUET_BATCH_ROWS):
            rows = [parquet_row(example) for example in examples[start : start + PARQUET_BATCH_ROWS]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return len(examples)


def parquet_row(example: Example) -> dict[str, Any]:
    """Return an example as a row of a Parquet table."""
    return {
        "id": example.id,
        "messages": message_rows(example),
        "type": example.ability,
        "meta": json_text(dict(example.meta), example),
        "tools": json_text(list(example.tools), example) if example.tools else None,
    }


WRITERS = {".jsonl": write_json_lines, ".json": write_json_lines, ".parquet": write_parquet}
