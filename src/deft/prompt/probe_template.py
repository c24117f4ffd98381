"""Run by `bounds` as a process of its own: render a chat template on a few conversations, within limits.

In, on stdin: the template and its arguments as JSON. Out, on stdout: what limit it exceeds, or nothing. It imports
jinja2 and the standard library alone, so that it starts at once and has nothing to lose.
"""

import json
import sys

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_S = 3
MEMORY_BYTES = 1 << 30
MOST_CHARACTERS = 1_000_000
"""A rendered probe has a few thousand, nearly all of them its own messages."""


def limit() -> None:
    """Have the system end this process where it takes too much, on systems that can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass


def conversations() -> list[list[dict[str, str]]]:
    """Return conversations short and long, with a system message and without."""
    exchange = [
        {"role": "user", "content": "问题 question"},
        {"role": "assistant", "content": "<think>想</think>回答 reply"},
    ]
    system = [{"role": "system", "content": "系统 system"}]
    long = [{"role": turn["role"], "content": turn["content"] * 200} for turn in exchange]
    return [exchange[:1], exchange, system + exchange, exchange * 2 + exchange[:1], exchange * 8, long]


def raise_exception(message: str) -> None:
    """Refuse a conversation, as templates do."""
    raise TemplateError(message)


def find_fault(template: str, kwargs: dict[str, object]) -> str:
    """Say what limit a template exceeds; an empty text if none. One that refuses a conversation exceeds none."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals.update(raise_exception=raise_exception, strftime_now=lambda form: form)
    try:
        compiled = environment.from_string(template)
    except (RecursionError, MemoryError):
        return "it is nested too deeply"
    except Exception:  # a template that is none is told when it is used
        return ""
    for messages in conversations():
        for for_reply in (False, True):
            values = {"bos_token": "", "eos_token": "", "tools": None, **kwargs}
            num_characters = 0
            try:
                for part in compiled.generate(messages=messages, add_generation_prompt=for_reply, **values):
                    num_characters += len(part)
                    if num_characters > MOST_CHARACTERS:
                        return f"it writes more than {MOST_CHARACTERS:,} characters for a short conversation"
            except (MemoryError, RecursionError) as error:
                return f"it took too much memory ({type(error).__name__})"
            except Exception:  # it refuses this conversation
                continue
    return ""


if __name__ == "__main__":
    limit()
    asked = json.loads(sys.stdin.read())
    print(find_fault(asked["template"], asked["kwargs"]))
