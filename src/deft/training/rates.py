"""Learning rates that a run gets where it names none: by what is trained, and by the size of the model.

Every weight: 2e-5 for models of 1 to 10 billion parameters (Alpaca, 2023, 7B), 1e-5 above (the same, 13B; and the
project that deft began from), 5e-5 below (the default of transformers). Adapters: 2e-4 up to 30 billion and 1e-4 above
(Dettmers et al. 2023, QLoRA, arXiv 2305.14314, table 9); below one billion 5e-4, ten times the rate of full
fine-tuning, as Schulman et al. 2025 (LoRA Without Regret) found it to be for LoRA of any rank.
"""

from dataclasses import replace

from deft.training.config import TrainConfig, require

END_RATIO = 0.1
"""The last learning rate over the first, where only the first is known."""

FULL = ((1e9, 5e-5), (10e9, 2e-5), (float("inf"), 1e-5))
ADAPTERS = ((1e9, 5e-4), (30e9, 2e-4), (float("inf"), 1e-4))


def default_rate(method: str, num_parameters: float) -> float:
    """Return the learning rate for training a model of so many parameters by a method."""
    table = FULL if method == "full" else ADAPTERS
    return next(rate for limit, rate in table if num_parameters < limit)


def with_rates(config: TrainConfig, num_parameters: float) -> TrainConfig:
    """Return the settings with both learning rates in them.

    Raises:
        UserError: if the last one that was given is above the first.
    """
    first = config.learning_rate
    if first is None:
        first = default_rate(config.method, num_parameters)
    last = config.end_learning_rate
    if last is None:
        last = first if config.lr_schedule == "constant" else first * END_RATIO
    require(0 <= last <= first, "end_learning_rate", last, f"between 0 and learning_rate ({first:g})")
    return replace(config, learning_rate=first, end_learning_rate=last)
