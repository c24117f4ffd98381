"""Tokenizers over a SentencePiece file (`tokenizer.model`), with the ids that SentencePiece itself gives.

In: text. Out: token ids, and from ids the text as it was. transformers 5 turns such a file into a table of merges,
ordered by id; a file whose scores have another order, as those with a second vocabulary appended, then reads text
differently from the tokenizer its model was trained with. Here the file itself encodes and decodes.
"""

import json
import re
from collections.abc import Collection, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import PreTrainedTokenizer

from deft.prompt.guard import any_of, is_vocabulary

VOCABULARY_FILE = "tokenizer.model"
NOT_SAVED = ("auto_map", "backend", "is_local", "local_files_only", "special_tokens_map_file", "split_special_tokens")
"""Settings of this library or of code that is not written beside the file; they have no place in a checkpoint."""


class SentencePieceTokenizer(PreTrainedTokenizer):
    """Text to ids and back by the SentencePiece file of a checkpoint.

    Text never becomes a control piece (`<s>`, `<reserved_106>`) or an added special token, whatever it spells: it is
    read as ordinary text. `split_special_tokens=False` gives them their ids, as `deft.prompt.guard` asks for where a
    template wrote them. For text that spells none, ids are exactly SentencePiece's. Other added tokens match wherever
    their text stands, as it stands: the stripping flags of an `AddedToken` are not followed, so that decoding gives
    the text back.

    Decoding leaves out control pieces and special tokens with `skip_special_tokens`, and ids that no token has, as of
    padded embeddings, always. Spaces are never cleaned up. What comes back is the text, except where the file's own
    normalisation changed it ("▁" always reads as a space).
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}  # noqa: RUF012 (as transformers declares it)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"
    saved_class: ClassVar[str]
    """The class that checkpoints name in `tokenizer_config.json`."""

    def __init__(
        self, vocab_file: str | Path, *, add_bos_token: bool = False, add_eos_token: bool = False, **settings: Any
    ) -> None:
        """Read the file; `settings` are those of `tokenizer_config.json`.

        unk, bos and eos are the file's own where the settings do not name them.

        Raises:
            OSError: if the file cannot be read.
            RuntimeError: if it is no SentencePiece model.
        """
        self._file = Path(vocab_file).read_bytes()
        self.sp_model, self._controls = read_model(self._file)
        pieces = self.sp_model.id_to_piece(list(range(self.sp_model.get_piece_size())))
        self._piece_ids = {piece: index for index, piece in enumerate(pieces)}
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token
        own = {"unk": self.sp_model.unk_id(), "bos": self.sp_model.bos_id(), "eos": self.sp_model.eos_id()}
        for name, token_id in own.items():
            if token_id >= 0 and str(settings.get(f"{name}_token", "")) == "":
                settings[f"{name}_token"] = pieces[token_id]
        added_ends = "_".join(["bos"] * add_bos_token + ["eos"] * add_eos_token)
        settings = {"split_special_tokens": True} | settings | {"special_tokens_pattern": added_ends or "none"}
        super().__init__(**settings)

    @property
    def vocab_size(self) -> int:
        """The number of pieces in the file, added tokens not counted."""
        return len(self._piece_ids)

    def get_vocab(self) -> dict[str, int]:
        """Return every piece and added token with its id."""
        return self._piece_ids | self.added_tokens_encoder

    # --- text to ids ----------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *args: Any, **kwargs: Any) -> list[str]:
        """Return the pieces of a text, and the added tokens in it."""
        split_special_tokens = kwargs.get("split_special_tokens", self.split_special_tokens)
        matched = self._words if split_special_tokens else self._all_named
        tokens: list[str] = []
        for index, part in enumerate(matched.split(text)):
            if index % 2:
                tokens.append(part)
            elif part:
                tokens += self._tokenize(part)
        return tokens

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """Render messages as transformers does; where that gives ids, the template's control tokens have theirs.

        As in any tokenizer of transformers, those that a message spells have them too; `deft.prompt` keeps them apart.
        """
        kwargs["tokenizer_kwargs"] = {"split_special_tokens": False} | (kwargs.get("tokenizer_kwargs") or {})
        return super().apply_chat_template(*args, **kwargs)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        # By way of ids: the surface of an unknown character might itself read as the name of a piece.
        return self.sp_model.id_to_piece(self.sp_model.encode(text))

    def _convert_token_to_id(self, token: str) -> int:
        return self._piece_ids.get(token, self.sp_model.unk_id())

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        """Note which texts are matched before SentencePiece sees the rest; transformers calls it after each addition.

        The patterns take the place of transformers' trie, which walks over every character in Python.
        """
        added = self._added_tokens_decoder.values()
        words = [token.content for token in added if not token.special and token.content not in self._controls]
        named = {*words, *(token.content for token in added), *self._controls, *(unique_no_split_tokens or ())}
        self._words = separator(words)
        self._all_named = separator(named)
        self._names = {index: text for text, index in self._controls.items()}
        self._names |= {index: token.content for index, token in self._added_tokens_decoder.items()}
        special = (index for index, token in self._added_tokens_decoder.items() if token.special)
        self._special_ids = {*self._controls.values(), *special}

    # --- ids to text ----------------------------------------------------------------------------------------------

    def _convert_id_to_token(self, index: int) -> str:
        return self.sp_model.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of pieces."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        left_out: Collection[int] = self._special_ids if skip_special_tokens else ()
        text = ""
        for is_named, run in groupby(ids, key=self._names.__contains__):
            if is_named:
                text += "".join(self._names[index] for index in run if index not in left_out)
            else:
                text += self.sp_model.decode([index for index in run if index < len(self._piece_ids)])
        return text

    # --- files ----------------------------------------------------------------------------------------------------

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the SentencePiece file, byte for byte as it was read."""
        path = Path(save_directory) / (f"{filename_prefix}-" * bool(filename_prefix) + VOCABULARY_FILE)
        path.write_bytes(self._file)
        return (str(path),)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Write the tokenizer's files; its config names the class that other engines know."""
        files = super().save_pretrained(*args, **kwargs)
        path = Path(next(file for file in files if file.endswith("tokenizer_config.json")))
        config = json.loads(path.read_text(encoding="utf-8"))
        config = {key: value for key, value in config.items() if key not in NOT_SAVED}
        config |= {
            "tokenizer_class": self.saved_class,
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
        }
        path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        return files


def read_model(file: bytes) -> tuple[SentencePieceProcessor, dict[str, int]]:
    """Return a processor that makes no control piece of any text, and the control pieces, text to id.

    SentencePiece matches a user-defined piece wherever text spells it, and a control piece nowhere. So the
    user-defined pieces that could steer a model (`<reserved_106>`, not `<td>`) are made control pieces. What spells one
    is then merged from characters like any other text, and all other text as before.

    Raises:
        RuntimeError: if the bytes are no SentencePiece model.
    """
    model: Any = vars(sentencepiece_model_pb2)["ModelProto"].FromString(file)
    kinds = model.SentencePiece
    controls = {}
    for index, piece in enumerate(model.pieces):
        if piece.type == kinds.USER_DEFINED and not is_vocabulary(piece.piece):
            piece.type = kinds.CONTROL
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN):
            controls[piece.piece] = index
    return SentencePieceProcessor(model_proto=model.SerializeToString()), controls


def separator(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern whose `split` gives the text between occurrences of `texts` and, in turn, the occurrences."""
    return re.compile(f"({any_of(texts)})")
