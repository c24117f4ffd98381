"""Tools and their calls in the layouts that rows have them in: OpenAI's, ShareGPT's, ms-swift's, Hermes' in text.

In: values of a row. Out: definitions as OpenAI writes them, `ToolCall`s, and results as text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deft.errors import UserError
from deft.types import ToolCall

CALL_ROLES = frozenset({"function_call", "tool_call"})
RESULT_ROLES = frozenset({"tool", "function", "observation", "ipython", "tool_response", "function_response"})
TOOL_FIELDS = ("tools", "functions", "available_tools")
"""The fields beside a conversation that define tools."""

DEFINED = re.compile(r"<tools>\s*(?P<json>[\[{].*?)\s*</tools>", re.DOTALL)
CALLED = re.compile(r"<tool_call>\s*(?P<json>.*?)\s*</tool_call>\s*", re.DOTALL)
ANSWERED = re.compile(r"<tool_response>\s*(?P<text>.*?)\s*</tool_response>\s*", re.DOTALL)


def tools_from(name: str, value: Any) -> list[dict[str, Any]]:
    """Return the tools that a field defines: a list, one tool, or the JSON text of either.

    Raises:
        UserError: if the text is not JSON, or a tool has no name.
    """
    if isinstance(value, str):
        if not value.strip():
            return []
        value = json_from(value, f"`{name}`")
    if value is None:
        return []
    tools = value if isinstance(value, list) else [value]
    return [tool_from(name, json_from(tool, f"`{name}`") if isinstance(tool, str) else tool) for tool in tools if tool]


def tool_from(name: str, tool: Any) -> dict[str, Any]:
    """Return one tool as OpenAI writes it."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        fix = 'a tool looks like {"type": "function", "function": {"name": "…", "parameters": {…}}}'
        raise UserError(f"a tool in `{name}` has no name", got=tool, fix=fix)
    if "function" in tool:
        return {"type": "function", **without_nulls(tool)}
    return {"type": "function", "function": without_nulls(tool)}


def without_nulls(value: Any) -> Any:
    """Return JSON without the keys that a table fills up with null because other rows have them."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def calls_from(value: Any) -> tuple[ToolCall, ...]:
    """Return the calls that a value holds: one, a list of them, or the JSON text of either, one after another.

    Raises:
        UserError: if a text is not JSON, or a call names no function.
    """
    if isinstance(value, str):
        text = CALLED.sub(lambda found: found["json"] + "\n", value).strip()
        value = json_from(text, "a tool call", several=True)
    calls = value if isinstance(value, list) else [value]
    return tuple(call_from(call) for call in calls)


def call_from(call: Any) -> ToolCall:
    """Return one call, its arguments as the JSON text of an object."""
    if isinstance(call, str):
        call = json_from(call, "a tool call")
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if isinstance(function, str):  # {"function": "name", "arguments": …}
        function = {**call, "name": function}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(
            "a tool call names no function", got=call, fix='a call looks like {"name": "…", "arguments": {}}'
        )
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        arguments = json_from(arguments, f"the call of {function['name']}")
    text = json.dumps(without_nulls(arguments) or {}, ensure_ascii=False)
    return ToolCall(name=function["name"], arguments=text, id=str(call.get("id") or ""))


def json_from(text: str, what: str, *, several: bool = False) -> Any:
    """Return the JSON value of a text, or, if there may be `several` one after another, the list of them.

    Raises:
        UserError: if it is not JSON.
    """
    decoder, values, left = json.JSONDecoder(), list[Any](), text.strip()
    try:
        while left and (several or not values):
            value, end = decoder.raw_decode(left)
            values.append(value)
            left = left[end:].strip()
        if left or not values:
            raise ValueError("there is more after the value" if values else "there is nothing")
    except (ValueError, RecursionError) as error:
        fix = "correct the JSON, or leave the row out"
        raise UserError(f"{what} is not valid JSON", got=f"{text} ({error})", fix=fix) from error
    return values if several and len(values) > 1 else values[0]


def calls_in_text(content: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Return a reply without its `<tool_call>` blocks, and the calls in them."""
    found = [call for block in CALLED.finditer(content) for call in calls_from(block["json"])]
    return CALLED.sub("", content).strip() if found else content, tuple(found)


def results_in_text(content: str) -> list[str]:
    """Return the results that stand in a message between `<tool_response>` tags, or the message as it is."""
    found = [block["text"] for block in ANSWERED.finditer(content)]
    return found if found and not ANSWERED.sub("", content).strip() else [content]


def result_text(content: Any) -> Any:
    """Return what a tool said as text: an object or a list that is no list of text parts as its JSON."""
    if isinstance(content, Mapping) or (isinstance(content, list) and not is_parts(content)):
        return json.dumps(content, ensure_ascii=False)
    return "" if content is None else str(content) if isinstance(content, int | float) else content


def is_parts(content: Sequence[Any]) -> bool:
    """Say whether a list is content in parts."""
    return bool(content) and all(isinstance(part, Mapping) and "type" in part for part in content)


def tools_in_system(content: str) -> tuple[str, list[dict[str, Any]]]:
    """Return a system text without the tools that it defines between `<tools>` tags, and the tools.

    What follows them up to its last `</tool_call>` tells how to write a call, and goes as well: the chat template says
    it in its own words.
    """
    block = DEFINED.search(content)
    if block is None:
        return content, []
    defined = json_from(block["json"], "the text between <tools> and </tools>", several=True)
    after = content[block.end() :]
    told = after.rfind("</tool_call>")
    rest = after[told + len("</tool_call>") :] if told >= 0 else after
    kept = "\n".join(part for part in (content[: block.start()].strip(), rest.strip()) if part)
    return kept, tools_from("tools", defined)
