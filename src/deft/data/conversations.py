"""What all formats share: the fields of a row go in, checked messages, ability and meta come out."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deft.data.fields import check_meanings, is_harmless, is_there, meaning_of, unused_of
from deft.data.loss_weights import is_loss_weight, is_measurement, weight_in, with_weights
from deft.data.names import SYSTEM_KEYS
from deft.data.tools import (
    CALL_ROLES,
    RESULT_ROLES,
    TOOL_FIELDS,
    calls_from,
    calls_in_text,
    result_text,
    results_in_text,
    tools_from,
    tools_in_system,
)
from deft.errors import UserError
from deft.types import Message, Role, check_conversation, content_id, split_reasoning

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
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""What stands before a reply, as its reasoning."""
CALL_FIELDS = ("tool_calls", "function_call")
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


def message(role: Any, content: Any, **parts: Any) -> Message:
    """Make a message of a role as any format names it; null content is empty content.

    `parts` are further fields of the message. Thinking at the head of a reply's content is its reasoning.

    Raises:
        UserError: for unknown roles, empty content, content that is not text, and two different reasonings.
    """
    name = role.strip().lower() if isinstance(role, str) else ""
    if name in RESULT_ROLES:
        return Message(role="tool", content=checked(content, "tool") or "", **parts)
    if name not in ROLE_NAMES:
        raise UserError("unknown role", got=role, fix=f"roles are {', '.join(ROLE_NAMES)}")
    content = checked(content, ROLE_NAMES[name]) or ""
    if ROLE_NAMES[name] == "assistant" and "<think>" in content:
        inside, content = split_reasoning(content)
        parts["reasoning"] = one_reasoning([parts.get("reasoning", ""), inside])
    return Message(role=ROLE_NAMES[name], content=content, **parts)


def checked(content: Any, role: Role) -> str | None:
    """Return the content of a message, which is text.

    Raises:
        UserError: if it is not, or holds a NUL character.
    """
    if not isinstance(content, str | None):
        fix = "put the text in quotes, or leave the row out"
        raise UserError(f"the content of the {role} message is not text", got=content, fix=fix)
    if content and "\0" in content:
        raise UserError(f"the {role} message holds a NUL character", got=content, fix="take \\u0000 out")
    return content


def one_reasoning(texts: Iterable[Any]) -> str:
    """Return the one reasoning that several fields give, white space around it removed.

    Raises:
        UserError: if they differ, or one is not text.
    """
    found = [checked(joined_parts(text), "assistant") or "" for text in texts]
    different = list(dict.fromkeys(text.strip() for text in found if text.strip()))
    if len(different) > 1:
        raise UserError("a reply has two different reasonings", got=different[1], fix="keep one of them")
    return different[0] if different else ""


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


def turn(item: Any, role_key: str, content_key: str) -> list[Message]:
    """Make the messages of one turn: none of a system turn without text, several where it holds several results.

    Raises:
        UserError: for a field that changes what the turn means, and for what `message` refuses.
    """
    if not isinstance(item, dict) or role_key not in item:
        raise UserError(f"a turn has no `{role_key}`", got=item, fix=f'a turn looks like {{"{role_key}": "user", …}}')
    role = item[role_key].strip().lower() if isinstance(item[role_key], str) else ""
    rest = turn_rest(item, role_key, content_key)
    if role in CALL_ROLES:
        parts = reply_parts(rest)
        return [message("assistant", "", **{**parts, "tool_calls": calls_from(item.get(content_key))})]
    if role in RESULT_ROLES:
        used = ("name", "tool_call_id")
        check_meanings({name: value for name, value in rest.items() if not is_loss_weight(name) and name not in used})
        parts = {"name": rest.get("name") or "", "call_id": rest.get("tool_call_id") or ""}
        content = joined_parts(result_text(item.get(content_key)))
        return [message("tool", one, **parts) for one in results_in_text(content)]
    content = item.get(content_key)
    if ROLE_NAMES.get(role) == "assistant":
        content, thoughts = without_thoughts(content)
        return [message(role, joined_parts(content), **reply_parts(rest, thoughts))]
    content = joined_parts(content)
    check_meanings({name: value for name, value in rest.items() if not (is_loss_weight(name) or name in TOOL_FIELDS)})
    is_empty = content is None or (isinstance(content, str) and not content.strip())
    return [] if ROLE_NAMES.get(role) == "system" and is_empty else [message(item[role_key], content)]


