"""The parser of the old commands' flags."""

import argparse
from typing import NoReturn

from deft.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UserError(message, fix=f"python {self.prog} --help")
