"""Chat in the terminal: lines in, streamed replies out, a conversation that can be saved as a training row.

Works with pipes too: each line of input is a message or a command; then no prompt and no speed is printed.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from deft.errors import UserError, did_you_mean
from deft.files import write_text
from deft.language.catalogue import translated
from deft.language.errors import told
from deft.model.sampling import Sampling
from deft.screen import say
from deft.serve.assistant import REPLACEMENT, Assistant
from deft.serve.defaults import TEMPERATURE, TOP_P
from deft.serve.thoughts import parts_of
from deft.types import Message, content_id

PROMPT = "> "
SETTINGS = tuple(field.name for field in fields(Sampling) if field.name != "exact")
"""What `/set` shows and changes; `exact` is about the rows beside one, and a chat has none."""
HELP = """\
/reset            begin a new conversation
/identity         show the model's identity
/identity TEXT    set it, and begin a new conversation ("-" for none)
/thought          show what the model thought before its last reply
/set              show the settings of sampling
/set NAME VALUE   change one: /set temperature 0.3, /set seed - for none
/save FILE        write the conversation as one JSONL row
/help             this text
/exit             leave (or Ctrl-D, or Ctrl-C twice)
Ctrl-C            stop a reply"""


def run_chat(assistant: Assistant, *, console: Console, **sampling: Any) -> None:
    """Chat until the input ends or the user leaves; `sampling` goes to every reply.

    Raises:
        UserError: before the first line, if a sampling setting is wrong; what is wrong later is shown in the chat.
    """
    assistant.prompt_budget(assistant.sampling(**sampling))
    TerminalChat(assistant, console, sampling).run()


class TerminalChat:
    """One conversation at a terminal."""

    def __init__(self, assistant: Assistant, console: Console, sampling: dict[str, Any]) -> None:
        self.assistant, self.console, self.sampling = assistant, console, sampling
        self.interactive = sys.stdin.isatty()
        self.messages: list[Message] = []
        self.thought: str | None = None
        self.saved_to: set[Path] = set()
        self.commands: dict[str, Callable[[str], None]] = {
            "/reset": self.reset,
            "/identity": self.identity,
            "/thought": self.show_thought,
            "/set": self.set,
            "/save": self.save,
            "/help": lambda _: self.note(HELP),
        }

    def run(self) -> None:
        """Read lines until `/exit`, the end of input, or a second Ctrl-C at the prompt."""
        if self.interactive:
            use_line_editing()
            self.note(f"{self.assistant.name} · /help lists the commands")
        interrupted = False
        while True:
            try:
                line = input(PROMPT if self.interactive else "").strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                self.console.print()
                if interrupted:
                    break
                interrupted = True
                self.note("Ctrl-C again, or Ctrl-D, to leave")
                continue
            interrupted = False
            if line == "/exit":
                break
            try:
                if line:
                    self.take(line)
            except KeyboardInterrupt:
                self.note("stopped")

    def take(self, line: str) -> None:
        """Obey a command or answer a message; an error of the user's is shown, and the chat goes on."""
        name, _, argument = line.partition(" ")
        try:
            if not line.startswith("/"):
                self.answer(line)
            elif name in self.commands:
                self.commands[name](argument.strip())
            else:
                fix = did_you_mean(name, [*self.commands, "/exit"])
                raise UserError("there is no such command", got=name, fix=fix)
        except UserError as error:
            self.note(told(error), style="red")

    def answer(self, text: str) -> None:
        """Stream the reply to a message; Ctrl-C stops it and keeps what is there."""
        asked = [*self.messages, Message(role="user", content=text)]
        parts: list[str] = []
        shown, self.thought = "", None
        start = time.perf_counter()
        reply = self.assistant.stream({"messages": asked}, **self.sampling)
        reason = None
        try:
            while True:
                try:
                    piece = next(reply)
                except StopIteration as end:
                    reason = end.value
                    break
                parts.append(piece)
                shown = self.show("".join(parts), shown)
        except KeyboardInterrupt:
            reason = "cancelled"
        finally:
            reply.close()
        seconds = time.perf_counter() - start
        self.console.print()
        answer = "".join(parts)
        if answer.strip():
            self.messages = [*asked, reply_of(answer)]
        else:
            self.note("(no reply; the message is not kept)")
        if self.interactive:
            self.show_speed(answer, seconds, str(reason))

    def show(self, answer: str, shown: str) -> str:
        """Print what a reply, of which `answer` has come in, says beyond `shown`; return what is printed of it now.

        Thinking is folded: while it goes on, a line says so, and `/thought` prints it afterwards.
        """
        parts = parts_of(answer)
        if parts.is_thinking:
            if self.interactive and parts.thought and self.thought is None:
                self.note("thinking… (/thought shows it)")
            self.thought = parts.thought if parts.thought else self.thought
            return shown
        self.thought = parts.thought
        self.console.file.write(printable(parts.said[len(shown) :]))  # rich would turn each tab into spaces
        self.console.file.flush()
        return parts.said

    def show_thought(self, _: str) -> None:
        """Show what the model thought before its last reply."""
        self.note(self.thought or "(no thinking)")

    def show_speed(self, answer: str, seconds: float, reason: str) -> None:
        """Show dimly how fast the reply came, and why it ended if it was not of itself."""
        num_tokens = len(self.assistant.tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"])
        ending = {"length": " · cut at max_new_tokens", "cancelled": " · stopped"}.get(reason, "")
        self.note(f"{num_tokens} tokens · {num_tokens / max(seconds, 1e-9):.1f} tokens/s{ending}")

    def reset(self, _: str) -> None:
        """Begin a new conversation."""
        self.messages = []
        self.note("new conversation")

    def identity(self, text: str) -> None:
        """Show the identity, or set it and begin a new conversation; "-" is none."""
        if text:
            self.assistant.set_model_identity("" if text == "-" else text)
            self.messages = []
        self.note(self.assistant.identity or "(no identity)")

    def set(self, words: str) -> None:
        """Show the settings of sampling, or change one; a reply must still have room for it."""
        if words:
            name, _, value = words.partition(" ")
            sampling = changed(self.sampling, name, value.strip())
            self.assistant.prompt_budget(self.assistant.sampling(**sampling))
            self.sampling = sampling
        shown = self.assistant.sampling(**self.sampling)
        values = {name: getattr(shown, name) for name in SETTINGS}
        self.note("\n".join(f"{name} {'-' if value is None else value}" for name, value in values.items()))

    def save(self, name: str) -> None:
        """Write the conversation as one JSONL row; a file that this chat did not write is left alone."""
        if not name:
            raise UserError("/save needs a file", fix="/save chat.jsonl")
        if not self.messages:
            raise UserError("there is no conversation to save yet", fix="say something first")
        path = Path(name).expanduser()
        if path.exists() and path.resolve() not in self.saved_to:
            raise UserError(f"{path} already exists", fix="choose another name")
        messages = self.messages
        if self.assistant.identity and messages[0].role != "system":
            messages = [Message(role="system", content=self.assistant.identity), *messages]
        row = {
            "id": content_id(messages),
            "messages": [saved(message) for message in messages],
        }
        write_text(path, json.dumps(row, ensure_ascii=False) + "\n")
        self.saved_to.add(path.resolve())
        self.note(f"saved {len(self.messages)} messages to {path}")

    def note(self, text: str, *, style: str = "dim") -> None:
        """Print something that is not the model's, dimly."""
        for line in translated(text).splitlines():
            say(self.console, "{line}", line=line, style=style)


def saved(message: Message) -> dict[str, str]:
    """Return a message as a training row has it."""
    row = {"role": message.role, "content": message.content}
    return row | ({"reasoning_content": message.reasoning} if message.reasoning else {})


def reply_of(answer: str) -> Message:
    """Return what the model said as a message; what was only thought, when it was cut, counts as said."""
    parts = parts_of(answer)
    return Message(
        role="assistant", content=parts.said or answer, reasoning=parts.thought if parts.said.strip() else ""
    )


def chat_sampling(
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    max_new_tokens: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Return the sampling of a chat, with the page's defaults for what is not given."""
    given = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    sampling = {"temperature": TEMPERATURE, **{name: value for name, value in given.items() if value is not None}}
    if sampling["temperature"] != 0:
        sampling.setdefault("top_p", TOP_P)
    return sampling


def changed(sampling: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    """Return settings with one changed to what was typed; "-" takes it back to its default.

    With temperature 0 the settings that have effect only above it go, and come back with the next temperature.

    Raises:
        UserError: if there is no such setting, or the value is no number.
    """
    kinds = {name: float if name in {"temperature", "top_p", "repetition_penalty"} else int for name in SETTINGS}
    if name not in kinds:
        raise UserError("there is no such setting", got=name, fix=did_you_mean(name, kinds))
    rest = {each: given for each, given in sampling.items() if each != name}
    if value == "-":
        return chat_sampling(**rest) if name in {"temperature", "top_p"} else rest
    try:
        number = kinds[name](value)
    except ValueError as error:
        wanted = "a number" if kinds[name] is float else "a whole number"
        raise UserError(f"{name} must be {wanted}", got=value, fix=f"/set {name} NUMBER") from error
    if name == "temperature" and number == 0:
        rest = {each: given for each, given in rest.items() if each not in {"top_p", "top_k"}}
    elif name == "temperature" and sampling.get("temperature") == 0:
        rest.setdefault("top_p", TOP_P)
    return {**rest, name: number}


def printable(text: str) -> str:
    """Return text without control characters, which could move the cursor or recolour the terminal."""
    return "".join(ch if ch in "\n\t" or (ch >= " " and not "\x7f" <= ch <= "\x9f") else REPLACEMENT for ch in text)


def use_line_editing() -> None:
    """Give `input` its history and editing keys, where the system has them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
