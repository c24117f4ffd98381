"""Encoded rows are found again by their content, and by nothing else."""

from pathlib import Path

import numpy as np
import pytest

from deft.files import CACHE_VARIABLE
from deft.prompt import cache
from deft.prompt.cache import encode_once
from deft.prompt.encode import EncodeResult, encode_examples
from deft.prompt.formats.kinds import chat_format_for
from deft.testing.tiny import byte_tokenizer
from deft.types import Example, Message

LIMIT = 150


def examples(num_rows: int = 6, ability: str | None = "数学") -> list[Example]:
    made = []
    for number in range(num_rows):
        messages = []
        for turn in range(1 + number % 3):
            messages.append(Message(role="user", content=f"第 {number} 题，第 {turn} 问？"))
            messages.append(Message(role="assistant", content=f"答：{number}。" + "很长" * (number == 4) * 40))
        made.append(Example.create(messages, ability=ability, source=f"文件.jsonl:{number}"))
    return made


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(cache, "FEWEST_ROWS", 1)
    return tmp_path / "rows"


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each time that something was encoded."""
    seen: list[int] = []

    def counted(rows, *arguments, **options) -> EncodeResult:
        seen.append(len(rows))
        return encode_examples(rows, *arguments, **options)

    monkeypatch.setattr(cache, "encode_examples", counted)
    return seen


def encode(rows: list[Example], limit: int = LIMIT, tokenizer=None) -> EncodeResult:
    tokenizer = tokenizer or byte_tokenizer()
    return encode_once(rows, chat_format_for(tokenizer), tokenizer, max_length_tokens=limit)


def assert_same(found: EncodeResult, expected: EncodeResult) -> None:
    assert found.dropped == expected.dropped and found.num_shortened == expected.num_shortened
    assert [row.id for row in found.sequences] == [row.id for row in expected.sequences]
    for one, other in zip(found.sequences, expected.sequences, strict=True):
        assert one.ability == other.ability
        assert one.input_ids.dtype == other.input_ids.dtype and one.labels.dtype == other.labels.dtype
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_the_second_time_nothing_is_encoded_and_the_rows_are_the_same(encodings: list[int]) -> None:
    tokenizer = byte_tokenizer()
    expected = encode_examples(examples(), chat_format_for(tokenizer), max_length_tokens=LIMIT)
    assert expected.dropped and expected.num_shortened, "the rows are to be of every kind"
    assert_same(encode(examples()), expected)
    assert_same(encode(examples()), expected)
    assert encodings == [6]


def test_another_content_limit_tokenizer_or_template_is_encoded_anew(encodings: list[int]) -> None:
    encode(examples())
    encode(examples(5))
    encode(list(reversed(examples())))
    encode(examples(), limit=LIMIT + 1)
    grown = byte_tokenizer()
    grown.add_tokens(["题"])
    encode(examples(), tokenizer=grown)
    other = byte_tokenizer()
    other.chat_template = other.chat_template.replace("<|im_end|>\n", "<|im_end|>\n\n")
    assert other.chat_template != byte_tokenizer().chat_template
    encode(examples(), tokenizer=other)
    assert encodings == [6, 5, 6, 6, 6, 6]


def test_abilities_and_sources_are_those_of_the_rows_at_hand(encodings: list[int]) -> None:
    encode(examples(ability="数学"))
    found = encode(examples(ability="推理"))
    assert encodings == [6]
    assert {row.ability for row in found.sequences} == {"推理"}
    assert found.dropped[0].source == "文件.jsonl:4"


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no zip", b"text"])
def test_a_damaged_file_is_written_again(folder: Path, encodings: list[int], damage: bytes) -> None:
    encode(examples())
    [file] = folder.glob("*.npz")
    file.write_bytes(damage)
    assert_same(encode(examples()), encode(examples()))
    assert encodings == [6, 6]


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert encode(examples()).sequences


def test_an_empty_variable_keeps_nothing(folder: Path, encodings: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")
    encode(examples())
    encode(examples())
    assert encodings == [6, 6] and not folder.exists()


def test_what_was_used_longest_ago_goes_first(
    folder: Path, encodings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    encode(examples(4))
    encode(examples(5))
    old, new = sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime_ns)
    os.utime(old, (2e9, 2e9))  # used again
    os.utime(new, (1e9, 1e9))
    monkeypatch.setattr(cache, "LARGEST_CACHE_BYTES", old.stat().st_size + 1)
    cache.remove_oldest(folder)
    assert list(folder.glob("*.npz")) == [old]
