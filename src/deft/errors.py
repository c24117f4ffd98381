"""Errors that a user can put right: printed in a few lines, without a traceback, with exit code 2."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MAX_SHOWN_CHARACTERS = 200
KEPT = "\n\u00a0\u3000"
"""What an error's text may hold besides printable characters: line ends, and two kinds of spaces."""


class UserError(Exception):
    """Something the user gave is wrong, and this says what, where, and how to put it right.

    `what` names the fault, `got` the offending value, `where` the place (`file:line` or an example id),
    `fix` what is allowed or the command that mends it.
    """

    def __init__(self, what: str, *, got: object = None, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.got = got
        self.where = where
        self.fix = fix

    def at(self, where: str) -> "UserError":
        """Return the same error with its place filled in, where it had none yet."""
        return UserError(self.what, got=self.got, where=self.where or where, fix=self.fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  where: {self.where}")
        if self.got is not None:
            lines.append(f"  got:   {shorten(self.got)}")
        if self.fix is not None:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(visible(line, keep=KEPT) for line in lines)  # names of files and keys come from others


@contextmanager
def explaining_panics() -> Iterator[None]:
    """Turn the panic of a tokenizer's Rust code, which is no `Exception` and would end the process, into an error.

    Raises:
        UserError: in place of it.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        fix = "copy or download the model's tokenizer again, or use another one"
        raise UserError("the tokenizer's own code crashed", got=str(error), fix=fix) from error


class NotTrainable(UserError):
    """One row cannot be trained exactly; `reason` is the short name counted in reports, e.g. `too_long`."""

    def __init__(self, reason: str, what: str, *, got: object = None, fix: str | None = None) -> None:
        super().__init__(what, got=got, fix=fix)
        self.reason = reason


def shorten(value: object, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """Return `value` as one printable line of at most `limit` characters, safe to write in any encoding."""
    text = value if isinstance(value, str) else repr(value)
    text = visible(text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return advice for a misspelt `name`: the nearest known name where one is near, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    listed = "known: " + ", ".join(names)
    return f"did you mean {near[0]!r}? {listed}" if near else listed


def first_line(error: Exception | str) -> str:
    """Return the first line of an error's text that says something, or the error's kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def visible(text: str, *, keep: str = "") -> str:
    """Return text with control characters, which could drive the terminal, written as escapes; `keep` stays."""
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(ch if ch.isprintable() or ch in keep else repr(ch)[1:-1] for ch in safe)
