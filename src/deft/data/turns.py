"""One turn of a conversation goes in, in any layout that rows have it in; the messages that it makes come out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deft.data.fields import NOT_LOSS, check_meanings, is_flag, is_harmless, is_there, meaning_of
from deft.data.loss_weights import check_asked, is_loss_weight, message_weight
from deft.data.names import REASONING_FIELDS
from deft.data.tools import CALL_ROLES, RESULT_ROLES, TOOL_FIELDS, calls_from, result_text, results_in_text
from deft.errors import UserError
from deft.types import Message, Role, split_reasoning

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
CALL_FIELDS = ("tool_calls", "function_call")


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
        thoughts, content = split_all(content)
        parts["reasoning"] = one_reasoning({"reasoning": parts.get("reasoning")}, *thoughts)
    return Message(role=ROLE_NAMES[name], content=content, **parts)


def split_all(content: str) -> tuple[list[str], str]:
    """Return the thinking at the head of a reply, block by block, and the reply after it."""
    thoughts = []
    while (split := split_reasoning(content))[1] != content:
        thoughts.append(split[0])
        content = split[1]
    return thoughts, content


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


def one_reasoning(fields: Row, *thoughts: str) -> str:
    """Return the one reasoning that several fields of a reply and the thinking in its content give.

    White space around it is removed.

    Raises:
        UserError: if they differ, or one is not text.
    """
    given = {name: joined_parts(value) for name, value in fields.items() if is_there(value)}
    for name, value in given.items():
        if not isinstance(value, str) or is_flag(value):
            fix = f"write text, or, if it is no reasoning, --ignore-fields {name}"
            raise UserError(f"the reasoning of a reply (`{name}`) is not text", got=value, fix=fix)
    found = [checked(value, "assistant") or "" for value in (*given.values(), *thoughts)]
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
        called = item.get(content_key)
        thoughts, called = split_all(called) if isinstance(called, str) else ([], called)
        parts = reply_parts(rest, thoughts)
        return [message("assistant", "", **{**parts, "tool_calls": calls_from(called)})]
    if role in RESULT_ROLES:
        check_meanings(without_flags(rest, "name", "tool_call_id"))
        parts = {"name": str(rest.get("name") or ""), "call_id": str(rest.get("tool_call_id") or "")}
        content = joined_parts(result_text(item.get(content_key)))
        return [message("tool", one, **parts) for one in results_in_text(content)]
    content = item.get(content_key)
    if ROLE_NAMES.get(role) == "assistant":
        content, thoughts = without_thoughts(content)
        return [message(role, joined_parts(content), **reply_parts(rest, thoughts))]
    content = joined_parts(content)
    if rest:
        check_asked(rest, ROLE_NAMES.get(role, "system"))
        check_meanings(without_flags(rest, *TOOL_FIELDS))
    is_empty = content is None or (isinstance(content, str) and not content.strip())
    return [] if ROLE_NAMES.get(role) == "system" and is_empty else [message(item[role_key], content)]


def without_flags(fields: Row, *used: str) -> dict[str, Any]:
    """Return the fields of a message that is no reply, without those used and what says of loss: there is none."""
    meanings = {name: meaning_of(name) for name in fields if name not in used}
    return {name: fields[name] for name, says in meanings.items() if says is None or says.what != NOT_LOSS}


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
    return {
        "reasoning": one_reasoning({name: rest[name] for name in REASONING_FIELDS if name in rest}, *thoughts),
        "tool_calls": tuple(call for value in called for call in calls_from(value)),
        "weight": message_weight(rest),
    }


def without_thoughts(content: Any) -> tuple[Any, list[str]]:
    """Return content in parts without those that are reasoning, and these."""
    if not isinstance(content, list):
        return content, []
    kinds = ("thinking", "reasoning")
    thoughts = [part for part in content if isinstance(part, dict) and part.get("type") in kinds]
    texts = [part.get("thinking") or part.get("reasoning") or part.get("text") or "" for part in thoughts]
    joined = joined_parts([{"text": text} for text in texts])
    return [part for part in content if part not in thoughts], [joined] if joined else []


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
