"""Every instruction format that deft reads: one row (a JSON object) goes in; messages, ability and meta come out.

A format is recognised by what the row holds, never by the name of its file: `FORMATS`, at the end, lists them in the
order in which they are tried. What a format does not use stays in `meta` under its own name; a row's `id` becomes
`meta["row_id"]`.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from deft.data.conversations import ParsedRow, finish, text
from deft.data.fields import check_meanings
from deft.data.names import INSTRUCTION, MATERIAL, REASONING_FIELDS, REPLIES, advice_for, known_names, renamed
from deft.data.tools import TOOL_FIELDS, tools_from
from deft.data.turns import CALL_FIELDS, Row, gather_rest, message, reply_parts, turn, turn_rest
from deft.errors import UserError
from deft.types import Message

MARKER = re.compile(r"(Human|Assistant)[ \t]*[:：]")
MARKER_AT_LINE_START = re.compile(r"^[ \t]*(Human|Assistant)[ \t]*[:：]", re.MULTILINE)
DOIT_FIELDS = ("question_format", "choices", "answer")
COIG_FIELDS = ("task_type", "domain", "answer_from", "human_verified", "copyright")
MAGPIE_FIELDS = (
    *("gen_input_configs", "intent", "knowledge", "quality_explanation", "llama_guard_2", "other_task_category"),
    *("task_category_generator", "difficulty_generator", "quality_generator"),
)
TURN_PARTS = (*REASONING_FIELDS, *CALL_FIELDS, *TOOL_FIELDS, "tool_call_id")
"""What a turn may have beside its role and content that becomes a part of its message."""
TURN_FIELDS = ("title",)
"""What these formats have beside the conversation: nothing that the model should see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One format: `matches` looks at keys and shapes only, `parse` raises `UserError` where the content is wrong.

    `keys` are those it needs, for the error that names the nearest format.
    """

    name: str
    matches: Callable[[Row], bool]
    parse: Callable[[Row], ParsedRow]
    keys: tuple[str, ...]


def parse_row(row: object) -> ParsedRow:
    """Parse a row with the first format that matches it.

    Raises:
        UserError: if the row is no JSON object, matches no format, or its content is wrong.
    """
    return find_format(row).parse(row)  # type: ignore[arg-type]  # an object, or there is no format


def find_format(row: object) -> Format:
    """Return the first format that matches the row.

    Raises:
        UserError: if it is no JSON object; or listing its keys, the format nearest to them, and the flag that says
            which column is what.
    """
    if not isinstance(row, dict):
        raise UserError("the row is not a JSON object", got=row, fix='a row looks like {"messages": […]}')
    if known := matching(row):
        return known
    check_meanings(row)
    fix = advice_for(row, {known.name: known.keys for known in FORMATS})
    raise UserError("the row is not in any known format", got=f"keys {', '.join(row) or '(none)'}", fix=fix)


def matching(row: Row) -> Format | None:
    """Return the first format that matches the row, or None."""
    return next((known for known in FORMATS if known.matches(row)), None)


def recognised(row: object) -> tuple[Format, dict[str, str]]:
    """Return the format of a row, and the fields to be renamed for it (`known_names`), if it needs that.

    Raises:
        UserError: as `find_format` does.
    """
    known = matching(row) if isinstance(row, dict) else None
    if known is None and isinstance(row, dict) and (named := known_names(row)):
        known = matching(renamed(row, named))
        if known is not None:
            return known, named
    return known or find_format(row), {}


def parse_turns(row: Row, key: str) -> ParsedRow:
    """Parse a list of turns under `key`: objects with a role and a text, or only texts, the first of them the user's.

    The role stands under `role` or `from`, the text under `content` or `value`.
    """
    said: list[list[Message]] = []
    rest: dict[str, Any] = {}
    tools: list[list[dict[str, Any]]] = []
    for place, item in enumerate(row[key]):
        if isinstance(item, str):
            said.append([message("assistant" if place % 2 else "user", item)])
            continue
        names = ("role", "content")
        if isinstance(item, dict) and ("from" in item or "value" in item):
            names = ("from" if "from" in item else "role", "value" if "value" in item else "content")
        said.append(turn(item, *names))
        if len(item) > 2:
            used = (*TURN_PARTS, "name") if said[-1] and said[-1][0].role == "tool" else TURN_PARTS
            gather_rest(rest, key, turn_rest(item, *names, *used))
            tools += [tools_from(name, item[name]) for name in TOOL_FIELDS if name in item]
    known = DOIT_FIELDS if is_doit(row) else MAGPIE_FIELDS if is_magpie(row) else TURN_FIELDS
    return finish(row, said, used=(key,), known=known, turns=rest, tools=tools)


def parse_messages(row: Row) -> ParsedRow:
    """Parse DoIT's rows, deft's own and OpenAI's: `messages[{role, content}]`."""
    return parse_turns(row, "messages")


