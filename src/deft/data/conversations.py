"""What all formats share: the fields of a row go in, checked messages, ability and meta come out."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deft.data.fields import check_meanings, is_flag, is_there, meaning_of, unused_of
from deft.data.loss_weights import is_loss_weight, is_row_measurement, weights_beside
from deft.data.names import REASONING_FIELDS, SYSTEM_KEYS
from deft.data.tools import TOOL_FIELDS, calls_in_text, tools_from, tools_in_system, united
from deft.data.turns import Row, joined_calls, message, one_reasoning
from deft.errors import UserError
from deft.types import Message, Role, check_conversation, content_id

TOOL_PROMPT = "tool_prompt"
"""Where `meta` keeps what a system text said about writing calls, which the chat template says in its own words."""
CHAT_KEYS = frozenset({"id", "messages", "type", "ability", "meta", *SYSTEM_KEYS})


def has_meaning(key: str) -> bool:
    """Say whether a key means something in a row with `messages`; `write_examples` packs such keys of `meta` away."""
    return key in CHAT_KEYS or meaning_of(key) is not None


OWN_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRow:
    """What a format makes of one row: a conversation that ends with a reply, its ability, and all the rest.

    `unused` is the part of the rest that a user should hear of (`fields.unused_of`), and `mapping` what `--fields`
    would say to use it: the columns as they are read, with {} in the place of the unused one.
    """

    messages: tuple[Message, ...]
    ability: str | None
    meta: dict[str, Any]
    tools: tuple[Mapping[str, Any], ...] = ()
    unused: dict[str, Any] = field(default_factory=dict)
    mapping: str = "system={}"


def text(row: Row, key: str) -> str:
    """Return the text under `key`; null and absent are empty.

    Raises:
        UserError: if it is something else.
    """
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"`{key}` is not text", got=value, fix="put the text in quotes, or leave the row out")
    return value or ""


def weighted(said: Sequence[Sequence[Message]], row: Row) -> list[Message]:
    """Return the messages of all turns, with the loss weights that fields beside the row give them.

    Raises:
        UserError: as `weights_beside` does.
    """
    messages = [message for turn in said for message in turn]
    if not any(map(is_loss_weight, row)):
        return messages
    roles: list[Role] = [turn[0].role if turn else "system" for turn in said]
    return [
        replace(message, weight=message.weight * weight) if message.role == "assistant" else message
        for turn, weight in zip(said, weights_beside(row, roles), strict=True)
        for message in turn
    ]


def with_system(row: Row, messages: list[Message]) -> list[Message]:
    """Put the row's own system text, if it has any, before the messages.

    Raises:
        UserError: if the row has another system text as well.
    """
    for key in SYSTEM_KEYS:
        if not text(row, key).strip():
            continue
        system = message("system", row[key])
        if not messages or messages[0].role != "system":
            messages = [system, *messages]
        elif messages[0] != system:
            raise UserError("the row has two system messages", got=system.content, fix="keep one of them")
    return messages


def finish(
    row: Row,
    said: Sequence[Sequence[Message]],
    used: Collection[str],
    *,
    known: Collection[str] = (),
    turns: Row | None = None,
    tools: Sequence[Sequence[dict[str, Any]]] = (),
    mapping: str = "system={}",
) -> ParsedRow:
    """Put the conversation together and check it, and sort the keys that are not `used` into ability and meta.

    `said` has the messages of each turn that the row lists. `known` are fields that the format has beside the
    conversation; `turns` holds those of single turns, and `tools` what those define.

    Raises:
        UserError: if the messages are no conversation that ends with a reply, the ability is not text, or a field
            changes what the row means.
    """
    used = {*used, *SYSTEM_KEYS}
    rest = {key: value for key, value in row.items() if key not in used}
    beside = [tools_from(name, rest.pop(name)) for name in TOOL_FIELDS if name in rest]
    messages, defined, tool_prompt = without_definitions(with_system(row, weighted(said, rest)))
    all_tools = united([*beside, *tools, defined])
    if all_tools or any(message.role == "tool" for message in messages):  # else it only speaks of `<tool_call>`
        messages = [with_calls_of_text(message) for message in messages]
    messages = with_reasoning(joined_calls(messages), rest)
    rest = {name: value for name, value in rest.items() if not is_loss_weight(name) or is_row_measurement(name, value)}
    check_meanings(rest)  # a pair may end with the question, and lack nothing else
    check_conversation(messages, ends_with="assistant")
    packed = packed_meta(rest) if "messages" in used else None
    if packed is not None:
        del rest["meta"]
    ability = take_ability(rest)
    row_id = rest.pop("id", None)
    is_ours = (
        isinstance(row_id, str) and OWN_ID.fullmatch(row_id) is not None and row_id == content_id(messages, all_tools)
    )
    if row_id is not None and not is_ours:
        rest["id" if "row_id" in rest else "row_id"] = row_id
    contents = [message.content for message in messages]
    doubted = ("source",) if "target" in used and "input" not in row else ()  # a translation has a source and a target
    unused = {} if is_ours and "messages" in used else unused_of(rest, contents, known, doubted)
    return ParsedRow(
        messages=tuple(messages),
        ability=ability,
        meta=rest | (packed or {}) | ({TOOL_PROMPT: tool_prompt} if tool_prompt else {}),
        tools=tuple(all_tools),
        unused=unused | unused_of(turns or {}, contents) if turns else unused,
        mapping=mapping,
    )


def without_definitions(messages: Sequence[Message]) -> tuple[list[Message], list[dict[str, Any]], str]:
    """Return messages without the tools that the system text defines as Hermes does, these, and what else it lost."""
    if not messages or messages[0].role != "system" or "<tools>" not in messages[0].content:
        return list(messages), [], ""
    content, defined, tool_prompt = tools_in_system(messages[0].content)
    system = [replace(messages[0], content=content)] if content else []
    return [*system, *messages[1:]], defined, tool_prompt


def with_calls_of_text(message: Message) -> Message:
    """Return a reply with the calls that stand in its text as Hermes writes them; other messages as they are."""
    if message.role != "assistant" or "<tool_call>" not in message.content:
        return message
    content, calls = calls_in_text(message.content)
    return replace(message, content=content, tool_calls=message.tool_calls + calls)


def with_reasoning(messages: Sequence[Message], rest: dict[str, Any]) -> list[Message]:
    """Put reasoning that stands beside the row before its one reply, and take it out of `rest`.

    Raises:
        UserError: if the row has several replies, so that it cannot be told whose it is.
    """
    fields = {name: rest.pop(name) for name in REASONING_FIELDS if name in rest and not is_flag(rest[name])}
    if not any(map(is_there, fields.values())):
        return list(messages)
    replies = [place for place, one in enumerate(messages) if one.role == "assistant"]
    if len(replies) != 1:
        what = "reasoning stands beside a row with several replies, and does not say whose it is"
        raise UserError(
            what, got=next(filter(is_there, fields.values())), fix="write it into the message: reasoning_content"
        )
    [place] = replies
    reasoning = one_reasoning(fields, messages[place].reasoning)
    return [*messages[:place], replace(messages[place], reasoning=reasoning), *messages[place + 1 :]]


def packed_meta(rest: Row) -> dict[str, Any] | None:
    """Return the `meta` object (or its JSON text) that `write_examples` packed into a row, or None.

    A row is taken for deft's own where its id has the form that deft gives and no key stands both inside and outside.
    """
    row_id, value = rest.get("id"), rest.get("meta")
    if not (isinstance(row_id, str) and OWN_ID.fullmatch(row_id)):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, dict) or not all(map(has_meaning, value.keys() & rest.keys())):
        return None
    return value


def take_ability(rest: dict[str, Any]) -> str | None:
    """Remove and return the ability, from `type` or else `ability`; no other field names one.

    Raises:
        UserError: if the ability is not text.
    """
    for key in ("type", "ability"):
        value = rest.get(key)
        if value is not None and not isinstance(value, str):
            raise UserError(f"the ability (`{key}`) is not text", got=value, fix="name it, or take the field out")
        rest.pop(key, None)
        if value and value.strip():
            return value
    return None
