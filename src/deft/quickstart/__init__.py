"""The whole path in one command, on the example data: audit, measure, fine-tune, measure again, report."""

from deft.quickstart.job import quickstart

__all__ = ["quickstart"]
