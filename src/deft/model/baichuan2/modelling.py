"""Baichuan2's decoder and its causal language model, in the names of the official checkpoints.

In: token ids, or embeddings. Out: hidden states, logits, a loss. Attention goes through transformers' interface under
every name (eager, sdpa, flash where there is no ALiBi, deft's row by row); the cache is any of transformers'.
Shapes are written `[batch, length, …]`; a cache adds its keys in front of `length`.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from deft.errors import UserError
from deft.model.alibi import Alibi
from deft.model.attention import ROWS_APART
from deft.model.baichuan2.configuration import Baichuan2Config
from deft.model.baichuan2.masks import (
    BY_SCORES,
    additive,
    alibi_mask,
    check_alibi,
    numbers_rows,
    rotary_mask,
    score_dtype,
    visible,
)
from deft.model.baichuan2.norm_head import DirectionHead, keep_normalising

CACHE_FIELD = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls the cache in a model's output; the name changed within version 5."""


class Rotary:
    """Cosine and sine of each token's rotary angles, fp32 `[batch, 1, length, head_dim]` (Su et al. 2021).

    An object and no pair of tensors, so that mixed precision, which casts the tensors that a layer is given, leaves
    them in fp32.
    """

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self.cos, self.sin = cos, sin

    @classmethod
    def at(cls, position_ids: torch.Tensor, *, theta: float, head_dim: int) -> "Rotary":
        """Return the angles at `position_ids` int64 [batch, length]: position / theta^(2i / head_dim)."""
        powers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
        angles = position_ids[..., None].float() * (1.0 / theta**powers)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return cls(angles.cos(), angles.sin())

    def to(self, device: torch.device, non_blocking: bool = False) -> "Rotary":
        """Return the same on another device, as accelerate asks for where layers are spread over several."""
        return Rotary(self.cos.to(device, non_blocking=non_blocking), self.sin.to(device, non_blocking=non_blocking))

    def rotate(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotate `heads` `[batch, heads, length, head_dim]`; the first half of a head is paired with the second."""
        exact = heads.float()
        first, second = exact.chunk(2, dim=-1)
        return (exact * self.cos + torch.cat([-second, first], dim=-1) * self.sin).to(heads.dtype)


class BaichuanRMSNorm(nn.Module):
    """Division by the root mean square, computed in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Keep the shape and dtype of `hidden` `[…, hidden]`."""
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * exact.to(hidden.dtype)


class BaichuanMLP(nn.Module):
    """The gated feed-forward layer: down(act(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, config: Baichuan2Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Keep the shape of `hidden` `[…, hidden]`."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend step by step, so that the weights can be looked at; `attention_mask` is added to the scores.

    Shapes: `query`, `key`, `value` `[batch, heads, length, head_dim]`; the results `[batch, length, heads, head_dim]`
    and `[batch, heads, length, keys]`.
    """
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class BaichuanAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from one matrix, `W_pack` `[3 · hidden, hidden]`."""

    def __init__(self, config: Baichuan2Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        rotary: Rotary | None = None,
        cache: Cache | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attention's output, shaped as `hidden` `[batch, length, hidden]`, and its weights if there are."""
        batch, length, _ = hidden.shape
        packed = self.W_pack(hidden).view(batch, length, 3, -1, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            query, key = rotary.rotate(query), rotary.rotate(key)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        mixed, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **options)
        return self.o_proj(mixed.reshape(batch, length, -1)), weights


class BaichuanLayer(GradientCheckpointingLayer):
    """One layer of the decoder: attention, then the feed-forward layer, each on normalised input and added to it."""

    def __init__(self, config: Baichuan2Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer_idx)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: torch.Tensor, **attention: Any) -> torch.Tensor:
        """Keep the shape of `hidden` `[batch, length, hidden]`; `attention` is what `BaichuanAttention` takes."""
        mixed, _ = self.self_attn(self.input_layernorm(hidden), **attention)
        hidden = hidden + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class BaichuanPreTrainedModel(PreTrainedModel):
    """What transformers, peft, accelerate and DeepSpeed ask about the architecture."""

    config_class = Baichuan2Config
    config: Baichuan2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": BaichuanLayer, "attentions": BaichuanAttention}  # noqa: RUF012


class BaichuanModel(BaichuanPreTrainedModel):
    """The decoder: embeddings, layers, final norm."""

    def __init__(self, config: Baichuan2Config) -> None:
        super().__init__(config)
        if config.position_embedding == "alibi":
            check_alibi(config._attn_implementation)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([BaichuanLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        *,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states `[batch, length, hidden]`, and the cache if one is used.

        `attention_mask` is 2-D (0 is padding; numbers above 1 tell rows of one sequence apart) or a 4-D mask that is
        passed on. `cache` and `past_key_values` are one argument under its new and its old name.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            cache = None  # a layer that is run again would enter its keys twice
        elif use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        self.warn_beyond_training(hidden.shape[1], cache, position_ids, attention_mask, options.get("row_lengths"))
        if self.config.position_embedding == "alibi":
            attention = self.biased(hidden, attention_mask, cache, position_ids)
        else:
            attention = self.rotated(hidden, attention_mask, cache, position_ids)
        for layer in self.layers:
            hidden = layer(hidden, cache=cache, **attention, **options)
        kept: dict[str, Any] = {CACHE_FIELD: cache}
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), **kept)

    def biased(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        position_ids: torch.Tensor | None,
    ) -> dict[str, Any]:
        """Return what the layers of an ALiBi model take: the biases row by row, or one bias for the whole sequence."""
        check_alibi(self.config._attn_implementation)
        alibi = Alibi(self.config.num_attention_heads, hidden.device)
        if self.config._attn_implementation == ROWS_APART:
            return {"alibi": alibi}
        return {"attention_mask": alibi_mask(alibi, hidden, attention_mask, cache, position_ids)}

    def rotated(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        position_ids: torch.Tensor | None,
    ) -> dict[str, Any]:
        """Return what the layers of a RoPE model take: the tokens' angles, and the mask.

        Raises:
            UserError: if rows are told apart by their numbers and the attention function takes no such mask.
        """
        queries = hidden.shape[1]
        past = cache.get_seq_length() if cache is not None else 0
        if queries > 1 and attention_mask is not None and numbers_rows(attention_mask):
            if self.config._attn_implementation not in BY_SCORES:
                fix = (
                    "load the model with attn_implementation sdpa, or give position_ids that start again with each row"
                )
                got = self.config._attn_implementation
                raise UserError("that attention function cannot tell rows apart by their numbers", got=got, fix=fix)
            keys = cache.get_mask_sizes(queries, 0)[0] if cache is not None else queries
            seen = visible(attention_mask.to(hidden.device), queries, keys, past)
            mask: torch.Tensor | None = additive(seen, score_dtype(hidden))
            if position_ids is None:
                position_ids = (seen.sum(dim=-1) - 1).clamp(min=0).squeeze(1)
        else:
            mask = rotary_mask(self.config, hidden, attention_mask, cache, position_ids)
            if position_ids is None:
                position_ids = (torch.arange(queries, device=hidden.device) + past)[None]
        rotary = Rotary.at(position_ids, theta=self.config.rope_theta, head_dim=self.config.head_dim)
        return {"attention_mask": mask, "rotary": rotary}

    def warn_beyond_training(
        self,
        length: int,
        cache: Cache | None,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        row_lengths: Any,
    ) -> None:
        """Warn if tokens are at positions that the model was not trained on; with ALiBi there are none such."""
        limit = self.config.max_position_embeddings
        past = cache.get_seq_length() if cache is not None else 0
        if self.config.position_embedding == "alibi" or limit is None or not isinstance(past, int):
            return
        if past + length <= limit or numbers_rows(attention_mask):
            return
        if row_lengths is not None:
            longest = max(row_lengths)
        else:
            longest = past + length if position_ids is None else int(position_ids.max()) + 1
        if longest > limit:
            message = f"{longest} tokens are more than the {limit} this model was trained on: expect nonsense beyond"
            warnings.warn(message, stacklevel=2)


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    """The language model: the decoder and its normalised head. Its name is the one that checkpoints carry."""

    _tied_weights_keys = {}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]  # noqa: RUF012

    def __init__(self, config: Baichuan2Config) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = DirectionHead(config.hidden_size, config.vocab_size)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Take another head, such as one for more tokens; it normalises as the old one did."""
        self.lm_head = keep_normalising(new_embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits `[batch, kept, vocab]`, and the mean loss if there are `labels` `[batch, length]`.

        `logits_to_keep` is how many positions at the end get logits (0: all), or the positions that do, int64 [kept].
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=past_key_values if cache is None else cache,
            **options,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options)
            if self.config.z_loss_weight:
                largest = logits[:, :-1].float().amax(dim=-1)
                loss = loss + self.config.z_loss_weight * largest.square().mean()
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_FIELD: getattr(outputs, CACHE_FIELD)},
        )
