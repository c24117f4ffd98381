"""The choice of the next token: logits in; out, a token per row, and whether the choice stands.

A choice that could turn out otherwise if the logits were off by the noise of their number format does not stand;
`generate` then makes it from the row alone.
"""

import math
from dataclasses import dataclass

import torch

from deft.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How each next token is chosen; temperature 0 takes the likeliest (greedy).

    The order is that of transformers: `repetition_penalty` (over prompt and reply; Keskar et al. 2019, section 4.1),
    temperature, `top_k` (0 = all), then `top_p` of what is left. `seed` None draws a fresh seed for each call; with a
    seed, equal calls get equal replies, and each of several equal prompts in one call gets a sample of its own.

    `exact` makes a near tie again from the row alone, so that a reply does not depend on the rows beside it; None does
    so in 32 and 64 bits, not in 16, where one choice in twelve is that near and each costs a whole pass.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    exact: bool | None = None

    def __post_init__(self) -> None:
        check_number("max_new_tokens", self.max_new_tokens, whole=True, least=1)
        check_number("temperature", self.temperature, least=0.0)
        check_number("top_p", self.top_p, above=0.0, most=1.0)
        check_number("top_k", self.top_k, whole=True, least=0)
        check_number("repetition_penalty", self.repetition_penalty, above=0.0)
        if self.seed is not None:
            check_number("seed", self.seed, whole=True, least=0)
        if self.exact is not None and not isinstance(self.exact, bool):
            raise UserError("exact must be true or false", got=self.exact, fix="change it, or leave it out")
        if self.temperature == 0.0:
            for name, neutral in (("top_p", 1.0), ("top_k", 0)):
                if getattr(self, name) != neutral:
                    raise UserError(
                        f"temperature 0 always takes the likeliest token, so {name} could do nothing",
                        got=f"{name}={getattr(self, name)}",
                        fix=f"set a temperature above 0, or leave {name} at {neutral}",
                    )


def check_number(
    name: str,
    value: object,
    *,
    whole: bool = False,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> None:
    """Check that a setting is a finite number within its range.

    Raises:
        UserError: naming the setting and what it may be.
    """
    bounds = {"at least": least, "above": above, "at most": most}
    kind = "a whole number" if whole else "a number"
    allowed = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if (
        not right_type
        or not math.isfinite(value)  # type: ignore[arg-type]
        or (least is not None and value < least)  # type: ignore[operator]
        or (above is not None and value <= above)  # type: ignore[operator]
        or (most is not None and value > most)  # type: ignore[operator]
    ):
        raise UserError(f"{name} must be {kind} {allowed}", got=value, fix="change it, or leave it out")


def pick(
    logits: torch.Tensor,
    seen: torch.Tensor | None,
    noise: torch.Tensor | None,
    settings: Sampling,
    tolerance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token per row, and say which choices stand if every logit may be off by half the `tolerance`.

    Sampling takes the largest of logit/temperature + Gumbel noise (Gumbel 1954), so that like greedy choice it is one
    comparison, with one margin. Tokens that top-k and top-p may keep count as rivals; a winner that they may leave
    out does not stand.

    Shapes: `logits` [rows, vocab]; the results int64 [rows] and bool [rows].
    """
    scores = logits
    if seen is not None:
        penalty = settings.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if noise is None:
        top = scores.topk(2, dim=-1)
        return top.indices[:, 0], top.values[:, 0] - top.values[:, 1] > tolerance
    scores = scores / settings.temperature
    tolerance = tolerance / settings.temperature
    perturbed = scores + noise
    truncates = settings.top_k > 0 or settings.top_p < 1.0
    if truncates:
        likeliest = scores.topk(min(settings.top_k or scores.shape[-1], scores.shape[-1]), dim=-1).values
        smallest = smallest_kept(likeliest, settings.top_p, tolerance)
        perturbed = perturbed.masked_fill(scores < smallest - tolerance, -math.inf)
    top = perturbed.topk(2, dim=-1)
    winner, settled = top.indices[:, 0], top.values[:, 0] - top.values[:, 1] > tolerance
    if truncates:
        settled &= surely_kept(scores, likeliest, winner, settings, tolerance)
    return winner, settled


def smallest_kept(likeliest: torch.Tensor, top_p: float, tolerance: float) -> torch.Tensor:
    """Return the smallest score [rows, 1] that `top_p`, moved up by the tolerance, keeps of those that top-k left.

    `likeliest` [rows, kept by top-k] are in descending order; the first always stays.
    """
    shares = likeliest.softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares
    kept = (before < moved(top_p, tolerance)).sum(dim=-1, keepdim=True).clamp(min=1)
    return likeliest.gather(1, kept - 1)


def surely_kept(
    scores: torch.Tensor, likeliest: torch.Tensor, winner: torch.Tensor, settings: Sampling, tolerance: float
) -> torch.Tensor:
    """Say which winners top-k and top-p keep whatever the order within the tolerance is, bool [rows]."""
    before = scores > scores.gather(1, winner[:, None]) - tolerance
    before.scatter_(1, winner[:, None], False)
    kept = torch.ones_like(winner, dtype=torch.bool)
    if settings.top_k > 0:
        kept &= before.sum(dim=-1) < settings.top_k
    if settings.top_p < 1.0:
        shares = (scores - likeliest.logsumexp(dim=-1, keepdim=True)).exp()
        kept &= (shares * before).sum(dim=-1) < moved(settings.top_p, -tolerance)
    return kept


def moved(share: float, tolerance: float) -> float:
    """Return how large a share of probability may become: a change of every score within t moves its odds by e^t."""
    if share == 1.0:
        return 1.0 + 1e-6  # rounding in a running sum leaves nothing out
    odds = share / (1 - share) * math.exp(min(max(tolerance, -50.0), 50.0))
    return odds / (1 + odds)
