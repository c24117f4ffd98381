import json
from pathlib import Path

import pytest
from chat_tokenizers import (
    CHATML,
    QWEN3,
    byte_tokenizer,
    chat,
    chatml_tokenizer,
    gemma3_tokenizer,
    llama3_tokenizer,
    mistral_tokenizer,
    role_tokenizer,
)

from deft.errors import UserError
from deft.prompt.formats.kinds import chat_format_for
from deft.prompt.formats.role_tokens import add_role_tokens
from deft.prompt.formats.template import TemplateFormat
from deft.prompt.store import load_chat_format, save_chat_format
from deft.types import Message

MESSAGES = chat("法国的首都？", "巴黎。", "Are you sure?<|im_end|>", system="Be brief. 简短。")


@pytest.mark.parametrize(
    "make_tokenizer",
    [chatml_tokenizer, llama3_tokenizer, gemma3_tokenizer, mistral_tokenizer, role_tokenizer],
)
def test_the_served_prompt_is_the_trained_prompt_byte_for_byte(make_tokenizer, tmp_path):
    trained = chat_format_for(make_tokenizer())
    save_chat_format(trained, tmp_path)
    served_tokenizer = make_tokenizer()
    served_tokenizer.chat_template = "{{ 'another template' }}"
    served = load_chat_format(tmp_path, served_tokenizer)
    assert served is not None
    assert served.render_prompt(MESSAGES).encode() == trained.render_prompt(MESSAGES).encode()
    assert served.encode_prompt(MESSAGES) == trained.encode_prompt(MESSAGES)
    assert served.to_dict() == trained.to_dict()


def test_the_file_holds_what_the_prompt_was(tmp_path):
    chat_format = TemplateFormat(chatml_tokenizer(QWEN3), template_kwargs={"enable_thinking": False})
    save_chat_format(chat_format, tmp_path)
    stored = json.loads((tmp_path / "chat_format.json").read_text(encoding="utf-8"))
    assert stored["kind"] == "template"
    assert stored["template"] == QWEN3
    assert stored["template_kwargs"] == {"enable_thinking": False}
    assert stored["stop_token_ids"] == list(chat_format.stop_token_ids)
    assert stored["probe"]["prompt_text"] == (
        "<|im_start|>user\n请用一句话解释：光合作用是什么？<|im_end|>\n"
        "<|im_start|>assistant\n植物用光能把 CO₂ 和水变成糖和氧气。\n(That is all.)<|im_end|>\n"
        "<|im_start|>user\nWhat is 3.5 × 12 — in words?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_nothing_stored_is_none(tmp_path):
    assert load_chat_format(tmp_path, chatml_tokenizer()) is None


def test_another_tokenizer_is_refused(tmp_path):
    save_chat_format(chat_format_for(chatml_tokenizer()), tmp_path)
    other = byte_tokenizer(["<|im_end|>", "<|im_start|>"], chat_template=CHATML, eos="<|im_end|>")
    with pytest.raises(UserError, match="renders a chat differently from training"):
        load_chat_format(tmp_path, other)


def test_the_same_specials_with_other_text_ids_are_refused(tmp_path):
    tokenizer = chatml_tokenizer()
    save_chat_format(chat_format_for(tokenizer), tmp_path)
    tokenizer.add_tokens(["光合作用"])
    with pytest.raises(UserError, match="differently") as refusal:
        load_chat_format(tmp_path, tokenizer)
    assert str(refusal.value.got).startswith("probe.prompt_ids was")


def test_other_role_ids_are_refused(tmp_path):
    save_chat_format(chat_format_for(role_tokenizer()), tmp_path)
    shifted = byte_tokenizer(["<pad>", "<s>", "</s>"], bos="<s>", eos="</s>")
    add_role_tokens(shifted)
    with pytest.raises(UserError, match="differently"):
        load_chat_format(tmp_path, shifted)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "magic"}', "{}"])
def test_a_damaged_file_is_an_error(text, tmp_path):
    (tmp_path / "chat_format.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="damaged") as refusal:
        load_chat_format(tmp_path, chatml_tokenizer())
    assert refusal.value.where == str(tmp_path / "chat_format.json")


def test_a_file_of_a_newer_deft_is_named(tmp_path):
    save_chat_format(chat_format_for(role_tokenizer()), tmp_path)
    path = tmp_path / "chat_format.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"version": 4}), encoding="utf-8")
    with pytest.raises(UserError, match="a newer deft wrote the chat format") as refusal:
        load_chat_format(tmp_path, role_tokenizer())
    assert (refusal.value.got, refusal.value.where) == (4, str(path))


EARLIER = {
    "chatml": chatml_tokenizer,
    "qwen3": lambda: chatml_tokenizer(QWEN3),
    "qwen3_without_thinking": lambda: chatml_tokenizer(QWEN3),
    "gemma3": gemma3_tokenizer,
    "mistral": mistral_tokenizer,
    "role_tokens": role_tokenizer,
}


@pytest.mark.parametrize("name", EARLIER)
def test_files_of_version_2_say_the_same(name, tmp_path):
    stored = json.loads((Path(__file__).parent / "stored" / f"{name}.json").read_text(encoding="utf-8"))
    (tmp_path / "chat_format.json").write_text(json.dumps(stored), encoding="utf-8")
    found = load_chat_format(tmp_path, EARLIER[name]())
    assert found is not None
    messages = [Message(**row) for row in stored["probe"]["messages"]]
    assert found.render_prompt(messages) == stored["probe"]["prompt_text"]
    assert found.encode_prompt(messages) == stored["probe"]["prompt_ids"]
    assert list(found.stop_token_ids) == stored["stop_token_ids"]
    assert list(found.end_of_turn_ids) == stored["end_of_turn_ids"]

    stored["probe"]["prompt_ids"][-1] += 1
    (tmp_path / "chat_format.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(UserError, match="differently from training"):
        load_chat_format(tmp_path, EARLIER[name]())


def test_the_stops_of_training_stay_though_the_tokenizer_names_another_eos(tmp_path):
    trained = chat_format_for(role_tokenizer())
    save_chat_format(trained, tmp_path)
    tokenizer = role_tokenizer()
    tokenizer.eos_token = "<eot>"
    found = load_chat_format(tmp_path, tokenizer)
    assert found is not None and found.stop_token_ids == trained.stop_token_ids
    assert tokenizer.convert_tokens_to_ids("</s>") in found.stop_token_ids


@pytest.mark.parametrize("stops", [["结束"], [True], [-1], [10**9], {"eos": 2}, None])
def test_stops_that_are_no_ids_are_damage(stops, tmp_path):
    save_chat_format(chat_format_for(role_tokenizer()), tmp_path)
    path = tmp_path / "chat_format.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"stop_token_ids": stops}))
    with pytest.raises(UserError, match="damaged"):
        load_chat_format(tmp_path, role_tokenizer())
