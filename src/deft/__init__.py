"""deft: find how little data each ability needs, train on exactly that, and prove it."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deft.serve.assistant import Assistant

# Where the package `kernels` is installed, transformers fetches code from a hub for layers that a model names.
os.environ.setdefault("USE_HUB_KERNELS", "NO")

__version__ = "0.1.0"
__all__ = ["Assistant", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `deft.Assistant` on first use, so that `import deft` stays light."""
    if name == "Assistant":
        from deft.serve.assistant import Assistant

        return Assistant
    raise AttributeError(f"module 'deft' has no attribute {name!r}")
