"""Every instruction format that deft reads: one row (a JSON object) goes in; messages, ability and meta come out.

A format is recognised by what the row holds, never by the name of its file: `FORMATS`, at the end, lists them in the
order in which they are tried. What a format does not use stays in `meta` under its own name; a row's `id` becomes
`meta["row_id"]`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from deft.data.turns import TOOL_KEYS, ParsedRow, Row, finish, message, no_tool_calls, text, turn, with_system
from deft.errors import UserError

MARKER = re.compile(r"(Human|Assistant)[ \t]*[:：]")
MARKER_AT_LINE_START = re.compile(r"^[ \t]*(Human|Assistant)[ \t]*[:：]", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One format: `matches` looks at keys and shapes only, `parse` raises `UserError` where the content is wrong."""

    name: str
    matches: Callable[[Row], bool]
    parse: Callable[[Row], ParsedRow]


def parse_row(row: object) -> ParsedRow:
    """Parse a row with the first format that matches it.

    Raises:
        UserError: if the row is no JSON object, matches no format, or its content is wrong.
    """
    if not isinstance(row, dict):
        raise UserError("the row is not a JSON object", got=row, fix='a row looks like {"messages": […]}')
    return find_format(row).parse(row)


def find_format(row: Row) -> Format:
    """Return the first format that matches the row.

    Raises:
        UserError: listing the row's keys and the known formats.
    """
    for known in FORMATS:
        if known.matches(row):
            return known
    names = ", ".join(known.name for known in FORMATS)
    keys = ", ".join(row) or "(none)"
    raise UserError("the row is in no known format", got=f"keys {keys}", fix=f"the known formats are {names}")


def parse_turns(row: Row, key: str) -> ParsedRow:
    """Parse a list of turns under `key`, each with `role` and `content`, or with `from` and `value`."""
    for tool_key in TOOL_KEYS:
        if row.get(tool_key) and row[tool_key] != "[]":
            raise no_tool_calls(f"key `{tool_key}`")
    made = []
    for item in row[key]:
        has_from = isinstance(item, dict) and "from" in item
        made.append(turn(item, "from", "value") if has_from else turn(item, "role", "content"))
    messages = with_system(row, [one for one in made if one is not None])
    return finish(row, messages, used=(key, "system"))


def parse_messages(row: Row) -> ParsedRow:
    """Parse DoIT's rows, deft's own and OpenAI's: `messages[{role, content}]`."""
    return parse_turns(row, "messages")


def parse_conversations(row: Row) -> ParsedRow:
    """Parse `conversations[{from, value}]`, as ShareGPT, BELLE and Magpie have it."""
    return parse_turns(row, "conversations")


def parse_swift(row: Row) -> ParsedRow:
    """Parse the `conversation[{human, assistant}]` of Swift, with an optional `system` beside it."""
    messages = []
    for pair in row["conversation"]:
        messages += [message("user", pair.get("human")), message("assistant", pair.get("assistant"))]
    return finish(row, with_system(row, messages), used=("conversation", "system"))


def parse_question(row: Row, prompt: str, reply: str, addition: str | None = None) -> ParsedRow:
    """Parse one question and its reply, with optional `system` text and earlier turns in `history[[q, a]]`.

    The text under `addition` is put on a new line after the text under `prompt`, where both have any.
    """
    messages = []
    history = row.get("history")
    if history is not None and not isinstance(history, list):
        raise UserError("`history` is not a list", got=history, fix='it should read [["question", "reply"], …]')
    for pair in history or []:
        if not isinstance(pair, list) or len(pair) != 2:
            fix = 'it should read ["question", "reply"]'
            raise UserError("an entry of `history` is not a question and a reply", got=pair, fix=fix)
        messages += [message("user", pair[0]), message("assistant", pair[1])]
    parts = [text(row, key) for key in (prompt, addition) if key is not None]
    messages.append(message("user", "\n".join(part for part in parts if part.strip())))
    messages.append(message("assistant", row.get(reply)))
    used = {prompt, reply, "system", "history"} | ({addition} if addition else set())
    return finish(row, with_system(row, messages), used=used)


def parse_alpaca(row: Row) -> ParsedRow:
    """Parse `instruction`, `input`, `output`, as Alpaca, BELLE and COIG-CQIA have them."""
    return parse_question(row, "instruction", "output", addition="input")


def parse_alpaca_zh(row: Row) -> ParsedRow:
    """Parse `instruction_zh`, `input_zh`, `output_zh`; the English original, if it is there, goes to meta."""
    return parse_question(row, "instruction_zh", "output_zh", addition="input_zh")


def parse_firefly(row: Row) -> ParsedRow:
    """Parse Firefly's `input` and `target`; its `kind` goes to meta."""
    return parse_question(row, "input", "target")


def parse_query_response(row: Row) -> ParsedRow:
    """Parse `query` and `response`, with `system` and `history`."""
    return parse_question(row, "query", "response")


