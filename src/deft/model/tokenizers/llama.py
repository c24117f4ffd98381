"""Llama's tokenizer where a checkpoint has nothing but the SentencePiece file, as Chinese-LLaMA does.

In: a folder. Out: a tokenizer with the ids the model was trained with, or None for `AutoTokenizer` to load. The file
of Chinese-LLaMA has 17,953 pieces appended to Llama's, all with the best score; SentencePiece merges them first,
transformers 5, which goes by ids, last. It reads one in five of our example messages differently.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

from deft.model.tokenizers.sentencepiece import VOCABULARY_FILE, SentencePieceTokenizer

CLASS_NAMES = ("llamatokenizer", "llamatokenizerfast")


class SentencePieceLlamaTokenizer(SentencePieceTokenizer):
    """Llama's tokenizer as it was before transformers 5 (`legacy`): SentencePiece's ids, with bos in front.

    The space that the file puts in front of a text is put in front of every text encoded, so also of each message that
    a chat format encodes by itself.
    """

    saved_class: ClassVar[str] = "LlamaTokenizer"

    def __init__(self, vocab_file: str | Path, *, add_bos_token: bool = True, **settings: Any) -> None:
        super().__init__(vocab_file, add_bos_token=add_bos_token, **({"legacy": True} | settings))


def load_llama_tokenizer(folder: Path) -> SentencePieceLlamaTokenizer | None:
    """Load the tokenizer of a Llama checkpoint that has a `tokenizer.model` and no `tokenizer.json`; else None.

    None too where the checkpoint asks for `"legacy": false`: it was trained with other rules for spaces.

    Raises:
        ValueError: if a config is no JSON.
        RuntimeError: if the file is no SentencePiece model.
    """
    if not (folder / VOCABULARY_FILE).is_file() or (folder / "tokenizer.json").is_file():
        return None
    settings = read_if_there(folder / "tokenizer_config.json")
    named = settings.get("tokenizer_class")
    is_llama = (
        named.lower() in CLASS_NAMES
        if isinstance(named, str)
        else read_if_there(folder / "config.json").get("model_type") == "llama"
    )
    if not is_llama or settings.get("legacy") is False:
        return None
    return SentencePieceLlamaTokenizer.from_pretrained(folder, local_files_only=True)


def read_if_there(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
