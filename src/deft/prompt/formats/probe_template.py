"""Run by `bounds` as a process of its own: render a chat template on a few conversations, within limits.

In, on stdin: the template and its arguments as JSON. Out, on stdout: what limit it exceeds, or nothing. It imports
jinja2 and the standard library alone, so that it starts at once and has nothing to lose.

What a template can see of its surroundings is what transformers will show it: the same tags, filters, functions and
variables. A difference would be a way for a template to behave well here, and to explode later.
"""

import json
import sys
import time
from itertools import product
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_S = 2
WORK_S = 1.0
"""Of a processor, for compiling it and for all conversations; real templates take some milliseconds."""
MEMORY_BYTES = 1 << 30
MOST_CHARACTERS = 1_000_000
"""A rendered probe has a few thousand, nearly all of them its own messages."""


TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "查找 find",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "键 key"}}},
    },
}


def limit() -> None:
    """Have the system end this process where it takes too much, on systems that can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass


def conversations() -> list[list[dict[str, Any]]]:
    """Return conversations short and long, with a system message and without, with reasoning and calls of tools."""
    exchange: list[dict[str, Any]] = [
        {"role": "user", "content": "问题 question"},
        {"role": "assistant", "content": "<think>想</think>回答 reply"},
    ]
    system = [{"role": "system", "content": "系统 system"}]
    long = [{"role": turn["role"], "content": turn["content"] * 200} for turn in exchange]
    marked = [{"role": turn["role"], "content": f"\ue000Turn{place}\ue001"} for place, turn in enumerate(exchange)]
    lengths = [(exchange * 8)[:count] for count in range(1, 17)]
    call = {"id": "call00001", "type": "function", "function": {"name": "find", "arguments": {"key": "值 value"}}}
    thought = {"reasoning_content": "想 thought", "reasoning": "想 thought", "thinking": "想 thought"}
    called = [
        exchange[0],
        {"role": "assistant", "content": "", "tool_calls": [call], **thought},
        {"role": "tool", "name": "find", "tool_call_id": "call00001", "content": "结果 result"},
        exchange[1] | thought,
    ]
    lengths += [called[:1], called[:2], called[:3], called]
    return [*lengths, system + exchange[:1], system + exchange, system + exchange * 2, long, marked, system + marked]


class Generation(Extension):
    """The tag around what a model writes; its block is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own name and type)

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> Any:
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    """Return an environment with all that transformers' has."""
    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    found.filters["tojson"] = to_json
    found.globals.update(raise_exception=raise_exception, strftime_now=time.strftime)
    return found


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    """Refuse a conversation, as templates do."""
    raise TemplateError(message)


def find_fault(template: str, kwargs: dict[str, object]) -> str:
    """Say what limit a template exceeds; an empty text if none. One that refuses a conversation exceeds none."""
    began_at = time.process_time()
    try:
        compiled = environment().from_string(template)
        for messages, for_reply, tools in product(conversations(), (False, True), (None, [TOOL])):
            values = {"tools": tools, "documents": None, **kwargs}
            if num_written(compiled, messages=messages, add_generation_prompt=for_reply, **values) > MOST_CHARACTERS:
                return f"it writes more than {MOST_CHARACTERS:,} characters for a short conversation"
            if time.process_time() - began_at > WORK_S:
                return f"it takes more than {WORK_S:g} s for a few short conversations"
    except (MemoryError, RecursionError) as error:
        return f"it is nested too deeply, or takes too much memory ({type(error).__name__})"
    except Exception:  # one that is none is told when it is used
        pass
    return ""


def num_written(compiled: Template, **values: Any) -> int:
    """Return how many characters a template writes, counted until they are too many; 0 if it refuses."""
    count = 0
    try:
        for part in compiled.generate(**values):
            count += len(part)
            if count > MOST_CHARACTERS:
                break
    except (MemoryError, RecursionError):
        raise
    except Exception:  # of any kind: what a template calls raises what it likes
        return 0
    return count


if __name__ == "__main__":
    limit()
    asked = json.loads(sys.stdin.read())
    print(find_fault(asked["template"], asked["kwargs"]))