def parse_instruction_response(row: Row) -> ParsedRow:
    """Parse `instruction` and `response`, as exports without `conversations` have them."""
    return parse_question(row, "instruction", "response", addition="input")


def parse_belle_turns(row: Row) -> ParsedRow:
    """Parse BELLE's multi-turn rows: `Human:…Assistant:…` inside `instruction`, the last reply in `output`."""
    if text(row, "input").strip():
        raise UserError("a multi-turn instruction has an `input` too", got=row["input"], fix="leave the input empty")
    messages = [message(role, content) for role, content in split_belle(row["instruction"])]
    messages.append(message("assistant", row["output"]))
    return finish(row, with_system(row, messages), used=("instruction", "input", "output", "system"))


def split_belle(instruction: str) -> list[tuple[str, str]]:
    """Split at `Human:` and `Assistant:`, where they begin a line if that gives turns, else wherever they stand.

    The result goes in turns from the first `human` to the last; white space around a turn is layout and left out.

    Raises:
        UserError: if neither reading gives such turns.
    """
    for marker in (MARKER_AT_LINE_START, MARKER):
        _, *parts = marker.split(instruction.strip())
        turns = [(role.lower(), content.strip()) for role, content in zip(parts[::2], parts[1::2], strict=True)]
        if turns[-1] == ("assistant", ""):
            turns.pop()
        elif marker is MARKER_AT_LINE_START and MARKER.search(turns[-1][1]):
            continue
        in_turn = all(role == ("human", "assistant")[n % 2] for n, (role, _) in enumerate(turns))
        if in_turn and len(turns) % 2 == 1 and all(content for _, content in turns):
            return turns
    raise UserError(
        "Human and Assistant do not take turns inside `instruction`",
        got=instruction,
        fix="it should read Human:…Assistant:…Human:…Assistant: with the last reply in `output`",
    )


def has(*keys: str) -> Callable[[Row], bool]:
    """Return a test for rows that have all these keys."""
    return lambda row: all(key in row for key in keys)


def has_list(key: str) -> Callable[[Row], bool]:
    """Return a test for rows with a list under `key`."""
    return lambda row: isinstance(row.get(key), list)


def is_doit(row: Row) -> bool:
    """Say whether a row with `messages` also has a field that DoIT and deft give it."""
    return isinstance(row.get("messages"), list) and not row.keys().isdisjoint({"type", "question_format"})


def is_magpie(row: Row) -> bool:
    """Say whether a row has `conversations` and, beside it, its first turn as `instruction` and `response`."""
    return isinstance(row.get("conversations"), list) and "instruction" in row and "response" in row


def is_belle_conversation(row: Row) -> bool:
    """Say whether every turn of `conversations` is from `human` or `assistant`, as in BELLE's 3.5M set."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return False
    return all(isinstance(item, dict) and item.get("from") in ("human", "assistant") for item in turns)


def is_swift(row: Row) -> bool:
    """Say whether `conversation` is a list of objects with `human` and `assistant`."""
    pairs = row.get("conversation")
    return isinstance(pairs, list) and all(isinstance(pair, dict) and "human" in pair for pair in pairs)


def is_belle_turns(row: Row) -> bool:
    """Say whether `instruction` begins with `Human:` and has an `Assistant:` after it."""
    value = row.get("instruction")
    if "output" not in row or not isinstance(value, str):
        return False
    roles = MARKER.findall(value)
    return bool(MARKER.match(value.lstrip())) and roles[0] == "Human" and "Assistant" in roles


def is_coig_cqia(row: Row) -> bool:
    """Say whether an Alpaca row also has the fields of COIG-CQIA."""
    own = {"task_type", "domain", "answer_from", "human_verified"}
    return "instruction" in row and "output" in row and not row.keys().isdisjoint(own)


FORMATS: tuple[Format, ...] = (
    Format(name="doit", matches=is_doit, parse=parse_messages),
    Format(name="openai_chat", matches=has_list("messages"), parse=parse_messages),
    Format(name="magpie", matches=is_magpie, parse=parse_conversations),
    Format(name="belle_conversations", matches=is_belle_conversation, parse=parse_conversations),
    Format(name="sharegpt", matches=has_list("conversations"), parse=parse_conversations),
    Format(name="swift", matches=is_swift, parse=parse_swift),
    Format(name="query_response", matches=has("query", "response"), parse=parse_query_response),
    Format(name="firefly", matches=has("input", "target"), parse=parse_firefly),
    Format(name="belle_multi_turn", matches=is_belle_turns, parse=parse_belle_turns),
    Format(name="coig_cqia", matches=is_coig_cqia, parse=parse_alpaca),
    Format(name="alpaca_zh", matches=has("instruction_zh", "output_zh"), parse=parse_alpaca_zh),
    Format(name="alpaca", matches=has("instruction", "output"), parse=parse_alpaca),
    Format(name="instruction_response", matches=has("instruction", "response"), parse=parse_instruction_response),
)
"""Tried in this order. Formats that parse alike have entries of their own, so that a report can name the source."""
