"""A tokenizer like Baichuan2's, trained in a moment on a few lines: for tests.

In: lines of text. Out: the bytes of a `tokenizer.model`, or a folder with the two tokenizer files of an official
checkpoint. Options and the first ids are the official ones: 0 to 2 for unknown, bos and eos, then HTML tags and
punctuation, then `<reserved_N>` at N + 89, then 256 bytes.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINES = (
    "你好，世界！今天我们学习数学，明天学习语文。请用一句话解释：光合作用是什么？",
    "植物用光能把 CO₂ 和水变成糖和氧气。法国的首都是巴黎，中国的首都是北京。",
    "What is the capital of France? The capital of France is Paris. The answer is forty-two.",
    "You are a helpful assistant. Please answer the question of the user in one sentence.",
    "def add(first, second):\n    return first + second  # the sum\n\nprint(add(3, 12.5))",
    "<table><tr><td>第一列</td><td>reserved_1234567890</td></tr></table> <|/>",
)
NUM_RESERVED = 250
TAGS = "img h2 td strong table tr li b h3 br h4 h5 p h1 tbody"
PUNCTUATION = [*"０１２３４５６７８９+-=，。！？、：￥.!?", "...", "。。。", "。。。。。。", *"《》【】『』"]


def user_defined_pieces() -> list[str]:
    """Return the pieces with the ids from 3 on."""
    tags = [form.format(name) for name in TAGS.split() for form in ("<{}>", "<{}/>", "</{}>")]
    code = ["```", "<!--", "-->", "---", "<!DOCTYPE>"]
    reserved = [f"<reserved_{number}>" for number in range(NUM_RESERVED)]
    return ["<SEP>", "<CLS>", "\n", "\t", *tags, *PUNCTUATION, *code, *reserved]


def train_tiny_tokenizer(lines: Sequence[str] = LINES, *, vocab_size: int = 1024, **options: Any) -> bytes:
    """Return the bytes of a SentencePiece model with at most `vocab_size` pieces, trained with Baichuan2's options.

    `options` are SentencePiece's own and go before Baichuan2's.
    """
    from sentencepiece import SentencePieceTrainer

    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": vocab_size,
        "hard_vocab_limit": False,
        "character_coverage": 0.9999,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "user_defined_symbols": user_defined_pieces(),
        "pad_id": -1,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **(settings | options))
    return model.getvalue()


def save_tiny_tokenizer(folder: Path, model: bytes | None = None) -> Path:
    """Write `tokenizer.model` and a `tokenizer_config.json` laid out as the official one, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model or train_tiny_tokenizer())
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    config: dict[str, Any] = {name: {"__type": "AddedToken", "content": text} | flags for name, text in tokens.items()}
    config |= {
        "add_bos_token": False,
        "add_eos_token": False,
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "sp_model_kwargs": {},
        "tokenizer_class": "BaichuanTokenizer",
        "use_fast": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder
