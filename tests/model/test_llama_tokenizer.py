"""Llama's tokenizer from its SentencePiece file alone, on Chinese-LLaMA's real file."""

import json
import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import LlamaTokenizer

from deft.model.tokenizers.llama import SentencePieceLlamaTokenizer, load_llama_tokenizer
from deft.prompt.formats.role_tokens import RoleTokenFormat, add_role_tokens
from deft.types import Message

FILE = Path(__file__).resolve().parents[3] / "shared/fixtures/chinese-llama-tokenizer/tokenizer.model"
TEXTS = [
    "你好，世界。",
    "What do people do at night?",
    "40% of 120 is 48.",
    "def f(x):\n    return x",
    "  a  b ",
    "😀\x00\n",
]
ROLES = {"<user>": 49953, "<assistant>": 49954, "<eot>": 49955}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The layout of the ancestor's time: no `tokenizer.json`."""
    if not FILE.exists():
        pytest.skip(f"{FILE} is not there")
    shutil.copy(FILE, tmp_path / "tokenizer.model")
    return configure(tmp_path, tokenizer_class="LlamaTokenizer", sp_model_kwargs={}, add_bos_token=True)


def configure(folder: Path, **settings: object) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def load(folder: Path) -> SentencePieceLlamaTokenizer:
    tokenizer = load_llama_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


def test_ids_are_those_of_sentencepiece_where_transformers_has_others(folder: Path) -> None:
    official, tokenizer = SentencePieceProcessor(model_file=str(FILE)), load(folder)
    assert len(tokenizer) == 49953
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == official.encode(text)
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode(ids) == text
    others = LlamaTokenizer.from_pretrained(folder)
    assert others.encode(TEXTS[1], add_special_tokens=False) != official.encode(TEXTS[1])


def test_the_ancestors_checkpoints_have_their_role_tokens_in_a_file(folder: Path, tmp_path: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps(ROLES), encoding="utf-8")
    tokenizer = load(folder)
    assert add_role_tokens(tokenizer) == 0
    assert RoleTokenFormat(tokenizer).role_ids == (49953, 49954, 49955)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").get_vocab() == tokenizer.get_vocab()


def test_contents_are_encoded_as_the_ancestor_did(folder: Path, tmp_path: Path) -> None:
    tokenizer = load(folder)
    assert add_role_tokens(tokenizer) == 3
    tokenizer.save_pretrained(tmp_path / "saved")
    messages = [Message(role="user", content=" 你好 "), Message(role="assistant", content="hi<eot></s>")]
    for each in (tokenizer, load(tmp_path / "saved")):
        [(ids, weights, _)] = RoleTokenFormat(each).encode_conversation(messages)
        # 42390 is ▁你好 and 7251 is ▁hi
        assert ids[:5] == [49953, 42390, 49955, 49954, 7251]
        assert [ids.count(index) for index in (1, 2, 49955)] == [0, 0, 2]
        assert each.decode(ids[4:-1]) == "hi<eot></s>"
        assert weights == [0.0] * 4 + [1.0] * (len(ids) - 4)


def test_the_file_is_saved_as_it_was(folder: Path, tmp_path: Path) -> None:
    tokenizer = load(folder)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/tokenizer.model").read_bytes() == FILE.read_bytes()
    settings = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    assert (settings["tokenizer_class"], settings["legacy"], settings["add_bos_token"]) == (
        "LlamaTokenizer",
        True,
        True,
    )


def test_early_conversions_name_no_special_tokens(folder: Path) -> None:
    tokenizer = load(configure(folder, tokenizer_class="LLaMATokenizer", bos_token="", eos_token="", unk_token=""))
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert load(folder).encode("你好") == [1, 42390]


def test_other_checkpoints_are_left_to_transformers(folder: Path) -> None:
    assert load_llama_tokenizer(configure(folder, tokenizer_class="GemmaTokenizer")) is None
    assert load_llama_tokenizer(configure(folder, tokenizer_class="LlamaTokenizer", legacy=False)) is None
    (folder / "config.json").write_text('{"model_type": "mistral"}', encoding="utf-8")
    assert load_llama_tokenizer(configure(folder)) is None
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert load_llama_tokenizer(configure(folder, tokenizer_class="LlamaTokenizer")) is None
