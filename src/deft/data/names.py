"""What fields are called: rows go in; the names under which formats know them come out, and advice where none does."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deft.data.fields import holds_text, is_harmless, meaning_of

SYSTEM_KEYS = ("system", "system_prompt", "system_message")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""What leads to a reply, on its message or beside a row with one reply."""
REPLIES = ("output", "response", "target", "completion", "answer")
"""Fields that hold the reply to one question; a format that takes any of them takes the first that is there."""
MATERIAL = ("passage", "context")
"""What a question is about. It stands where people put it: after an instruction, before a question."""
INSTRUCTION = ("instruction", *MATERIAL, "input", "query", "question")

FIELD_NAMES = frozenset(
    {*SYSTEM_KEYS, *INSTRUCTION, *REPLIES, "prompt", "history", "messages", "conversations", "conversation"}
)
"""The names that make conversations; capitals and white space around them count for nothing."""
OTHER_WORDS = {
    "input": "inputs 输入",
    "target": "targets",
    "output": "outputs 输出",
    "question": "problem 问题 提问 题目",
    "answer": "solution 回答 答案 答复",
    "response": "回复",
    "instruction": "指令",
    "prompt": "提示词",
    "context": "上下文",
    "system": "系统提示 系统提示词",
}
ALIASES = {word: name for name, words in OTHER_WORDS.items() for word in words.split()}
"""Other words for the same, taken where a row is in no format without them and they hold text."""
PROMPT_WORD = re.compile(r"question|prompt|instruction|query|input|problem|context|passage|问|(?<!标)题|指令|输入|提示")
SYSTEM_WORD = re.compile("system|系统")
REPLY_WORD = re.compile(r"answer|response|output|target|completion|reply|solution|答|回复|输出")

ABOUT = ("description", "info", "title", "homepage", "message", "status", "code", "msg", "features", "config")
"""What a wrapper may say of all its rows, besides what is harmless by name."""


def known_names(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that formats know for those of the row's that are the same in other words: `{theirs: ours}`."""
    found: dict[str, str] = {}
    for name, value in row.items():
        plain = name.strip().lower()
        other = ALIASES.get(plain, plain) if isinstance(value, str) else plain
        if other in FIELD_NAMES and other not in row and other not in found.values():
            found[name] = other
    return found


def renamed(row: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """Return a row with the fields renamed as `known_names` says."""
    return {named.get(name, name): value for name, value in row.items()}


def advice_for(row: Mapping[str, Any], formats: Mapping[str, Sequence[str]]) -> str:
    """Say which format a row comes nearest to, what it lacks for it, and how to name its columns instead.

    `formats` gives each format the keys that it needs.
    """
    names = {name.strip().lower() for name in row}
    nearest, keys = max(formats.items(), key=lambda known: len(names & {*known[1]}) / len(known[1]))
    lacking = [key for key in keys if key not in names]
    parts = []
    if len(lacking) < len(keys):
        parts.append(f"the nearest format is {nearest}, for which it lacks {' and '.join(lacking) or 'its shape'}")
    lists = {name: value for name, value in row.items() if isinstance(value, list) and value}
    turns = [name for name, value in lists.items() if all(map(has_role, value))]
    kept = {"source"} & names if "target" in names else set()  # what is to be translated
    texts = [
        one for one, value in row.items() if isinstance(value, str) and (one in kept or not is_harmless(one, value))
    ]
    texts = [name for name in texts if not SYSTEM_WORD.search(name.lower())]
    replies = [name for name in texts if REPLY_WORD.search(name.lower())]
    prompts = [name for name in texts if name not in replies and PROMPT_WORD.search(name.lower())]
    if not turns and not texts:  # a question, a reply, and so on
        turns = [
            name for name, value in lists.items() if len(value) % 2 == 0 and all(isinstance(v, str) for v in value)
        ]
    if turns:
        parts.append(f"if these are its turns: --fields messages={turns[0]}")
    elif len(texts) > 1 and (replies or not prompts):
        prompt, reply = "+".join(prompts) or texts[0], replies[-1] if replies else texts[-1]
        parts.append(f"if these are its prompt and reply: --fields prompt={prompt},response={reply}")
    elif prompts:
        parts.append("no column of text looks like the reply: name them with --fields prompt=…,response=…")
    return "; ".join(parts) or "the known formats are " + ", ".join(formats)


def has_role(value: Any) -> bool:
    """Say whether a value is an object with a role, as turns of a conversation are."""
    return isinstance(value, dict) and not value.keys().isdisjoint({"role", "from"})


def first_lost(beside: Mapping[str, Any]) -> str | None:
    """Return the first field beside a list of rows that would be lost for all of them: text, or what changes them."""
    for name, value in beside.items():
        meaning = meaning_of(name)
        is_text = name not in ABOUT and not is_harmless(name, value) and holds_text(value)
        if is_text or (meaning is not None and meaning.says(value)):
            return name
    return None
