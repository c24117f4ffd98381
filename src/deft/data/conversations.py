"""What all formats share: the fields of a row go in, checked messages, ability and meta come out."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from deft.data.fields import NOT_LOSS, check_meanings, is_harmless, is_there, meaning_of, unused_of
from deft.data.names import SYSTEM_KEYS
from deft.errors import UserError
from deft.types import Message, Role, check_conversation, content_id

Row = Mapping[str, Any]

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "系统": "system",
    "用户": "user",
    "助手": "assistant",
}
TOOL_ROLES = frozenset(
    {"tool", "function", "function_call", "function_response", "observation", "ipython", "tool_call", "tool_response"}
)
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


def message(role: Any, content: Any) -> Message:
    """Make a message of a role as any format names it; null content is empty content.

    Raises:
        UserError: for tool roles, unknown roles, empty content, and content that is not text.
    """
    name = role.strip().lower() if isinstance(role, str) else ""
    if name in TOOL_ROLES:
        raise no_tool_calls(f"role {role}")
    if name not in ROLE_NAMES:
        raise UserError("unknown role", got=role, fix=f"roles are {', '.join(ROLE_NAMES)}")
    if not isinstance(content, str | None):
        fix = "put the text in quotes, or leave the row out"
        raise UserError(f"the content of the {ROLE_NAMES[name]} message is not text", got=content, fix=fix)
    if content and "\0" in content:
        raise UserError(f"the {ROLE_NAMES[name]} message holds a NUL character", got=content, fix="take \\u0000 out")
    return Message(role=ROLE_NAMES[name], content=content or "")


def no_tool_calls(got: object) -> UserError:
    """Return the error for rows that hold tool calls."""
    return UserError("tool calls are not trained yet", got=got, fix="leave rows with tools out")


def joined_parts(content: Any) -> Any:
    """Return a list of text parts as one text, with nothing put between them; other content as it is.

    Raises:
        UserError: naming the first part that is not text.
    """
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UserError("a part of the content is not text", got=f"type {kind}", fix="only text parts are trained")
    return "".join(part["text"] for part in content)


def turn(item: Any, role_key: str, content_key: str) -> Message | None:
    """Make a message of one turn, or None of a system turn without text.

    Raises:
        UserError: for tool calls, for a field that changes what the turn means, and for what `message` refuses.
    """
    if not isinstance(item, dict) or role_key not in item:
        raise UserError(f"a turn has no `{role_key}`", got=item, fix=f'a turn looks like {{"{role_key}": "user", …}}')
    if item.get("tool_calls") or item.get("function_call"):
        raise no_tool_calls(item)
    role, content = item[role_key], joined_parts(item.get(content_key))
    if role in ("system", "developer", "系统") and (
        content is None or (isinstance(content, str) and not content.strip())
    ):
        return None
    made = message(role, content)
    if len(item) > 2:
        rest = turn_rest(item, role_key, content_key)
        check_meanings(rest if made.role == "assistant" else {n: v for n, v in rest.items() if not is_loss_flag(n)})
    return made


def is_loss_flag(name: str) -> bool:
    """Say whether a field decides on loss, and so means nothing in a message that is no reply: it is never trained."""
    meaning = meaning_of(name)
    return meaning is not None and meaning.what == NOT_LOSS


def turn_rest(item: Row, *used: str) -> dict[str, Any]:
    """Return the fields of a turn that are not used."""
    return {name: value for name, value in item.items() if name not in used}


def gather_rest(rest: dict[str, Any], path: str, fields: Row) -> None:
    """Keep in `rest`, under `path[].NAME`, the unused fields of a turn that say anything; the first text stays.

    A name says who speaks, and so is no more harmless than the text.
    """
    for name, value in fields.items():
        if is_there(value) and (name == "name" or not is_harmless(name, value)):
            rest.setdefault(f"{path}[].{name}", value)


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
    messages: list[Message],
    used: Collection[str],
    *,
    known: Collection[str] = (),
    turns: Row | None = None,
    mapping: str = "system={}",
) -> ParsedRow:
    """Check the conversation, and sort the keys that are not `used` into ability and meta.

    `known` are fields that the format has beside the conversation; `turns` holds those of single turns.

    Raises:
        UserError: if the messages are no conversation that ends with a reply, the ability is not text, or a field
            changes what the row means.
    """
    used = {*used, *SYSTEM_KEYS}
    rest = {key: value for key, value in row.items() if key not in used}
    check_meanings(rest)  # a pair may end with the question, and lack nothing else
    check_conversation(messages, ends_with="assistant")
    packed = packed_meta(rest) if "messages" in used else None
    if packed is not None:
        del rest["meta"]
    ability = take_ability(rest)
    row_id = rest.pop("id", None)
    is_ours = isinstance(row_id, str) and OWN_ID.fullmatch(row_id) is not None and row_id == content_id(messages)
    if row_id is not None and not is_ours:
        rest["id" if "row_id" in rest else "row_id"] = row_id
    contents = [message.content for message in messages]
    doubted = ("source",) if "target" in used and "input" not in row else ()  # a translation has a source and a target
    unused = {} if is_ours and "messages" in used else unused_of(rest, contents, known, doubted)
    return ParsedRow(
        messages=tuple(messages),
        ability=ability,
        meta=rest | (packed or {}),
        unused=unused | unused_of(turns or {}, contents) if turns else unused,
        mapping=mapping,
    )


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
