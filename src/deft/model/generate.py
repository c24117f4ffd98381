"""Generation: token ids of prompts in, token ids of replies out, streamed or in batches.

The reply to a row does not depend on the rows beside it where the settings are `exact`. Batching changes the last
bits of the logits (other kernels, other orders of summation), which flips the choice where two tokens are nearly
tied. So a choice whose margin is within the noise of the number format is made again from that row alone, run without
padding or cache: what a batch, a stream and a single call then decide from is the same numbers. (Rows made again
together would have such noise of their own, so only rows with the same tokens share a pass.) Randomness is seeded by
row, from the seed, the prompt, and how many equal prompts stand before it in the call.
"""

import hashlib
import inspect
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import DynamicCache, PreTrainedModel

from deft.errors import UserError
from deft.model.likelihood import base_model
from deft.model.matmul import Kernel, choose_kernel, products_by
from deft.model.sampling import Sampling, pick
from deft.model.vocabulary import check_ids

FinishReason = Literal["stop", "length", "cancelled"]

NEAR_TIE: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-3,
    torch.float16: 0.05,
    torch.bfloat16: 0.25,
}
"""The margin in logits up to which a choice is made from the row alone.

Measured on smollm2-135m (batch with cache against one row without, the 20 likeliest tokens): the differences spread
over at most 5e-5 in fp32, so the margin is 20 times that; in bf16 over 0.5, but the choices that flipped (2 of 63) were
exact ties, and a margin of two units in the last place already sends 8 % of the steps to the row alone."""

SIXTEEN_BITS = (torch.float16, torch.bfloat16)
"""The formats in which near ties are many, and are left as they fall unless asked otherwise."""

MAX_BATCH_TOKENS = 16_384
"""Tokens (prompts, padding and room for replies) that `generate` holds in the cache at a time."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reply:
    """What the model answered to one prompt.

    `token_ids` are without the stop token. `first_logits` fp32 `[vocab]`, on the CPU, are the raw logits of the
    reply's first token; empty `[0]` if they were not asked for or the row was cancelled before its first token.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    first_logits: torch.Tensor


@dataclass(kw_only=True, slots=True, eq=False)
class Row:
    """A row while it is decoded: `ids` are prompt and reply, the first `prompt_length` of them the prompt."""

    index: int
    ids: list[int]
    prompt_length: int
    randomness: torch.Generator | None
    finish_reason: FinishReason | None = None
    first_logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def reply(self) -> Reply:
        """Return what is there of the reply; a row without an end was cancelled."""
        return Reply(
            token_ids=tuple(self.ids[self.prompt_length :]),
            finish_reason=self.finish_reason or "cancelled",
            first_logits=self.first_logits,
        )


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_token_ids: Collection[int],
    settings: Sampling,
    on_token: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    keep_first_logits: bool = False,
) -> list[Reply]:
    """Answer every prompt, in their order; prompts of any mix of lengths.

    `on_token(prompt index, token id)` is called for each token of a reply as it is chosen. `should_stop` is asked
    before each step; once true, what is unfinished ends as "cancelled". Prompts are decoded in batches of at most
    `max_batch_tokens` (and at least one row), which changes speed and memory, and no reply that is `exact`.
    `keep_first_logits` keeps those of each reply's first token.

    Raises:
        UserError: if a prompt is empty, or with its reply longer than the model's positions reach.
    """
    rows = start_rows(model, prompts, settings)
    stop = should_stop or (lambda: False)
    with evaluating(model):
        for batch in batches_by_tokens(rows, settings.max_new_tokens, max_batch_tokens):
            for row, token in decode(
                model,
                batch,
                settings,
                stop_token_ids=frozenset(stop_token_ids),
                should_stop=stop,
                keep_first_logits=keep_first_logits,
            ):
                if on_token is not None:
                    on_token(row.index, token)
    return [row.reply() for row in rows]


def stream(
    model: PreTrainedModel,
    prompt: Sequence[int],
    *,
    stop_token_ids: Collection[int],
    settings: Sampling,
    cancel: threading.Event | None = None,
) -> Generator[int, None, Reply]:
    """Yield the tokens that `generate` would return for this prompt, one by one; the generator returns the `Reply`.

    Closing the generator, or setting `cancel`, ends it before the next token is computed.

    Raises:
        UserError: as `generate` does, before the first token.
    """
    [row] = start_rows(model, [prompt], settings)
    stop = cancel.is_set if cancel is not None else (lambda: False)
    with evaluating(model):
        for _, token in decode(model, [row], settings, stop_token_ids=frozenset(stop_token_ids), should_stop=stop):
            yield token
    return row.reply()


