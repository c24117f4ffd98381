"""Calls of tools in turns: the ids that templates want of them, and whether a template has shown all of them.

In: turns, and what was rendered of them. Out: turns with ids, or the refusal of a call that was dropped.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from deft.errors import NotTrainable
from deft.prompt.formats.kinds import Tools
from deft.prompt.formats.turns import Turn
from deft.types import ToolCall

SHORT_ID = "call{number:05d}"
"""Of nine letters and digits, as Mistral's templates want them."""
CALL_ID = "functions.{name}:{number}"
"""What Kimi's templates write in place of a name; others that show an id show any."""


def with_call_ids(turns: Sequence[Turn], *, short: bool) -> Sequence[Turn]:
    """Return the turns with an id for each call, and with its id and its function's name for each result.

    Results without an id answer the calls in their order. With `short`, all ids are nine letters and digits long.
    """
    if not any(turn.calls for turn in turns):
        return turns
    found: list[Turn] = []
    number = 0
    pending: list[ToolCall] = []
    for turn in turns:
        changed = turn
        if turn.calls:
            pending = []
            for call in turn.calls:
                made = (SHORT_ID if short else CALL_ID).format(name=call.name, number=number)
                pending.append(call.with_id(made if short or not call.id else call.id))
                number += 1
            changed = turn._replace(calls=tuple(pending))
            asked = {call.id: made for call, made in zip(turn.calls, pending, strict=True) if call.id}
        elif turn.role == "tool" and pending:
            answered = asked.get(turn.call_id, pending[0])
            pending = [call for call in pending if call is not answered] or pending[-1:]
            changed = turn._replace(call_id=answered.id, name=turn.name or answered.name)
        found.append(changed)
    return found


def typed_json(turns: Sequence[Turn], tools: Sequence[Any]) -> str:
    """Return what a row brings in beside its texts, tools and calls, as one text that holds all their characters."""
    calls = [text for turn in turns for call in turn.calls for text in (call.name, call.arguments, call.id)]
    names = [text for turn in turns for text in (turn.name, turn.call_id)]
    return (
        "\n".join([json.dumps(list(tools), ensure_ascii=False), *calls, *names]) if tools or calls or any(names) else ""
    )


def check_calls_shown(turns: Sequence[Turn], text: str, *, names: bool) -> None:
    """Check that a text shows every call of some turns: each name as often as it is called, and all arguments.

    Templates that know one call for each message, or text or a call, drop the others without a word. Without `names`
    the template writes ids in their place, as Kimi's does.

    Raises:
        NotTrainable: `template_hides_content`.
    """
    calls = [call for turn in turns for call in turn.calls]
    called = Counter(call.name for call in calls) if names else Counter()
    lacking = next((name for name, number in called.items() if text.count(name) < number), None)
    for call in calls:
        values = values_in(json.loads(call.arguments))
        lacking = lacking or next((call.name for forms in values if not any(form in text for form in forms)), None)
    if lacking is not None:
        what = "the template does not show a call, or not all of it"
        fix = "write one call in a message, without text beside it, or take the row out"
        raise NotTrainable("template_hides_content", what, got=lacking, fix=fix)


def check_tools_shown(tools: Tools, text: str) -> None:
    """Check that a prompt names every tool that the assistant may call.

    Raises:
        NotTrainable: `template_hides_content`.
    """
    for tool in tools:
        name = tool.get("function", tool).get("name", "")
        if name not in text:
            what = "the template does not show a tool in this prompt"
            fix = "take rows with tools out, or use a model whose chat template writes them"
            raise NotTrainable("template_hides_content", what, got=name, fix=fix)


def values_in(value: Any) -> Iterator[tuple[str, ...]]:
    """Yield the forms that each text or number within a JSON value may be written in."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from values_in(inner)
    elif isinstance(value, str):
        as_json = (json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
        yield value, value.strip(), *as_json, repr(value)[1:-1]
    elif value is not None:
        yield str(value), json.dumps(value)
