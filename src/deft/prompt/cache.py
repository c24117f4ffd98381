"""Encoded rows on disk, so that a second run on the same data begins at once.

In: examples, a chat format, a tokenizer, a limit. Out: what `encode_examples` returns. Rows are found by a fingerprint
of all that decides them: the examples' contents, the tokenizer, the chat format and the limit. Names of files or
models do not count, so nothing stale is ever found.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from deft.errors import UserError
from deft.files import cache_folder, written_whole
from deft.fingerprint import fingerprint
from deft.prompt.encode import EncodeResult, encode_examples
from deft.prompt.formats.kinds import ChatFormat, TrainReasoning
from deft.prompt.store import probe
from deft.types import Dropped, Example, TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2
"""Raised when encoding changes, so that rows encoded by an earlier version are not taken."""
FEWEST_ROWS = 2_000
"""Fewer rows are encoded in a second or two and are not kept."""
LARGEST_CACHE_BYTES = 4_000_000_000


def encode_once(
    examples: Sequence[Example],
    chat_format: ChatFormat,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length_tokens: int,
    train_reasoning: TrainReasoning = "last",
) -> EncodeResult:
    """Return the encoded examples from the cache, or encode them and keep them; a cache that cannot be used is none."""
    folder = cache_folder("rows")
    if folder is None or len(examples) < FEWEST_ROWS:
        return encode_examples(
            examples, chat_format, max_length_tokens=max_length_tokens, train_reasoning=train_reasoning
        )
    how = [FORMAT, max_length_tokens, train_reasoning, chat_format.to_dict(), probe(chat_format)]
    key = rows_key(examples, tokenizer, how)
    file = folder / f"{key}.npz"
    with suppress(OSError, EOFError, ValueError, KeyError, BadZipFile):  # absent or damaged
        found = read_rows(file, examples)
        os.utime(file)
        return found
    encoded = encode_examples(
        examples, chat_format, max_length_tokens=max_length_tokens, train_reasoning=train_reasoning
    )
    with suppress(OSError, UserError):  # a full disk, or a home that cannot be written
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(file, encoded)
        remove_oldest(folder)
    return encoded


def keeps_rows() -> bool:
    """Say whether encoded rows are kept on this machine, so that another process finds them."""
    return cache_folder("rows") is not None


def rows_key(examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", how: Sequence[Any]) -> str:
    """Return the fingerprint of everything that decides how the examples are encoded; `how` are the settings."""
    described = json.dumps(how, sort_keys=True)
    contents = (part for row in examples for one in row.messages for part in (one.role, one.content, ""))
    ids = (row.id for row in examples)  # which stand for reasoning, calls, weights and tools as well
    return fingerprint([described, *tokenizer_files(tokenizer), *ids, *contents])


def tokenizer_files(tokenizer: "PreTrainedTokenizerBase") -> list[bytes]:
    """Return the files that a tokenizer is saved as: all that it is, whichever kind it is of."""
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        return [file.read_bytes() for file in sorted(Path(name).iterdir()) if file.is_file()]


def write_rows(file: Path, encoded: EncodeResult) -> None:
    """Write encoded rows: their tokens end to end, for each sequence the place of its example, weights if any."""
    rows = encoded.sequences
    empty, no_weights = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    with written_whole(file) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            places=np.array(encoded.places, dtype=np.int64),
            lengths=np.array([len(row) for row in rows], dtype=np.int64),
            input_ids=np.concatenate([row.input_ids for row in rows] or [empty]),
            labels=np.concatenate([row.labels for row in rows] or [empty]),
            weighted=np.array([number for number, row in enumerate(rows) if row.weights is not None], dtype=np.int64),
            weights=np.concatenate([row.weights for row in rows if row.weights is not None] or [no_weights]),
            num_shortened=np.int64(encoded.num_shortened),
            dropped=np.frombuffer(json.dumps([asdict(row) for row in encoded.dropped]).encode(), dtype=np.uint8),
        )


def read_rows(file: Path, examples: Sequence[Example]) -> EncodeResult:
    """Read encoded rows; ids, abilities and sources are those of the examples at hand.

    Raises:
        OSError, EOFError, ValueError, KeyError, BadZipFile: if the file is absent or damaged.
    """
    with np.load(file, allow_pickle=False) as stored:
        ends = np.cumsum(stored["lengths"])[:-1]
        input_ids, labels = np.split(stored["input_ids"], ends), np.split(stored["labels"], ends)
        places = stored["places"].tolist()
        num_shortened = int(stored["num_shortened"])
        weights: list[NDArray[np.float32] | None] = [None] * len(places)
        start = 0
        for number in stored["weighted"].tolist():
            end = start + int(stored["lengths"][number])
            weights[number] = stored["weights"][start:end].astype(np.float32)
            start = end
        dropped = json.loads(stored["dropped"].tobytes())
    first_of = dict(zip(reversed(places), range(len(places) - 1, -1, -1), strict=True))
    source_of = {row.id: row.source for row in examples}
    return EncodeResult(
        sequences=tuple(
            TokenSequence(
                id=examples[place].id,
                input_ids=input_ids[number],
                labels=labels[number],
                ability=examples[place].ability,
                weights=weights[number],
                part=number - first_of[place],
            )
            for number, place in enumerate(places)
        ),
        places=tuple(places),
        dropped=tuple(Dropped(**(row | {"source": source_of[row["id"]]})) for row in dropped),
        num_shortened=num_shortened,
    )


def remove_oldest(folder: Path) -> None:
    """Delete the files that were used longest ago, until the rest is no larger than `LARGEST_CACHE_BYTES`."""
    files = sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > LARGEST_CACHE_BYTES:
            file.unlink(missing_ok=True)
