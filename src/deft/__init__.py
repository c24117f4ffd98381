"""deft: find how little data each ability needs, train on exactly that, and prove it."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deft.api import audit, evaluate_loss, train
    from deft.data.audit import Audit
    from deft.data.read import ReadResult, read_examples
    from deft.data.write import write_examples
    from deft.errors import UserError
    from deft.hub.pull import pull
    from deft.intervals import Change, paired_changes
    from deft.losses import AbilityLoss, RowLoss, losses_by_ability
    from deft.publish.export import export
    from deft.publish.merge import merge
    from deft.serve.assistant import Assistant
    from deft.training.config import TrainConfig
    from deft.training.run import TrainResult
    from deft.types import Example, Message, TokenSequence

# Where the package `kernels` is installed, transformers fetches code from a hub for layers that a model names.
os.environ.setdefault("USE_HUB_KERNELS", "NO")

__version__ = "0.1.0"

MODULES = {
    "AbilityLoss": "deft.losses",
    "Assistant": "deft.serve.assistant",
    "Audit": "deft.data.audit",
    "Change": "deft.intervals",
    "Example": "deft.types",
    "Message": "deft.types",
    "ReadResult": "deft.data.read",
    "RowLoss": "deft.losses",
    "TokenSequence": "deft.types",
    "TrainConfig": "deft.training.config",
    "TrainResult": "deft.training.run",
    "UserError": "deft.errors",
    "audit": "deft.api",
    "evaluate_loss": "deft.api",
    "export": "deft.publish.export",
    "losses_by_ability": "deft.losses",
    "merge": "deft.publish.merge",
    "paired_changes": "deft.intervals",
    "pull": "deft.hub.pull",
    "read_examples": "deft.data.read",
    "train": "deft.api",
    "write_examples": "deft.data.write",
}
"""What `deft` offers, and where it lies: imported when it is first asked for, so that `import deft` stays light."""

__all__ = [
    "AbilityLoss",
    "Assistant",
    "Audit",
    "Change",
    "Example",
    "Message",
    "ReadResult",
    "RowLoss",
    "TokenSequence",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "__version__",
    "audit",
    "evaluate_loss",
    "export",
    "losses_by_ability",
    "merge",
    "paired_changes",
    "pull",
    "read_examples",
    "train",
    "write_examples",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in MODULES:
        raise AttributeError(f"module 'deft' has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    """Return all that is offered, imported or not."""
    return sorted({*globals(), *__all__})
