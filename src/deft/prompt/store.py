"""The chat format that a checkpoint carries, so that inference renders what training rendered.

In: a chat format and a folder. Out: `chat_format.json`, which holds the template or the role ids, and a short
conversation as it was rendered; loading renders it again and compares.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.errors import UserError
from deft.files import read_regular, write_json
from deft.prompt.formats.kinds import KINDS, ChatFormat
from deft.prompt.formats.turns import PROBE
from deft.registry import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE_NAME = "chat_format.json"
VERSION = 3
"""Of the file. Version 1, which named none, wrote no bos before role tokens. Up to version 2 a row was one sequence,
trained with the first token only of an end of several: what those files say of rows is not compared, and the tokens
that they stop at stay theirs."""


def save_chat_format(chat_format: ChatFormat, folder: Path) -> None:
    """Write `chat_format.json` into a checkpoint's folder."""
    write_json(folder / FILE_NAME, {"version": VERSION, **chat_format.to_dict(), "probe": probe(chat_format)})


def load_chat_format(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> ChatFormat | None:
    """Return the chat format stored in a folder, made for `tokenizer`; None if none is stored.

    Raises:
        UserError: if the file is damaged, or the conversation in it renders differently now than in training.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        stored = json.loads(read_regular(path))
        if stored.get("version", 1) > VERSION:
            fix = "pip install --upgrade deft-llm"
            raise UserError("a newer deft wrote the chat format", got=stored["version"], where=str(path), fix=fix)
        chat_format = rebuild(stored, tokenizer)
        is_earlier = stored.get("version", 1) < VERSION
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fix = "restore the file from the run that wrote it"
        raise UserError("the stored chat format is damaged", got=str(error), where=str(path), fix=fix) from error
    rendered = {**chat_format.to_dict(), "probe": probe(chat_format)}
    if is_earlier:
        rendered["probe"] = {**stored["probe"], **of_prompt(rendered["probe"])}
    for name, now in rendered.items():
        if stored.get(name) != now:
            raise differs(path, name, stored.get(name), now)
    return chat_format


def rebuild(stored: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> ChatFormat:
    """Make the chat format that `stored` describes."""
    if stored["kind"] not in KINDS:
        raise ValueError(f"unknown kind {stored['kind']!r}")
    chat_format: Any = resolve(KINDS, stored["kind"], kind="chat format").from_dict(stored, tokenizer)
    chat_format.stop_token_ids = stored_ids("stop_token_ids", stored, tokenizer)
    if stored.get("version", 1) < VERSION:
        chat_format.end_of_turn_ids = stored_ids("end_of_turn_ids", stored, tokenizer)
    return chat_format


def stored_ids(name: str, stored: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return the ids under a name: the tokenizer saved with them may name one of them its eos, and no longer others.

    Raises:
        ValueError: if they are no ids of the tokenizer.
    """
    found = stored[name]
    if not isinstance(found, list) or any(
        not isinstance(each, int) or isinstance(each, bool) or not 0 <= each < len(tokenizer) for each in found
    ):
        raise ValueError(f"{name} are no ids of the tokenizer: {found!r:.90}")
    return tuple(found)


def probe(chat_format: ChatFormat) -> dict[str, Any]:
    """Return how the format renders `PROBE`: its second prompt as text and ids, its first exchange as a trained row."""
    [row] = chat_format.encode_conversation(PROBE[:2])
    return {
        "messages": [{"role": message.role, "content": message.content} for message in PROBE[:3]],
        "prompt_text": chat_format.render_prompt(PROBE[:3]),
        "prompt_ids": chat_format.encode_prompt(PROBE[:3]),
        "row_ids": row.ids,
        "row_trained": [weight > 0 for weight in row.weights],
    }


def of_prompt(probe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a probe says of the prompt, which is what an answer depends on."""
    return {name: value for name, value in probe.items() if name in ("messages", "prompt_text", "prompt_ids")}


def differs(path: Path, name: str, trained: Any, now: Any) -> UserError:
    """Return the error of a checkpoint whose tokenizer or library renders differently from its training."""
    if isinstance(now, dict) and isinstance(trained, dict):
        part = next((key for key in now if trained.get(key) != now[key]), "")
        name, trained, now = f"{name}.{part}", trained.get(part), now.get(part)
    return UserError(
        "the tokenizer or the library renders a chat differently from training",
        got=f"{name} was {trained!r:.90}, now {now!r:.90}",
        where=str(path),
        fix="use the tokenizer saved with this checkpoint and the library versions its run recorded",
    )
