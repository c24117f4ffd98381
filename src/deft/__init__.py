"""deft: find how little data each ability needs, train on exactly that, and prove it.

The whole path from Python, each name imported when it is first used:

    read_examples, write_examples, hold_out    rows of files, in any known format
    audit, leaks                               what is in them, and what speaks against training on them
    pull                                       a model, by its short name or hub id
    TrainConfig, train                         fine-tune it
    evaluate_loss, paired_changes              measure it, and what changed, with intervals
    Assistant                                  talk to it
    merge, export                              publish it

`examples/walkthrough.py` goes this way from top to bottom.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

from deft.registry import resolve

if TYPE_CHECKING:
    from deft.api import audit, train
    from deft.data.audit import AbilityAudit, Audit, leaks
    from deft.data.hold_out import hold_out
    from deft.data.read import ReadResult, read_examples
    from deft.data.write import write_examples
    from deft.errors import UserError
    from deft.evaluation.measure import LossResult, evaluate_loss
    from deft.hub.pull import pull
    from deft.intervals import Change, MeanLoss, paired_changes
    from deft.losses import RowLoss
    from deft.publish.export import ExportResult, export
    from deft.publish.merge import merge
    from deft.serve.assistant import Assistant
    from deft.training.config import TrainConfig
    from deft.training.run import TrainResult
    from deft.types import Dropped, Example, Message, TokenSequence

# Where the package `kernels` is installed, transformers fetches code from a hub for layers that a model names.
os.environ.setdefault("USE_HUB_KERNELS", "NO")

__version__ = "0.1.0"

PLACES = {
    "AbilityAudit": "deft.data.audit:AbilityAudit",
    "Assistant": "deft.serve.assistant:Assistant",
    "Audit": "deft.data.audit:Audit",
    "Change": "deft.intervals:Change",
    "Dropped": "deft.types:Dropped",
    "Example": "deft.types:Example",
    "ExportResult": "deft.publish.export:ExportResult",
    "LossResult": "deft.evaluation.measure:LossResult",
    "MeanLoss": "deft.intervals:MeanLoss",
    "Message": "deft.types:Message",
    "ReadResult": "deft.data.read:ReadResult",
    "RowLoss": "deft.losses:RowLoss",
    "TokenSequence": "deft.types:TokenSequence",
    "TrainConfig": "deft.training.config:TrainConfig",
    "TrainResult": "deft.training.run:TrainResult",
    "UserError": "deft.errors:UserError",
    "audit": "deft.api:audit",
    "evaluate_loss": "deft.evaluation.measure:evaluate_loss",
    "export": "deft.publish.export:export",
    "hold_out": "deft.data.hold_out:hold_out",
    "leaks": "deft.data.audit:leaks",
    "merge": "deft.publish.merge:merge",
    "paired_changes": "deft.intervals:paired_changes",
    "pull": "deft.hub.pull:pull",
    "read_examples": "deft.data.read:read_examples",
    "train": "deft.api:train",
    "write_examples": "deft.data.write:write_examples",
}
"""What `deft` offers, and where it lies; what a type checker and an editor see of it is imported above."""

__all__ = [
    "AbilityAudit",
    "Assistant",
    "Audit",
    "Change",
    "Dropped",
    "Example",
    "ExportResult",
    "LossResult",
    "MeanLoss",
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
    "hold_out",
    "leaks",
    "merge",
    "paired_changes",
    "pull",
    "read_examples",
    "train",
    "write_examples",
]

if not TYPE_CHECKING:  # a checker that saw this would let any name pass

    def __getattr__(name: str) -> Any:
        """Import what is offered by this name, and keep it."""
        if name not in PLACES:
            raise AttributeError(f"module 'deft' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        globals()[name] = resolve(PLACES, name, kind="name")
        return globals()[name]


def __dir__() -> list[str]:
    """Return all names, those that are offered and not yet imported too."""
    return sorted({*globals(), *__all__})