def reply_parts(rest: Row, thoughts: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the fields of a reply give beside its content: reasoning, calls of tools, a loss weight.

    Raises:
        UserError: for a field that changes what the reply means, or one that is wrong.
    """
    if not rest and not thoughts:
        return {}
    used = {*REASONING_FIELDS, *CALL_FIELDS}
    check_meanings({name: value for name, value in rest.items() if name not in used and not is_loss_weight(name)})
    called = [rest[name] for name in CALL_FIELDS if is_there(rest.get(name))]
    weight = weight_in(rest, of_message=True)
    return {
        "reasoning": one_reasoning([*(rest.get(name) for name in REASONING_FIELDS), "\n".join(thoughts)]),
        "tool_calls": tuple(call for value in called for call in calls_from(value)),
        "weight": 1.0 if weight is None else weight,
    }


def without_thoughts(content: Any) -> tuple[Any, list[str]]:
    """Return content in parts without those that are reasoning, and these."""
    if not isinstance(content, list):
        return content, []
    kinds = ("thinking", "reasoning")
    thoughts = [part for part in content if isinstance(part, dict) and part.get("type") in kinds]
    texts = [part.get("thinking") or part.get("reasoning") or part.get("text") for part in thoughts]
    return [part for part in content if part not in thoughts], [text for text in texts if isinstance(text, str)]


def joined_calls(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with calls joined to the text, or to the calls, that the assistant wrote just before them.

    Raises:
        UserError: if the two have different loss weights.
    """
    found: list[Message] = []
    for one in messages:
        before = found[-1] if found else None
        if before is None or before.role != "assistant" or not one.tool_calls:
            found.append(one)
            continue
        if before.weight != one.weight:
            what = "a reply and the calls that belong to it have different loss weights"
            raise UserError(what, got=f"{before.weight:g} and {one.weight:g}", fix="give them the same weight")
        found[-1] = replace(
            before,
            content="\n".join(text for text in (before.content, one.content) if text.strip()),
            reasoning="\n".join(text for text in (before.reasoning, one.reasoning) if text),
            tool_calls=before.tool_calls + one.tool_calls,
        )
    return found


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
    tools = [tool for name in TOOL_FIELDS for tool in tools_from(name, rest.pop(name, None))]
    messages, tools = with_hermes(messages, tools)
    messages = with_reasoning(joined_calls(messages), rest)
    messages = with_weights(messages, rest)
    rest = {name: value for name, value in rest.items() if not decides(name, value)}
    check_meanings(rest)  # a pair may end with the question, and lack nothing else
    check_conversation(messages, ends_with="assistant")
    packed = packed_meta(rest) if "messages" in used else None
    if packed is not None:
        del rest["meta"]
    ability = take_ability(rest)
    row_id = rest.pop("id", None)
    is_ours = isinstance(row_id, str) and OWN_ID.fullmatch(row_id) is not None and row_id == content_id(messages, tools)
    if row_id is not None and not is_ours:
        rest["id" if "row_id" in rest else "row_id"] = row_id
    contents = [message.content for message in messages]
    doubted = ("source",) if "target" in used and "input" not in row else ()  # a translation has a source and a target
    unused = {} if is_ours and "messages" in used else unused_of(rest, contents, known, doubted)
    return ParsedRow(
        messages=tuple(messages),
        ability=ability,
        meta=rest | (packed or {}),
        tools=tuple(tools),
        unused=unused | unused_of(turns or {}, contents) if turns else unused,
        mapping=mapping,
    )


def decides(name: str, value: Any) -> bool:
    """Say whether a field beside a row has been used for its loss."""
    return is_loss_weight(name) and not is_measurement(name, value, of_message=False)


def with_hermes(messages: Sequence[Message], tools: list[dict[str, Any]]) -> tuple[list[Message], list[dict[str, Any]]]:
    """Return messages whose tools and calls stood in the texts, as Hermes writes them, and all tools of the row."""
    found: list[Message] = []
    defined: list[dict[str, Any]] = []
    for one in messages:
        if one.role == "system" and "<tools>" in one.content:
            content, defined = tools_in_system(one.content)
            found += [replace(one, content=content)] if content else []
            continue
        found.append(one)
    tools = tools + [tool for tool in defined if tool not in tools]
    if not tools and not any(one.role == "tool" for one in messages):
        return found, tools  # a text that speaks of `<tool_call>`
    for place, one in enumerate(found):
        if one.role == "assistant" and "<tool_call>" in one.content:
            content, calls = calls_in_text(one.content)
            found[place] = replace(one, content=content, tool_calls=one.tool_calls + calls)
    return found, tools


def with_reasoning(messages: Sequence[Message], rest: dict[str, Any]) -> list[Message]:
    """Put reasoning that stands beside the row before its one reply, and take it out of `rest`.

    Raises:
        UserError: if the row has several replies, so that it cannot be told whose it is.
    """
    texts = [rest.pop(name) for name in REASONING_FIELDS if name in rest and not holds_no_text(rest[name])]
    if not texts:
        return list(messages)
    replies = [place for place, one in enumerate(messages) if one.role == "assistant"]
    if len(replies) != 1:
        what = "reasoning stands beside a row with several replies, and does not say whose it is"
        raise UserError(what, got=texts[0], fix="write it into the message: reasoning_content")
    [place] = replies
    reasoning = one_reasoning([*texts, messages[place].reasoning])
    return [*messages[:place], replace(messages[place], reasoning=reasoning), *messages[place + 1 :]]


def holds_no_text(value: Any) -> bool:
    """Say whether a value is no reasoning: nothing, or a flag."""
    return not is_there(value) or isinstance(value, bool | int | float)


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