def parse_conversations(row: Row) -> ParsedRow:
    """Parse `conversations[{from, value}]`, as ShareGPT, BELLE and Magpie have it."""
    return parse_turns(row, "conversations")


def parse_conversation(row: Row) -> ParsedRow:
    """Parse `conversation[{role, content}]`, as logs of chats have it."""
    return parse_turns(row, "conversation")


def parse_swift(row: Row) -> ParsedRow:
    """Parse the `conversation[{human, assistant}]` of Swift, with an optional `system` beside it."""
    said: list[list[Message]] = []
    rest: dict[str, Any] = {}
    for pair in row["conversation"]:
        others = turn_rest(pair, "human", "assistant")
        reply = message("assistant", pair.get("assistant"), **reply_parts(others))
        said += [[message("user", pair.get("human"))], [reply]]
        gather_rest(rest, "conversation", turn_rest(others, *TURN_PARTS))
    return finish(row, said, used=("conversation",), turns=rest)


def parse_question(row: Row, prompt: Sequence[str], replies: Sequence[str], known: Collection[str] = ()) -> ParsedRow:
    """Parse one question and its reply, with optional system text and earlier turns in `history[[q, a]]`.

    The texts under `prompt` become one, line after line in their order, what is said twice only once. The reply stands
    under the first of `replies` that is there.
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
    asked = [key for key in prompt if key in row]
    messages.append(
        message("user", "\n".join(dict.fromkeys(part for part in (text(row, key) for key in asked) if part.strip())))
    )
    reply = next(key for key in replies if key in row)
    messages.append(message("assistant", row[reply]))
    mapping = f"prompt={'+'.join([*asked, '{}'])},response={reply}"
    said = [[one] for one in messages]
    return finish(row, said, used={*prompt, reply, "history"}, known=known, mapping=mapping)


def question(*prompt: str, reply: Sequence[str] = REPLIES, known: Collection[str] = ()) -> Callable[[Row], ParsedRow]:
    """Return the parser of rows with one question, out of the texts under `prompt`, and its reply."""
    return lambda row: parse_question(row, prompt, reply, known)


def parse_prompt_completion(row: Row) -> ParsedRow:
    """Parse `prompt` and a reply, both texts, or both lists of messages as TRL has them."""
    reply = next(key for key in PROMPT_REPLIES if key in row)
    if not isinstance(row["prompt"], list):
        return parse_question(row, ("prompt",), (reply,))
    if not isinstance(row[reply], list):
        raise UserError(f"`prompt` is a list and `{reply}` is not", got=row[reply], fix="make both texts or both lists")
    rest = {name: value for name, value in row.items() if name not in ("prompt", reply)}
    return parse_turns(rest | {"messages": row["prompt"] + row[reply]}, "messages")


PROMPT_REPLIES = ("completion", "response", "output", "answer", "target")


def parse_belle_turns(row: Row) -> ParsedRow:
    """Parse BELLE's multi-turn rows: `Human:…Assistant:…` inside `instruction`, the last reply in `output`."""
    if text(row, "input").strip():
        raise UserError("a multi-turn instruction has an `input` too", got=row["input"], fix="leave the input empty")
    messages = [message(role, content) for role, content in split_belle(row["instruction"])]
    messages.append(message("assistant", row["output"]))
    return finish(row, [[one] for one in messages], used=("instruction", "input", "output"))


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
    wanted = frozenset(keys)
    return lambda row: wanted <= row.keys()


