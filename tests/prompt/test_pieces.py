import numpy as np
from chat_tokenizers import chat, chatml_tokenizer, fixture_folder, role_tokenizer
from transformers import LlamaTokenizer

from deft.prompt.encode import encode_example
from deft.prompt.formats.kinds import chat_format_for
from deft.prompt.formats.role_tokens import add_role_tokens
from deft.prompt.paint import painted_pieces
from deft.types import IGNORED_LABEL, Example, TokenSequence

ROW = Example.create(chat("饕餮是什么？", "一种🐉神兽。", "And in English?", "A beast."))


def test_runs_of_the_mask():
    tokenizer = chatml_tokenizer()
    [sequence] = encode_example(ROW, chat_format_for(tokenizer), max_length_tokens=500)
    assert painted_pieces(sequence, tokenizer) == [
        ("<|im_start|>user\n饕餮是什么？<|im_end|>\n<|im_start|>assistant\n", False),
        ("一种🐉神兽。<|im_end|>", True),
        ("\n<|im_start|>user\nAnd in English?<|im_end|>\n<|im_start|>assistant\n", False),
        ("A beast.<|im_end|>", True),
    ]


def test_role_tokens_are_shown():
    tokenizer = role_tokenizer()
    [sequence] = encode_example(ROW, chat_format_for(tokenizer), max_length_tokens=500)
    assert [text for text, is_trained in painted_pieces(sequence, tokenizer) if is_trained] == [
        "一种🐉神兽。<eot>",
        "A beast.<eot>",
    ]


def test_a_mask_inside_a_character_still_shows_every_run():
    tokenizer = chatml_tokenizer()
    ids = np.array(tokenizer.encode("a饕b", add_special_tokens=False), dtype=np.int32)
    assert len(ids) > 4, "饕 should take several tokens"
    labels = np.where(np.arange(len(ids)) >= 2, ids, IGNORED_LABEL).astype(np.int32)
    pieces = painted_pieces(TokenSequence(id="x", input_ids=ids, labels=labels), tokenizer)
    assert [is_trained for _, is_trained in pieces] == [False, True]
    assert pieces[0][0].startswith("a")
    assert pieces[1][0].endswith("b")


def test_spaces_between_runs_are_kept():
    tokenizer = LlamaTokenizer.from_pretrained(fixture_folder("chinese-llama-tokenizer"))
    add_role_tokens(tokenizer)
    [sequence] = encode_example(ROW, chat_format_for(tokenizer), max_length_tokens=500)
    pieces = painted_pieces(sequence, tokenizer)
    assert "".join(text for text, _ in pieces) == tokenizer.decode(sequence.input_ids.tolist())
    assert [is_trained for _, is_trained in pieces] == [False, True, False, True]
    assert "神兽" in pieces[1][0]
