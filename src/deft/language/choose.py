"""A command line and the environment go in; the language that deft is to speak comes out, and what is left to parse."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from deft.errors import UserError

Lang = Literal["en", "zh"]
LANGUAGES: tuple[Lang, ...] = get_args(Lang)
FLAG = "--lang"
VARIABLE = "DEFT_LANG"
LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")
"""The variables of the locale; the first that is set decides, as POSIX has it."""


def choose_language(tokens: Sequence[str], environment: Mapping[str, str]) -> tuple[Lang, list[str]]:
    """Return the language that a command line, else `DEFT_LANG`, else the locale asks for, and the line without it.

    A locale in any other language than Chinese gives English.

    Raises:
        UserError: if the command line or `DEFT_LANG` names a language that deft does not speak, or names none.
    """
    asked, rest = without_flag(tokens)
    source, fix = f"{FLAG} {asked}".rstrip(), "--lang en or --lang zh"
    if asked is None:
        asked = environment.get(VARIABLE) or None
        source, fix = f"{VARIABLE}={asked}", "DEFT_LANG is en or zh; unset it to leave it open"
    if asked is not None:
        for language in LANGUAGES:
            if asked == language:
                return language, rest
        raise UserError("deft does not speak this language", got=source, fix=fix)
    locale = next((environment[name] for name in LOCALE if environment.get(name)), "")
    return ("zh" if locale.lower().startswith("zh") else "en"), rest


def without_flag(tokens: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of the last `--lang VALUE` or `--lang=VALUE`, "" where it is missing, and the other tokens.

    What stands behind `--` are no flags.
    """
    end = tokens.index("--") if "--" in tokens else len(tokens)
    asked: str | None = None
    rest: list[str] = []
    flags = iter(tokens[:end])
    for token in flags:
        if token == FLAG:
            asked = next(flags, "")
        elif token.startswith(f"{FLAG}="):
            asked = token.removeprefix(f"{FLAG}=")
        else:
            rest.append(token)
    return asked, [*rest, *tokens[end:]]
