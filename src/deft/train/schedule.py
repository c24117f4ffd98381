"""The learning rate over a run."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A linear rise over `warmup_ratio` of the steps, then a polynomial of `power` down to `end_ratio` of the start."""

    warmup_ratio: float
    end_ratio: float
    power: float

    def factor(self, step: int, num_steps: int) -> float:
        """Return what the learning rate is multiplied by in a step, counted from 0, of a run of `num_steps`."""
        warmup_steps = math.ceil(self.warmup_ratio * num_steps)
        if step < warmup_steps:
            return step / warmup_steps
        done = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
        return self.end_ratio + (1 - self.end_ratio) * (1 - done) ** self.power