def has_reply(*keys: str) -> Callable[[Row], bool]:
    """Return a test for rows that have all these keys and some reply."""
    wanted = frozenset(keys)
    return lambda row: wanted <= row.keys() and not row.keys().isdisjoint(REPLIES)


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
    Format(name="doit", matches=is_doit, parse=parse_messages, keys=("messages", "type")),
    Format(name="openai_chat", matches=has_list("messages"), parse=parse_messages, keys=("messages",)),
    Format(
        name="magpie",
        matches=is_magpie,
        parse=parse_conversations,
        keys=("conversations", "instruction", "response"),
    ),
    Format(
        name="belle_conversations",
        matches=is_belle_conversation,
        parse=parse_conversations,
        keys=("conversations",),
    ),
    Format(name="sharegpt", matches=has_list("conversations"), parse=parse_conversations, keys=("conversations",)),
    Format(name="swift", matches=is_swift, parse=parse_swift, keys=("conversation",)),
    Format(
        name="conversation",
        matches=has_list("conversation"),
        parse=parse_conversation,
        keys=("conversation",),
    ),
    Format(
        name="query_response",
        matches=has("query", "response"),
        parse=question("instruction", *MATERIAL, "input", "query", reply=("response",)),
        keys=("query", "response"),
    ),
    Format(
        name="firefly",
        matches=has("input", "target"),
        parse=question("instruction", *MATERIAL, "input", reply=("target",)),
        keys=("input", "target"),
    ),
    Format(
        name="belle_multi_turn",
        matches=is_belle_turns,
        parse=parse_belle_turns,
        keys=("Human:…Assistant:… in `instruction`", "output"),
    ),
    Format(
        name="coig_cqia",
        matches=is_coig_cqia,
        parse=question(*INSTRUCTION, reply=("output",), known=COIG_FIELDS),
        keys=("instruction", "output", "task_type"),
    ),
    Format(
        name="alpaca_zh",
        matches=has("instruction_zh", "output_zh"),
        parse=question("instruction_zh", "input_zh", reply=("output_zh",), known=("instruction", "input", "output")),
        keys=("instruction_zh", "output_zh"),
    ),
    Format(
        name="alpaca",
        matches=has("instruction", "output"),
        parse=question(*INSTRUCTION, reply=("output",)),
        keys=("instruction", "output"),
    ),
    Format(
        name="dolly",
        matches=has("instruction", "context", "response"),
        parse=question(*INSTRUCTION, reply=("response",)),
        keys=("instruction", "context", "response"),
    ),
    Format(
        name="instruction_response",
        matches=has_reply("instruction"),
        parse=question(*INSTRUCTION),
        keys=("instruction", "response"),
    ),
    Format(
        name="prompt_completion",
        matches=has_reply("prompt"),
        parse=parse_prompt_completion,
        keys=("prompt", "completion"),
    ),
    Format(
        name="question_answer",
        matches=has_reply("question"),
        parse=question(*MATERIAL, "input", "question", reply=("answer", *REPLIES)),
        keys=("question", "answer"),
    ),
    Format(
        name="query_answer",
        matches=has_reply("query"),
        parse=question(*MATERIAL, "input", "query", reply=("answer", *REPLIES)),
        keys=("query", "answer"),
    ),
    Format(
        name="input_output",
        matches=has_reply("input"),
        parse=question(*MATERIAL, "input"),
        keys=("input", "output"),
    ),
)
"""Tried in this order. Formats that parse alike have entries of their own, so that a report can name the source."""
