"""`from inference import Assistant`, as in earlier versions; the class lives in `deft.serve.assistant`."""

from deft.serve.assistant import Assistant

__all__ = ["Assistant"]
