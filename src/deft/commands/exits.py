"""How a command ends: a command in; its exit code out, and an error of the user's in a few lines on the screen."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from cyclopts.exceptions import CycloptsError

from deft.errors import UserError, explaining_panics
from deft.language.catalogue import worded
from deft.language.errors import told

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it (128 + SIGINT)."""


def run_or_explain(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; an error of the user's is printed in a few lines, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal in GBK has no ✓
    try:
        with explaining_panics():
            command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        return explain(error)
    except CycloptsError:
        return 2  # cyclopts has printed it
    except KeyboardInterrupt:
        print("\n" + worded("interrupted"), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        if error.filename is None:
            discard_output()
        fix = "free some space, set the permissions, or choose another place"
        return explain(UserError(f"cannot write or read {error.filename or 'the output'}", got=error.strerror, fix=fix))
    return 0


def explain(error: UserError) -> int:
    """Print an error of the user's and return the exit code that it gives."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble((worded("error: "), "bold red"), told(error)), soft_wrap=True)
    return 2


def discard_output() -> None:
    """Let what is still to be printed go nowhere, because nobody reads it or it cannot be written.

    Otherwise the interpreter tries again when it ends, and prints a traceback.
    """
    if sys.stdout is not None:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
