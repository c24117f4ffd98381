"""Valid rows go in; files with one row spoiled at random come out, with what must still hold of them."""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GOOD_QUESTIONS = ("甲是什么？", "乙是什么？")
GOOD_ROWS = tuple(
    json.dumps(
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": "好。"}]}, ensure_ascii=False
    )
    for one in GOOD_QUESTIONS
)
ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, 10**30, "", " ", "\u3000", [], {}, [[]], [{}], [None], {"": ""}, ["文"], {"role": 1},
)  # fmt: skip
ODD_TEXTS = (
    "\0",
    "\x07\x1b[31m",
    "\u202e",
    "\u2028",
    "\x85",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\ufeff",
    "\uffff",
    "e\u0301" * 30,
    "[bold]",
    "[/]",
    "\r",
    "\ud83d",
)
ODD_NUMBERS = ("1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "-0", "1" + "0" * 300, "0.1e-400")
ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xc0\x80",
    b"\xf5\x80\x80\x80",
    b"\n",
    b"\r",
    b"\\",
    b'"',
)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A file: `lines` are the first and last line that an error may name, `kept` the questions of its good rows."""

    mutation: str
    layout: str
    name: str
    content: bytes
    lines: tuple[int, int]
    kept: set[str]


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) inside a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [spot for key, inner in pairs for spot in [(value, key), *spots(inner)]]


def dump(row: Any) -> bytes:
    """Return a row as one line; a lone surrogate becomes an escape, as it may stand in a file."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(row).encode("utf-8")


def flip_bytes(row: Any, chance: random.Random) -> bytes:
    data = bytearray(dump(row))
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def insert_bytes(row: Any, chance: random.Random) -> bytes:
    data = dump(row)
    at = chance.randrange(len(data))
    return data[:at] + chance.choice(ODD_BYTES) + data[at:]


def truncate(row: Any, chance: random.Random) -> bytes:
    data = dump(row)
    return data[: chance.randrange(1, len(data))]


def rename_key(row: Any, chance: random.Random) -> bytes:
    container, key = chance.choice([spot for spot in spots(row) if isinstance(spot[0], dict)])
    names = (key.upper(), key + " ", "", "键", "role", "content", "messages", "id", "type", "meta", "system", "history")
    container[chance.choice(names)] = container.pop(key)
    return dump(row)


def change_type(row: Any, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 2)):
        container, key = chance.choice(spots(row))
        container[key] = copy.deepcopy(chance.choice(ODD_VALUES))  # it may be changed next
        if not spots(row):
            break
    return dump(row)


def nest(row: Any, chance: random.Random) -> bytes:
    container, key = chance.choice(spots(row))
    depth = chance.choice((1, 3, 50, 900, 1100, 30_000))
    opened, closed = chance.choice((("[", "]"), ('{"a":', "}")))
    mark = "<<here>>"
    inner = json.dumps(container[key], ensure_ascii=False)
    container[key] = mark
    return dump(row).replace(f'"{mark}"'.encode(), (opened * depth + inner + closed * depth).encode())


def huge_number(row: Any, chance: random.Random) -> bytes:
    container, key = chance.choice(spots(row))
    container[key] = "<<here>>"
    return dump(row).replace(b'"<<here>>"', chance.choice(ODD_NUMBERS).encode())


def odd_text(row: Any, chance: random.Random) -> bytes:
    texts = [spot for spot in spots(row) if isinstance(spot[0][spot[1]], str)]
    container, key = chance.choice(texts)
    at = chance.randint(0, len(container[key]))
    container[key] = container[key][:at] + chance.choice(ODD_TEXTS) * chance.choice((1, 1, 200)) + container[key][at:]
    return dump(row)


def raw_control(row: Any, chance: random.Random) -> bytes:
    """Put a control character into the JSON itself, where it must stand escaped."""
    data = dump(row)
    at = chance.randrange(len(data))
    return data[:at] + bytes([chance.randrange(32)]) + data[at:]


def drop_or_repeat(row: Any, chance: random.Random) -> bytes:
    container, key = chance.choice(spots(row))
    if isinstance(container, list) and chance.random() < 0.5:
        container.insert(key, container[key])
    else:
        del container[key]
    return dump(row)


def repeat_key(row: Any, chance: random.Random) -> bytes:
    data, key = dump(row), json.dumps(chance.choice(list(row)), ensure_ascii=False)
    value = json.dumps(chance.choice(ODD_VALUES), ensure_ascii=False)
    return data[:-1] + f", {key}: {value}}}".encode()


def break_lines(row: Any, chance: random.Random) -> bytes:
    """Write the row over many lines, whose ends are of every kind."""
    lines = json.dumps(row, ensure_ascii=False, indent=1).split("\n")
    return b"".join(line.encode("utf-8", "replace") + chance.choice((b"\n", b"\r\n", b"\r", b"\n\n")) for line in lines)


MUTATIONS: dict[str, Callable[[Any, random.Random], bytes]] = {
    "bytes flipped": flip_bytes,
    "bytes inserted": insert_bytes,
    "truncated": truncate,
    "key renamed": rename_key,
    "type changed": change_type,
    "nested deeper": nest,
    "huge number": huge_number,
    "odd text": odd_text,
    "control character": raw_control,
    "dropped or repeated": drop_or_repeat,
    "key repeated": repeat_key,
    "lines broken": break_lines,
}


def mutant(chance: random.Random, rows: list[dict[str, Any]]) -> Mutant:
    """Return a file with one mutated row: between good rows, at the start, alone, or in an array."""
    mutation = chance.choice(list(MUTATIONS))
    spoiled = MUTATIONS[mutation](json.loads(json.dumps(chance.choice(rows))), chance)
    layout = chance.choice(("between", "between", "first", "alone", "array"))
    end = chance.choice((b"\n", b"\r\n"))
    before, after = (row.encode("utf-8") for row in GOOD_ROWS)
    if layout == "between":
        content = before + end + spoiled + end + after + end
        return made(mutation, layout, content, (2, 2 + spoiled.count(b"\n")), set(GOOD_QUESTIONS))
    if layout == "array":
        content = b"[" + before + b"," + end + spoiled + b"," + end + after + b"]" + end
        return made(mutation, layout, content, (2, 1 + content.count(b"\n")), set())
    content = spoiled + end + after + end if layout == "first" else spoiled
    return made(mutation, layout, content, (1, 1 + content.count(b"\n")), set())


def made(mutation: str, layout: str, content: bytes, lines: tuple[int, int], kept: set[str]) -> Mutant:
    """Return the mutant; its name says nothing about its layout."""
    return Mutant(mutation=mutation, layout=layout, name="坏.jsonl", content=content, lines=lines, kept=kept)
