"""Tools and their calls in the layouts that rows have them in: OpenAI's, ShareGPT's, ms-swift's, Hermes' in text.

In: values of a row. Out: definitions as OpenAI writes them, `ToolCall`s, and results as text.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deft.data.arrow import json_value
from deft.errors import UserError
from deft.types import ToolCall

CALL_ROLES = frozenset({"function_call", "tool_call"})
RESULT_ROLES = frozenset({"tool", "function", "observation", "ipython", "tool_response", "function_response"})
MAY_BE_NULL = ("default", "const", "example")
"""What null means something under, in a JSON schema."""
TOOL_FIELDS = ("tools", "functions", "available_tools")
"""The fields beside a conversation that define tools."""

MAX_LITERAL_CHARACTERS = 1_000_000
DEFINED = re.compile(r"<tools>\s*(?P<json>[\[{].*?)\s*</tools>", re.DOTALL)
CALLED = re.compile(r"<tool_call>\s*(?P<json>.*?)\s*</tool_call>\s*", re.DOTALL)
OPENED = re.compile(r"<tool_call>\s*\{")
ANSWERED = re.compile(r"<tool_response>\s*(?P<text>.*?)\s*</tool_response>\s*", re.DOTALL)


def tools_from(name: str, value: Any) -> list[dict[str, Any]]:
    """Return the tools that a field defines: a list, one tool, or the JSON text of either.

    Raises:
        UserError: if the text is not JSON, or a tool has no name.
    """
    if isinstance(value, str):
        if not value.strip():
            return []
        value = json_or_python(value.strip(), f"`{name}`")
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
    whole = without_nulls(tool)
    if "function" in tool:
        return {"type": "function", **whole}
    return {"type": "function", "function": {key: value for key, value in whole.items() if key != "type"}}


def without_nulls(schema: Any) -> Any:
    """Return a schema without the keys that a table filled up with null because other rows have them."""
    if isinstance(schema, Mapping):
        return {
            key: inner if key in MAY_BE_NULL else without_nulls(inner)
            for key, inner in schema.items()
            if inner is not None or key in MAY_BE_NULL
        }
    return [without_nulls(inner) for inner in schema] if isinstance(schema, list) else schema


def united(sources: Iterable[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the tools that several places of a row define, each once.

    Raises:
        UserError: if two places define a tool differently.
    """
    tools: list[dict[str, Any]] = []
    for source in sources:
        known = {tool["function"]["name"]: tool for tool in tools}
        for tool in source:
            name = tool["function"]["name"]
            if known.get(name, tool) != tool:
                raise UserError(f"the tool {name} is defined twice, differently", got=tool, fix="keep one of the two")
            tools += [] if name in known else [tool]
    return tools


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
    if isinstance(arguments, str):
        arguments = arguments.strip() and json_from(arguments, f"the call of {function['name']}")
    text = json.dumps({} if arguments in (None, "") else arguments, ensure_ascii=False)
    return ToolCall(name=function["name"], arguments=text, id=str(call.get("id") or ""))


def json_from(text: str, what: str, *, several: bool = False) -> Any:
    """Return the JSON value of a text, or, if there may be `several` one after another, the list of them.

    Raises:
        UserError: if it is not JSON.
    """
    decoder, values, left = json.JSONDecoder(parse_constant=no_number), list[Any](), text.strip()
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


def no_number(name: str) -> None:
    """Refuse NaN and the infinite numbers, which JSON does not have."""
    raise ValueError(f"{name} is no number of JSON's")


def json_or_python(text: str, what: str) -> Any:
    """Return the value of a text, or the list of those that follow each other, also as Python prints them.

    Raises:
        UserError: if it is neither, told as wrong JSON.
    """
    try:
        return json_from(text, what, several=True)
    except UserError:
        if not text.startswith(("{", "[")) or len(text) > MAX_LITERAL_CHARACTERS:
            raise
        for printed in (text, f"[{','.join(text.splitlines())}]"):
            try:
                return json_value(ast.literal_eval(printed))
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
        raise


def calls_in_text(content: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Return a reply without the `<tool_call>` blocks at its end, and the calls in them.

    Raises:
        UserError: if text follows a call, which no chat template could write, or a call is not closed.
    """
    blocks = list(CALLED.finditer(content))
    said = content[: blocks[0].start()] if blocks else content
    if OPENED.search(said):
        raise UserError("a <tool_call> of a reply is not closed", got=said, fix="add </tool_call>")
    if not blocks:
        return content, ()
    if after := CALLED.sub("", content[len(said) :]).strip():
        fix = "write the text before the calls, or leave the row out"
        raise UserError("text follows a <tool_call> in a reply", got=after, fix=fix)
    values = [json_or_python(block["json"], "a tool call") for block in blocks]
    return said.strip(), tuple(call for value in values for call in calls_from(value))


def results_in_text(content: str) -> list[str]:
    """Return the results that stand in a message between `<tool_response>` tags, or the message as it is."""
    found = [block["text"] for block in ANSWERED.finditer(content)]
    return found if found and not ANSWERED.sub("", content).strip() else [content]


def result_text(content: Any) -> Any:
    """Return what a tool said as text: what is neither text nor a list of parts as its JSON."""
    if content is None or isinstance(content, str) or (isinstance(content, list) and is_parts(content)):
        return content or ""
    return json.dumps(content, ensure_ascii=False)


def is_parts(content: Sequence[Any]) -> bool:
    """Say whether a list is content in parts."""
    return bool(content) and all(isinstance(part, Mapping) and "type" in part for part in content)


def tools_in_system(content: str) -> tuple[str, list[dict[str, Any]], str]:
    """Return a system text without the tools that it defines between `<tools>` tags, the tools, and what else it lost.

    What follows them up to its last `</tool_call>` tells how to write a call, and goes as well: the chat template says
    it in its own words.
    """
    block = DEFINED.search(content)
    if block is None:
        return content, [], ""
    defined = json_or_python(block["json"], "the text between <tools> and </tools>")
    after = content[block.end() :]
    told, end, rest = after.rpartition("</tool_call>")
    kept = "\n".join(part for part in (content[: block.start()].strip(), rest.strip()) if part)
    return kept, tools_from("tools", defined), (told + end).strip()
