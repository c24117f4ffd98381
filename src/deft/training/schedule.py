"""The learning rate over a run."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A linear rise over `warmup_ratio` of the steps, or over `warmup_steps`; then down to `end_ratio` of the start.

    `shape` is "polynomial" (of `power`), "cosine" (half a period, from its top to its bottom) or "constant".
    """

    warmup_ratio: float
    end_ratio: float
    power: float
    warmup_steps: int = 0
    shape: Literal["polynomial", "cosine", "constant"] = "polynomial"

    def factor(self, step: int, num_steps: int) -> float:
        """Return what the learning rate is multiplied by in a step, counted from 0, of a run of `num_steps`."""
        warmup_steps = self.warmup_steps or math.ceil(self.warmup_ratio * num_steps)
        if step < warmup_steps:
            return step / warmup_steps
        if self.shape == "constant":
            return 1.0
        done = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
        left = (1 + math.cos(math.pi * done)) / 2 if self.shape == "cosine" else (1 - done) ** self.power
        return self.end_ratio + (1 - self.end_ratio) * left
