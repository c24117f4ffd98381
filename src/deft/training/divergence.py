"""Stops a run whose numbers have gone wrong, before they reach the weights, and names the rows it happened on."""

import math
from collections.abc import Sequence

from deft.errors import UserError

WORSE_THAN = 2.0
"""A loss of this many times the worst sane one is no longer learning."""
FEWEST_TOKENS_JUDGED = 16
"""The loss of fewer tokens may be as high as rare words make it."""


class DivergenceWatch:
    """Knows what loss is sane: at most `WORSE_THAN` times that of even guessing, ln(vocabulary), or of the first pack.

    A model that is sure of wrong tokens is worse than one that guesses; an untrained or damaged one may begin so.
    """

    def __init__(self, vocab_size: int) -> None:
        self.worst_sane_nats = math.log(vocab_size)
        self.has_begun = False

    def check_loss(self, nats: float, *, num_tokens: int, step: int, row_ids: Sequence[str]) -> None:
        """Judge the mean loss of `num_tokens` tokens, in nats.

        Raises:
            UserError: if it is not a number, or has exploded.
        """
        if not math.isfinite(nats):
            raise diverged(f"the loss became {nats} at step {step}", row_ids)
        if num_tokens < FEWEST_TOKENS_JUDGED:
            return
        if not self.has_begun:
            self.worst_sane_nats = max(self.worst_sane_nats, nats)
            self.has_begun = True
        if nats > WORSE_THAN * self.worst_sane_nats:
            fault = f"the loss exploded to {nats:.1f} nats per token at step {step}; guessing would be better"
            raise diverged(fault, row_ids)

    def check_gradient(self, norm: float, *, step: int, row_ids: Sequence[str]) -> None:
        """Judge the norm of a step's gradient.

        Raises:
            UserError: if it is not a number.
        """
        if not math.isfinite(norm):
            raise diverged(f"the gradient became {norm} at step {step}", row_ids)


def diverged(fault: str, row_ids: Sequence[str]) -> UserError:
    """Return the error that ends a run; its last checkpoint stays."""
    listed = ", ".join(row_ids[:8]) + (f" and {len(row_ids) - 8} more" if len(row_ids) > 8 else "")
    fix = "lower learning_rate; look at these rows with `deft data show FILE --id ID`"
    return UserError(fault, got=f"rows {listed}", fix=fix)
