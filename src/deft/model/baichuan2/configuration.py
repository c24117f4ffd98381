"""The `config.json` of Baichuan2 in both official layouts, and what tells them from Baichuan 1.

In: the values of a file. Out: a `Baichuan2Config`, or a `UserError` for a model of the first generation. The official
7B and 13B are of one model type and one architecture name; the 7B rotates queries and keys (RoPE) and names
`max_position_embeddings`, the 13B biases attention by distance (ALiBi) and names only `model_max_length`. What deft
writes says it outright in `position_embedding`, a key that other engines pass over.
"""

from typing import Any, ClassVar, Literal, get_args

from transformers import PreTrainedConfig

from deft.errors import UserError

PositionEmbedding = Literal["rope", "alibi"]
MODEL_TYPE = "baichuan"

VOCABULARY_SIZE = 125_696
BAICHUAN1_VOCABULARY_SIZE = 64_000
BAICHUAN1_ARCHITECTURE = "BaiChuanForCausalLM"
"""Of Baichuan-7B, with a large C; all later models write a small one."""

ARCHITECTURE = "BaichuanForCausalLM"
"""What vLLM (up to 0.23, the last with Baichuan) and LMDeploy know both layouts by; vLLM tells them by their width."""

NOT_IN_EVERY_LAYOUT = ("max_position_embeddings", "rope_parameters")


class Baichuan2Config(PreTrainedConfig):
    """Shape and settings of a Baichuan2 model; the defaults are those of the official 13B.

    `position_embedding` None is "rope" where `max_position_embeddings` is set, else "alibi". `z_loss_weight` counts
    in the loss of `BaichuanForCausalLM(labels=…)` alone: deft trains on the likelihood of the supervised tokens.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    # The rows of W_pack are queries, keys and values, so a share of them is no share of the heads: they are gathered.
    base_model_tp_plan: ClassVar[dict[str, Any]] = {
        "layers.*.self_attn.W_pack": "colwise_gather_output",
        "layers.*.self_attn.o_proj": "rowwise_split_input",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan: ClassVar[dict[str, Any]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = VOCABULARY_SIZE
    hidden_size: int = 5120
    intermediate_size: int = 13_696
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    hidden_act: str = "silu"
    model_max_length: int = 4096
    max_position_embeddings: int | None = None
    position_embedding: PositionEmbedding | None = None
    rope_parameters: dict[str, Any] | None = None
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    z_loss_weight: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        """Settle what the file leaves open, and enter the model with the Auto classes, which may be asked for it now.

        Raises:
            UserError: if the values are of Baichuan 1, contradict each other, or ask for what deft cannot compute.
        """
        if self.position_embedding is None:
            refuse_baichuan1(self.vocab_size, self.architectures or ())
            self.position_embedding = "alibi" if self.max_position_embeddings is None else "rope"
        # Names of code files that do not come along would send other loaders looking for them; a name with its
        # repository still leads there.
        remote = {name: code for name, code in (kwargs.pop("auto_map", None) or {}).items() if "--" in str(code)}
        if remote:
            kwargs["auto_map"] = remote
        super().__post_init__(**kwargs)
        if self.position_embedding == "alibi":
            self.rope_parameters = None
        self.check()

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the values that are written to `config.json`: as in the official files, nothing stands for nothing."""
        values = super().to_diff_dict()
        return {key: value for key, value in values.items() if key not in NOT_IN_EVERY_LAYOUT or value is not None}

    @property
    def head_dim(self) -> int:
        """The width of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rope_theta(self) -> float:
        """The base of the rotary frequencies (Su et al. 2021, section 3.2.2)."""
        return float((self.rope_parameters or {}).get("rope_theta", 10_000.0))

    def check(self) -> None:
        """Check that the model can be computed as described.

        Raises:
            UserError: naming the setting at fault.
        """
        positions, fix = get_args(PositionEmbedding), "copy or download config.json again"
        if self.position_embedding not in positions:
            allowed = "write one of: " + ", ".join(positions)
            raise UserError("unknown position_embedding in config.json", got=self.position_embedding, fix=allowed)
        if self.position_embedding == "rope" and self.max_position_embeddings is None:
            raise UserError("config.json says rope, but names no max_position_embeddings", fix=fix)
        if self.hidden_size % self.num_attention_heads:
            got = f"{self.hidden_size} / {self.num_attention_heads}"
            raise UserError("hidden_size is not a multiple of num_attention_heads", got=got, fix=fix)
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        if rope_type != "default":
            fix = "take rope_scaling out of config.json; the context is then max_position_embeddings"
            raise UserError("deft computes Baichuan2 with unscaled rotary positions", got=rope_type, fix=fix)
        if self.tie_word_embeddings:
            raise UserError("Baichuan2's head is not its embedding", got="tie_word_embeddings true", fix=fix)


def refuse_baichuan1(vocab_size: int, architectures: Any) -> None:
    """Refuse a model of the first generation, whose head is not normalised: computed as Baichuan2 it would be wrong.

    The generations differ in their vocabularies: 64,000 or 125,696, to which tokens may have been added.

    Raises:
        UserError: saying what to load instead.
    """
    if BAICHUAN1_ARCHITECTURE in architectures or BAICHUAN1_VOCABULARY_SIZE <= vocab_size < VOCABULARY_SIZE:
        raise UserError(
            "this is a model of Baichuan's first generation, which deft does not compute",
            got=f"vocab_size {vocab_size}, architectures {list(architectures)}",
            fix="use Baichuan2-7B or Baichuan2-13B; a model of the second generation whose vocabulary was cut has "
            'to say so: add "position_embedding": "rope" or "alibi" to config.json',
        )