def position_limit(model: PreTrainedModel) -> int | None:
    """Return how many tokens the model's positions reach, or None if its configuration sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def start_rows(model: PreTrainedModel, prompts: Sequence[Sequence[int]], settings: Sampling) -> list[Row]:
    """Check the prompts and make a row of each, with its own randomness."""
    limit = position_limit(model)
    seed = secrets.randbits(63) if settings.seed is None else settings.seed
    rows = []
    num_met: Counter[tuple[int, ...]] = Counter()
    for index, prompt in enumerate(prompts):
        ids = [int(token) for token in prompt]
        if not ids:
            raise UserError("a prompt has no tokens", where=f"prompt {index + 1}", fix="give at least one token")
        check_ids(model, ids, where=f"prompt {index + 1}")
        if limit is not None and len(ids) + settings.max_new_tokens > limit:
            raise UserError(
                f"prompt and reply do not fit into the model's {limit} positions",
                got=f"{len(ids)} prompt tokens + max_new_tokens {settings.max_new_tokens}",
                where=f"prompt {index + 1}",
                fix="shorten the prompt, or lower max_new_tokens",
            )
        repetition = num_met[tuple(ids)]
        num_met[tuple(ids)] += 1
        randomness = row_randomness(seed, ids, repetition, model.device) if settings.temperature > 0 else None
        rows.append(Row(index=index, ids=ids, prompt_length=len(ids), randomness=randomness))
    return rows


def row_randomness(seed: int, ids: Sequence[int], repetition: int, device: torch.device) -> torch.Generator:
    """Return a generator seeded by `seed`, the tokens of one prompt and which of its repetitions it is (from 0)."""
    text = f"{seed}:{','.join(map(str, ids))}" + (f":{repetition}" if repetition else "")
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def batches_by_tokens(rows: Sequence[Row], max_new_tokens: int, max_batch_tokens: int) -> Iterator[list[Row]]:
    """Split rows, longest first so that little is padding, into batches of at most `max_batch_tokens`."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: -row.prompt_length):
        longest = (batch[0] if batch else row).prompt_length + max_new_tokens
        if batch and (len(batch) + 1) * longest > max_batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off while the context is open."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def decode(
    model: PreTrainedModel,
    rows: list[Row],
    settings: Sampling,
    *,
    stop_token_ids: Collection[int],
    should_stop: Callable[[], bool],
    keep_first_logits: bool = False,
) -> Iterator[tuple[Row, int]]:
    """Decode one batch, yielding each token that joins a reply; rows that end leave the batch."""
    if should_stop():
        return
    batch = Batch(model, rows, settings)
    while True:
        logits = batch.forward()
        if keep_first_logits and len(batch.rows[0].ids) == batch.rows[0].prompt_length:
            for row, row_logits in zip(batch.rows, logits.cpu().unbind(), strict=True):
                row.first_logits = row_logits.clone()
        going_on = []
        for place, token in enumerate(batch.choose(logits)):
            row = batch.rows[place]
            if token in stop_token_ids:
                row.finish_reason = "stop"
                continue
            row.ids.append(token)
            if len(row.ids) - row.prompt_length == settings.max_new_tokens:
                row.finish_reason = "length"
            else:
                going_on.append(place)
            yield row, token
        if not going_on or should_stop():
            return
        batch.advance(going_on)


