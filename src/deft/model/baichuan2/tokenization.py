"""Baichuan2's tokenizer: the official `tokenizer.model`, read by SentencePiece itself.

In: a checkpoint's `tokenizer.model` and `tokenizer_config.json`. Out: the official token ids. The official file has
byte fallback, single digits, no normalisation and no space put in front (Baichuan 2 technical report, on the
tokenizer), so any text comes back as it was. Its first 1,089 ids are the unknown, bos and eos tokens, HTML tags,
punctuation, and `<reserved_N>` (id N + 89); `<reserved_N>`, `<SEP>` and `<CLS>` are made through their ids only.
"""

from pathlib import Path
from typing import Any, ClassVar

from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

from deft.model.tokenizers.sentencepiece import SentencePieceTokenizer


class Baichuan2Tokenizer(SentencePieceTokenizer):
    """The tokenizer of Baichuan2; bos and eos are not added, padding is with the unknown token (id 0).

    Padding goes on the left unless the checkpoint's settings say otherwise: replies follow it, and training packs rows
    without any.
    """

    saved_class: ClassVar[str] = "BaichuanTokenizer"

    def __init__(self, vocab_file: str | Path, **settings: Any) -> None:
        super().__init__(vocab_file, **settings)
        if "pad_token" not in self.special_tokens_map:
            self.pad_token = self.unk_token


def register_tokenizer() -> None:
    """Let `AutoTokenizer` make a `Baichuan2Tokenizer` where a checkpoint names `BaichuanTokenizer`.

    The class is registered by its name only. Registered with a config class as well (`AutoTokenizer.register`), it
    would give way to a checkpoint's own code under `trust_remote_code=True`; by name alone it comes first.
    """
    REGISTERED_TOKENIZER_CLASSES[Baichuan2Tokenizer.saved_class] = Baichuan2Tokenizer
