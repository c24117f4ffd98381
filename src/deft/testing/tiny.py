"""Seeded random models of real architectures, a few thousand weights each, and a byte tokenizer: for tests.

In: an architecture's name and a seed. Out: what `transformers` would have loaded, without a download.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from deft.errors import UserError, did_you_mean
from deft.hub.quiet import quiet_transformers
from deft.model.baichuan2.configuration import Baichuan2Config
from deft.model.baichuan2.modelling import BaichuanForCausalLM

Architecture = Literal["llama", "qwen3", "gemma3", "baichuan2", "baichuan2_rope"]

NUM_BYTES = 256
SPECIAL_TOKENS = ("<pad>", "<bos>", "<|im_start|>", "<|im_end|>")
PAD_ID, BOS_ID, IM_START_ID, IM_END_ID = range(NUM_BYTES, NUM_BYTES + len(SPECIAL_TOKENS))
VOCAB_SIZE = NUM_BYTES + len(SPECIAL_TOKENS)
SLIDING_WINDOW = 16
"""Of Gemma's local layers: short enough that a test sequence crosses it."""
ALIBI_HEADS = 5
"""Of Baichuan2 in the 13B's layout: no power of two, so that both kinds of slopes are used, as in its 40 heads."""
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_model(
    architecture: Architecture,
    *,
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
    num_layers: int = 2,
    hidden_size: int = 64,
    num_heads: int = 4,
    num_key_value_heads: int = 2,
    max_length_tokens: int = 512,
    initializer_range: float = 0.2,
) -> PreTrainedModel:
    """Return a random fp32 model in evaluation mode, on the CPU; the same seed gives the same weights.

    Heads are grouped (two queries share a key by default). Llama's head is untied, the others' is the embedding;
    Gemma's layers look back `SLIDING_WINDOW` tokens, save for every second one. "baichuan2_rope" is the 7B's layout,
    "baichuan2" the 13B's, with `ALIBI_HEADS` heads of the width that was asked for, whatever their number. The wide
    `initializer_range` and norms off their starting values make logits differ by several units, so that a wrong mask
    or position shows. The global random state is left alone.

    Raises:
        UserError: if the architecture is unknown.
    """
    if architecture not in get_args(Architecture):
        raise UserError(
            "unknown architecture", got=architecture, fix=did_you_mean(architecture, get_args(Architecture))
        )
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "num_hidden_layers": num_layers,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": hidden_size // num_heads,
        "max_position_embeddings": max_length_tokens,
        "initializer_range": initializer_range,
        "pad_token_id": PAD_ID if vocab_size >= VOCAB_SIZE else None,
        "bos_token_id": BOS_ID if vocab_size >= VOCAB_SIZE else None,
        "eos_token_id": IM_END_ID if vocab_size >= VOCAB_SIZE else None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = untrained(architecture, shape)
        with torch.no_grad():
            for weights in model.parameters():
                if weights.ndim == 1:
                    weights.add_(torch.randn_like(weights), alpha=0.1)
    return model.float().eval()


def untrained(architecture: Architecture, shape: dict[str, Any]) -> PreTrainedModel:
    """Return a model as its authors initialise it; `shape` is what a `LlamaConfig` takes."""
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True))
    if architecture == "gemma3":
        kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(shape["num_hidden_layers"])]
        return Gemma3ForCausalLM(
            Gemma3TextConfig(
                **shape,
                layer_types=kinds,
                sliding_window=SLIDING_WINDOW,
                query_pre_attn_scalar=shape["head_dim"],
                tie_word_embeddings=True,
            )
        )
    shape = {name: value for name, value in shape.items() if name not in ("num_key_value_heads", "head_dim")} | {
        "model_max_length": shape["max_position_embeddings"]
    }
    if architecture == "baichuan2":
        head_dim = shape["hidden_size"] // shape["num_attention_heads"]
        shape |= {"num_attention_heads": ALIBI_HEADS, "hidden_size": ALIBI_HEADS * head_dim}
        del shape["max_position_embeddings"]
    return BaichuanForCausalLM(Baichuan2Config(**shape))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose ids 0–255 are the bytes of UTF-8 themselves, then `SPECIAL_TOKENS`.

    Any text comes back whole: `decode(encode(text)) == text`. The reply ends with `<|im_end|>` (eos, id 259); the chat
    template is plain ChatML, without a default system prompt; nothing is added at the start of a text.
    """
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    wrapped.chat_template = CHATML_TEMPLATE
    return wrapped


def byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in byte-level tokenizers (GPT-2's `bytes_to_unicode`).

    Printable Latin-1 bytes stand for themselves; the others are 256, 257, … in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(NUM_BYTES, 2 * NUM_BYTES))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(NUM_BYTES)]


def save_tiny(folder: Path, architecture: Architecture = "llama", seed: int = 0, **shape: Any) -> Path:
    """Write a whole checkpoint, `tiny_model` (which takes `shape`) and `byte_tokenizer`, and return its folder."""
    with quiet_transformers():
        tiny_model(architecture, seed=seed, **shape).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folder