class Batch:
    """Rows decoded together: their cache, left-padded so that all end at the same place, and its mask.

    `input_ids` and `position_ids` int64 [rows, new tokens] are what the next forward pass reads; `mask` int64
    [rows, all tokens] is 0 on padding. It is made from lengths: the padding token may be a token of the text.
    """

    def __init__(self, model: PreTrainedModel, rows: list[Row], settings: Sampling) -> None:
        self.model, self.rows, self.settings = model, rows, settings
        width = max(len(row.ids) for row in rows)
        padding = torch.tensor([[width - len(row.ids)] for row in rows])
        self.mask = (torch.arange(width)[None] >= padding).long().to(model.device)
        self.position_ids = (torch.arange(width)[None] - padding).clamp(min=0).to(model.device)
        self.input_ids = torch.tensor([[0] * (width - len(row.ids)) + row.ids for row in rows], device=model.device)
        self.cache = DynamicCache(config=model.config)
        self.parameters = inspect.signature(base_model(model).forward).parameters
        spread = max(settings.repetition_penalty, 1 / settings.repetition_penalty)
        self.tolerance = NEAR_TIE.get(model.dtype, NEAR_TIE[torch.bfloat16]) * spread
        self.kernels: dict[int, Kernel] = {}
        self.exact = settings.exact if settings.exact is not None else model.dtype not in SIXTEEN_BITS

    def forward(self) -> torch.Tensor:
        """Run the model on what is new and return the logits of each row's next token, fp32 [rows, vocab]."""
        cache_name = "cache" if "cache" in self.parameters else "past_key_values"  # before transformers 5.24
        return self.run(self.input_ids, self.mask, self.position_ids, use_cache=True, **{cache_name: self.cache})

    @torch.no_grad()
    def run(
        self, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """Call the model with the arguments it knows and return the logits of the last position."""
        optional = {"position_ids": position_ids, "logits_to_keep": 1}
        known = {name: value for name, value in optional.items() if name in self.parameters}
        with products_by(self.kernel(input_ids.numel())):
            return self.model(input_ids=input_ids, attention_mask=mask, **known, **options).logits[:, -1].float()

    def kernel(self, num_tokens: int) -> Kernel:
        """Return the kernel for the products of a pass over so many tokens: a prompt's many, or a token a row."""
        if num_tokens not in self.kernels:
            self.kernels[num_tokens] = choose_kernel(self.model, num_tokens).kernel
        return self.kernels[num_tokens]

    def alone(self, row: Row) -> torch.Tensor:
        """Return the logits of one row's next token, computed from that row only, fp32 [1, vocab]."""
        ids = torch.tensor([row.ids], device=self.model.device)
        positions = torch.arange(len(row.ids), device=self.model.device)[None]
        return self.run(ids, torch.ones_like(ids), positions, use_cache=False)

    def choose(self, logits: torch.Tensor) -> list[int]:
        """Choose each row's next token; a near tie is settled by the row alone, if that is asked for."""
        noise = self.noise(logits)
        seen = self.seen(self.rows, logits)
        tokens, settled = pick(logits, seen, noise, self.settings, self.tolerance)
        chosen = tokens.tolist()
        if not self.exact:
            return chosen
        made_again: dict[tuple[int, ...], torch.Tensor] = {}
        for place in (~settled).nonzero().flatten().tolist():
            row_noise = None if noise is None else noise[place : place + 1]
            row_seen = None if seen is None else seen[place : place + 1]
            ids = tuple(self.rows[place].ids)
            if ids not in made_again:
                made_again[ids] = self.alone(self.rows[place])
            token, _ = pick(made_again[ids], row_seen, row_noise, self.settings, 0.0)
            chosen[place] = int(token)
        return chosen

    def noise(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Draw each row's Gumbel noise [rows, vocab] from its own generator; None when greedy."""
        if self.settings.temperature == 0.0:
            return None
        exponential = torch.empty_like(logits)
        for place, row in enumerate(self.rows):
            exponential[place].exponential_(generator=row.randomness)
        return -exponential.log()

    def seen(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor | None:
        """Mark the tokens each row already holds, bool [rows, vocab]; None without a repetition penalty."""
        if self.settings.repetition_penalty == 1.0:
            return None
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        for place, row in enumerate(rows):
            seen[place, row.ids] = True
        return seen.to(logits.device)

    def advance(self, going_on: list[int]) -> None:
        """Keep the rows at the places `going_on`, whose last token is what the next pass reads."""
        device = self.mask.device
        if len(going_on) < len(self.rows):
            places = torch.tensor(going_on, device=device)
            self.cache.reorder_cache(places)  # type: ignore[arg-type]  # annotated as a LongTensor
            self.mask, self.position_ids = self.mask[places], self.position_ids[places]
            self.rows = [self.rows[place] for place in going_on]
        self.input_ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=device)
        self.position_ids = self.position_ids[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
