"""Keep transformers' progress bars and warnings off the screen, and control characters out of its log."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deft.errors import visible

if TYPE_CHECKING:
    from logging import LogRecord


def shown_safely(record: "LogRecord") -> bool:
    """Let a line of transformers' log pass, its control characters, which come from checkpoints, as escapes."""
    record.msg, record.args = visible(record.getMessage(), keep="\n"), ()
    return True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the screen; its errors still show."""
    from transformers.utils import logging

    for handler in logging.get_logger("transformers").handlers:
        handler.addFilter(shown_safely)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
