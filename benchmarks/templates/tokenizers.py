"""A tokenizer for a chat template: its control strings are special tokens, as they are in the model's own.

In: a template's text. Out: a tokenizer of one of three kinds. The real ones would have to be downloaded, and most
differ from these in nothing that matters here: which strings are one token, and how text beside them is cut.
"""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is the capital of France? The capital of France is Paris. system user assistant model think tool call",
    "你好，请问法国的首都是哪里？法国的首都是巴黎。谢谢你！不客气，再见。\n\n我们今天学习数学，明天学习语文。",
] * 4
GPT2_LIKE = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
"""How Llama 3's, Qwen's and GPT-4's tokenizers cut text: white space before a line break belongs to it."""

CONTROL = re.compile(
    r"<\|[^<>|'\"{}\s]+\|>|<｜[^<>'\"{}\n]+?｜>|<[a-z_]+[|｜]>|<[|｜][a-z_]+>"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|SYSTEM_PROMPT|MODEL_SETTINGS|ARGS|CALL_ID|gMASK)\]"
    r"|</?seed:[a-z_:]+>|\]~!?b\[|\]~b\]|\[e~\[|</?SPECIAL_\d+>|</?(?:s|bos|eos|pad|sep|sop|eop|unk)>"
    r"|<(?:start_of_turn|end_of_turn|end_of_sentence|beginning_of_sentence|end_of_utterance|BOS_TOKEN|EOS_TOKEN"
    r"|start_function_call|end_function_call|start_function_response|end_function_response|start_function_declaration"
    r"|end_function_declaration|escape|_system|_user|_bot|_end|role|reserved_\d+)>"
    r"|\[/?THINK\]|<\|[A-Z_]+\|?>|\[(?:BOS|EOS|CLS|SEP)\]|<extra_id_\d+>|<\|\|[^<>|]+\|\|>|</assistant>|\[\|[a-z]+\|\]"
)
"""What real models have as one special token; some write their names in pieces, which a model's file then lists."""
PLAIN = re.compile(r"</?(?:think|tool_call|tool_response|tools|answer|mm:think|arg_key|arg_value|longcat_[a-z_]+)>")
"""What real models have as one token that is not special."""
BOS = (
    "<|begin_of_text|>",
    "<｜begin▁of▁sentence｜>",
    "<|startoftext|>",
    "<|begin_of_sentence|>",
    "<BOS_TOKEN>",
    "<|startoftext|>",
    "<bos>",
    "[gMASK]",
    "]~!b[",
    "<seed:bos>",
    "<s>",
)
EOS = (
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end_of_sentence|>",
    "<|return|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "[e~[",
    "<seed:eos>",
    "[|endofturn|]",
    "<|end|>",
    "</assistant>",
)
"""What a model's eos is, if its template writes one of these; the first that does."""
FAMILIES = (("<|start_header_id|>", "<|eot_id|>"), ("<|im_start|>", "<|im_end|>"))
"""Templates that write the first may put the name of the second together from pieces."""


@cache
def byte_level(*, gpt2: bool) -> str:
    """Return a trained byte-level BPE, with GPT-2's way of cutting words or without, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GPT2_LIKE), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if gpt2
        else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    tokenizer.decoder = decoders.ByteLevel()
    extra = ["a\n\n", "。\n\n", "!\n\n", ">\n\n", "\n\n\n"] * 3 if gpt2 else []
    return _trained(tokenizer, extra)


@cache
def space_first() -> str:
    """Return a BPE that falls back on bytes and puts a space before a text, as Llama 2's and Mistral's, as JSON."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *bytes_], show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:1]  # the bytes are ordinary pieces, <unk> alone is special
    return json.dumps(made)


def _trained(tokenizer: Tokenizer, extra: Sequence[str]) -> str:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *extra], trainer)
    return str(tokenizer.to_str())


KINDS: dict[str, Callable[[], str]] = {
    "bytes": lambda: byte_level(gpt2=False),
    "words": lambda: byte_level(gpt2=True),
    "space": space_first,
}
"""`bytes` cuts at words only, `words` joins punctuation and line breaks, `space` puts a space before a text."""


def can_be(kind: str, template: str) -> bool:
    """Say whether a template can have a kind of tokenizer: `▁` in a control string would be read as a space."""
    return kind != "space" or "▁" not in template


def written_by(template: str) -> set[str]:
    """Return the control strings that a template writes, though it puts their names together from pieces."""
    found: set[str] = set()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
    exchange = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    for messages in (exchange, exchange * 2, [{"role": "system", "content": "."}, *exchange]):
        with suppress(Exception):  # a template is a program, and may raise anything
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
            found.update(CONTROL.findall(str(text)))
    return found


def tokenizer_for(template: str, kind: str = "bytes") -> PreTrainedTokenizerFast:
    """Return a tokenizer that has the template, and its control strings as tokens.

    With `words` the eos is another token than the one that ends a turn, as in Gemma and in many fine-tuned base models,
    unless the template itself writes `eos_token`.
    """
    names = set(CONTROL.findall(template)) | written_by(template)
    for written, needed in FAMILIES:
        if written in names:
            names.add(needed)
    bos = next((name for name in BOS if name in names), "<s>")
    eos = next((name for name in EOS if name in names), "</s>")
    if kind == "words" and "eos_token" not in template:
        eos = "<|end_of_everything|>"
    names |= {bos, eos, "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(KINDS[kind]()), bos_token=bos, eos_token=eos, pad_token="<pad>"
    )
    special = [AddedToken(name, special=True, normalized=False) for name in sorted(names)]
    plain_names = sorted({*PLAIN.findall(template), "<think>", "</think>"} - names)
    plain = [AddedToken(name, special=False, normalized=False) for name in plain_names]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.add_tokens(plain)
    tokenizer.chat_template = template
    return tokenizer
