"""The page's password: from the environment, a file, a prompt, or the command line, where others can read it."""

import getpass
import os
import sys
from pathlib import Path

from deft.errors import UserError

PASSWORD_VARIABLE = "DEFT_PASSWORD"
MAX_PASSWORD_CHARACTERS = 1024


def find_password(given: str | None, file: Path | None, *, needed: bool) -> str | None:
    """Return the page's password, or None where there is none.

    `given` stood on the command line, and is warned of. Without `given` and `file` it is taken from $DEFT_PASSWORD,
    or, if the page is `needed` to have one, asked for at a terminal.

    Raises:
        UserError: if it is given twice, empty or too long, or its file cannot be read.
    """
    if given is not None and file is not None:
        raise UserError("the password is given twice", fix="leave --password out")
    if given is not None:
        given = checked(given)
        print(
            "note: others on this computer can read --password in the list of processes; "
            f"better: {PASSWORD_VARIABLE} in the environment, --password_file, or the prompt",
            file=sys.stderr,
        )
        return given
    if file is not None:
        return checked(first_line(file), where=str(file))
    if (found := os.environ.get(PASSWORD_VARIABLE)) is not None:
        return checked(found, where=f"${PASSWORD_VARIABLE}")
    if needed and sys.stdin is not None and sys.stdin.isatty():
        return checked(getpass.getpass("password for the page: "))
    return None


def first_line(file: Path) -> str:
    """Return the first line of a file without its end."""
    try:
        with file.expanduser().open(encoding="utf-8-sig") as stream:
            return stream.readline(MAX_PASSWORD_CHARACTERS + 2).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        fix = "a text file with the password as its first line"
        raise UserError("cannot read the password file", got=reason, where=str(file), fix=fix) from error


def checked(password: str, *, where: str | None = None) -> str:
    """Return a password that can be used."""
    if not password.strip():
        raise UserError("the password is empty", where=where, fix="give one, or leave the option out")
    if len(password) > MAX_PASSWORD_CHARACTERS:
        raise UserError(
            f"the password is longer than {MAX_PASSWORD_CHARACTERS} characters", where=where, fix="a shorter one"
        )
    return password
