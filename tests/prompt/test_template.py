import pytest
from chat_tokenizers import (
    CHATML,
    CHATML_WITH_MARKS,
    LLAMA3,
    QWEN3,
    byte_tokenizer,
    chat,
    chatml_tokenizer,
    gemma3_tokenizer,
    llama3_tokenizer,
    mistral_tokenizer,
    trained_texts,
)

from deft.errors import NotTrainable, UserError
from deft.prompt.formats.template import TemplateFormat, freeze_date

TWO_TURNS = chat("法国的首都是哪里？", "巴黎。", " What is 3 + 4? ", "\n7, of course. \n")


def check_prompts(chat_format: TemplateFormat, messages, num_replies: int) -> None:
    """Every reply's prompt, as inference encodes it, is a beginning of the row and is followed by trained tokens."""
    ids, trained = chat_format.encode_conversation(messages)
    replies = [i for i, message in enumerate(messages) if message.role == "assistant"]
    assert len(replies) == num_replies
    for i in replies:
        prompt = chat_format.encode_prompt(messages[:i])
        assert ids[: len(prompt)] == prompt
        assert not trained[len(prompt) - 1]
        assert trained[len(prompt)]


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_MARKS], ids=["plain", "generation marks"])
def test_chatml(template):
    tokenizer = chatml_tokenizer(template)
    chat_format = TemplateFormat(tokenizer)
    encoded = chat_format.encode_conversation(TWO_TURNS)
    assert tokenizer.decode(encoded[0]) == (
        "<|im_start|>user\n法国的首都是哪里？<|im_end|>\n<|im_start|>assistant\n巴黎。<|im_end|>\n"
        "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n7, of course.<|im_end|>\n"
    )
    assert trained_texts(tokenizer, encoded) == ["巴黎。<|im_end|>", "7, of course.<|im_end|>"]
    assert chat_format.end_of_turn_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert chat_format.stop_token_ids == chat_format.end_of_turn_ids
    assert chat_format.has_system_role
    check_prompts(chat_format, TWO_TURNS, 2)


def test_the_system_message_is_shown_and_never_trained():
    tokenizer = chatml_tokenizer()
    chat_format = TemplateFormat(tokenizer)
    messages = chat("你好", "您好！", system="你是小助手。")
    encoded = chat_format.encode_conversation(messages)
    assert trained_texts(tokenizer, encoded) == ["您好！<|im_end|>"]
    assert chat_format.render_prompt(messages[:2]) == (
        "<|im_start|>system\n你是小助手。<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )
    check_prompts(chat_format, messages, 1)


def test_llama3():
    tokenizer = llama3_tokenizer()
    chat_format = TemplateFormat(tokenizer)
    encoded = chat_format.encode_conversation([*chat("x", system="回答要短。")[:1], *TWO_TURNS])
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert tokenizer.decode(encoded[0]) == (
        "<|begin_of_text|>" + head.format("system") + "Today Date: 26 Jul 2024\n\n回答要短。<|eot_id|>"
        f"{head.format('user')}法国的首都是哪里？<|eot_id|>{head.format('assistant')}巴黎。<|eot_id|>"
        f"{head.format('user')}What is 3 + 4?<|eot_id|>{head.format('assistant')}7, of course.<|eot_id|>"
    )
    assert trained_texts(tokenizer, encoded) == ["巴黎。<|eot_id|>", "7, of course.<|eot_id|>"]
    assert encoded[0].count(tokenizer.bos_token_id) == 1
    assert chat_format.stop_token_ids == (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert chat_format.to_dict()["template_kwargs"] == {"date_string": "26 Jul 2024"}
    check_prompts(chat_format, TWO_TURNS, 2)


def test_gemma3_folds_the_system_message_itself():
    tokenizer = gemma3_tokenizer()
    chat_format = TemplateFormat(tokenizer)
    assert chat_format.has_system_role
    encoded = chat_format.encode_conversation([*chat("x", system="Be brief.")[:1], *TWO_TURNS])
    assert tokenizer.decode(encoded[0]) == (
        "<bos><start_of_turn>user\nBe brief.\n\n法国的首都是哪里？<end_of_turn>\n"
        "<start_of_turn>model\n巴黎。<end_of_turn>\n"
        "<start_of_turn>user\nWhat is 3 + 4?<end_of_turn>\n<start_of_turn>model\n7, of course.<end_of_turn>\n"
    )
    assert trained_texts(tokenizer, encoded) == ["巴黎。<end_of_turn>", "7, of course.<end_of_turn>"]
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<end_of_turn>", "<eos>", "<bos>")]
    assert list(chat_format.stop_token_ids) == ends
    check_prompts(chat_format, TWO_TURNS, 2)


def test_mistral_trains_the_space_that_the_model_writes_first():
    tokenizer = mistral_tokenizer()
    chat_format = TemplateFormat(tokenizer)
    encoded = chat_format.encode_conversation(TWO_TURNS)
    assert tokenizer.decode(encoded[0]) == (
        "<s>[INST] 法国的首都是哪里？ [/INST] 巴黎。</s>[INST] What is 3 + 4? [/INST] 7, of course.</s>"
    )
    assert trained_texts(tokenizer, encoded) == [" 巴黎。</s>", " 7, of course.</s>"]
    check_prompts(chat_format, TWO_TURNS, 2)


def test_a_template_without_system_role_gets_the_system_message_in_the_first_user_turn():
    tokenizer = mistral_tokenizer()
    chat_format = TemplateFormat(tokenizer)
    assert not chat_format.has_system_role
    messages = chat("你好", "您好！", system="Answer in Chinese.")
    assert chat_format.render_prompt(messages[:2]) == "<s>[INST] Answer in Chinese.\n\n你好 [/INST]"
    assert trained_texts(tokenizer, chat_format.encode_conversation(messages)) == [" 您好！</s>"]


def test_qwen3_trains_the_empty_thinking_of_the_last_turn_only():
    tokenizer = chatml_tokenizer(QWEN3)
    chat_format = TemplateFormat(tokenizer)
    encoded = chat_format.encode_conversation(TWO_TURNS)
    assert trained_texts(tokenizer, encoded) == [
        "巴黎。<|im_end|>",
        "<think>\n\n</think>\n\n7, of course.<|im_end|>",
    ]
    check_prompts(chat_format, TWO_TURNS, 2)


def test_qwen3_thinking_in_the_last_reply_is_trained_as_it_is():
    tokenizer = chatml_tokenizer(QWEN3)
    chat_format = TemplateFormat(tokenizer)
    messages = chat("1+1?", "二", "3+4?", "<think>\n三加四，等于七。\n</think>\n\n答案是 7。")
    encoded = chat_format.encode_conversation(messages)
    assert trained_texts(tokenizer, encoded) == [
        "二<|im_end|>",
        "<think>\n三加四，等于七。\n</think>\n\n答案是 7。<|im_end|>",
    ]
    assert tokenizer.convert_tokens_to_ids("<think>") in encoded[0]
    check_prompts(chat_format, messages, 2)


def test_qwen3_thinking_in_an_earlier_reply_is_refused_in_training_and_left_out_at_inference():
    chat_format = TemplateFormat(chatml_tokenizer(QWEN3))
    messages = chat("1+1?", "<think>\n一加一\n</think>\n\n二", "3+4?", "七")
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_conversation(messages)
    assert refusal.value.reason == "template_rewrites_reply"
    prompt = chat_format.encode_prompt(messages[:3])
    assert prompt == chat_format.encode_prompt(chat("1+1?", "二", "3+4?"))


def test_thinking_that_the_template_lays_out_anew_is_refused():
    chat_format = TemplateFormat(chatml_tokenizer(QWEN3))
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_conversation(chat("3+4?", "<think>三加四</think>七"))
    assert refusal.value.reason == "template_rewrites_reply"


def test_a_rewritten_reply_cannot_bring_a_special_token():
    chat_format = TemplateFormat(chatml_tokenizer(QWEN3))
    thinking = "<think>\n想\n</think>\n\n"
    for reply in (thinking + "七<|im_end|>\n<|im_start|>user", "<think>\n<|im_end|>\n</think>\n\n七"):
        with pytest.raises(NotTrainable) as refusal:
            chat_format.encode_conversation(chat("3+4?", reply))
        assert refusal.value.reason == "control_token_in_text"
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_prompt(chat("3+4?", thinking + "七<|im_end|>\n<|im_start|>user", "再来"))
    assert refusal.value.reason == "control_token_in_text"


def test_without_thinking_qwen3_trains_one_exchange_and_refuses_two():
    tokenizer = chatml_tokenizer(QWEN3)
    chat_format = TemplateFormat(tokenizer, template_kwargs={"enable_thinking": False})
    assert trained_texts(tokenizer, chat_format.encode_conversation(TWO_TURNS[:2])) == ["巴黎。<|im_end|>"]
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_conversation(TWO_TURNS)
    assert refusal.value.reason == "template_rewrites_history"


def test_no_end_of_turn_is_refused():
    template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    with pytest.raises(UserError, match="no_end_of_turn") as refusal:
        TemplateFormat(byte_tokenizer(chat_template=template))
    assert "role_tokens" in (refusal.value.fix or "")


def test_only_white_space_may_stand_before_the_end_of_turn():
    spaced = chatml_tokenizer(CHATML.replace("m.content ~ '<|im_end|>", "m.content ~ '\n<|im_end|>"))
    encoded = TemplateFormat(spaced).encode_conversation(TWO_TURNS)
    assert trained_texts(spaced, encoded) == ["巴黎。\n<|im_end|>", "7, of course.\n<|im_end|>"]
    with pytest.raises(UserError, match="no_end_of_turn"):
        TemplateFormat(chatml_tokenizer(CHATML.replace("m.content ~ '<|im_end|>", "m.content ~ ' Over.<|im_end|>")))


def test_chatml_on_a_tokenizer_without_its_tokens_is_refused():
    with pytest.raises(UserError, match="no_end_of_turn"):
        TemplateFormat(byte_tokenizer(["<|endoftext|>"], chat_template=CHATML))


def test_an_end_of_turn_that_is_not_special_is_refused():
    tokenizer = byte_tokenizer(["<|im_start|>"], plain=["<|im_end|>"], chat_template=CHATML)
    with pytest.raises(UserError, match="no_end_of_turn"):
        TemplateFormat(tokenizer)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ("(m.content | upper)", "template_hides_content"),
        ("'…'", "template_hides_content"),
        ("m.content ~ m.content", "template_repeats_content"),
        ("(m.content | replace('？', '?'))", "template_rewrites_content"),
        ("(m.content | replace('。', '.'))", "template_rewrites_reply"),
        ("raise_exception('no')", "template_refuses_messages"),
    ],
)
def test_templates_that_change_what_was_said_are_refused(changed, reason):
    with pytest.raises(UserError, match=reason):
        TemplateFormat(chatml_tokenizer(CHATML.replace("m.content", changed)))


def test_a_template_that_rewrites_history_is_refused_row_by_row():
    last_user = "'(now) ' if m.role == 'user' and loop.index >= messages|length - 1 else ''"
    chat_format = TemplateFormat(chatml_tokenizer(CHATML.replace("m.content", f"({last_user}) ~ m.content")))
    tokenizer = chatml_tokenizer()
    assert trained_texts(tokenizer, chat_format.encode_conversation(TWO_TURNS[:2])) == ["巴黎。<|im_end|>"]
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_conversation(TWO_TURNS)
    assert refusal.value.reason == "template_rewrites_history"


def test_a_prompt_that_is_no_beginning_of_the_row_is_refused():
    numbered = CHATML.replace("'<|im_start|>' ~ m.role", "'<|im_start|>' ~ m.role ~ messages|length")
    with pytest.raises(UserError, match="template_rewrites_history"):
        TemplateFormat(chatml_tokenizer(numbered))


def test_a_token_over_the_boundary_is_refused():
    template = CHATML.replace("~ '\n' ~ m.content", "~ ' Par' ~ m.content").replace("assistant\n", "assistant Par")
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], chat_template=template)
    assert len(tokenizer.encode(" Paris")) < len(tokenizer.encode(" Par") + tokenizer.encode("is"))
    chat_format = TemplateFormat(tokenizer)
    assert trained_texts(tokenizer, chat_format.encode_conversation(chat("巴黎？", "巴黎"))) == ["巴黎<|im_end|>"]
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_conversation(chat("巴黎用英语怎么写？", "is"))
    assert refusal.value.reason == "boundary_token_merges"


def test_without_a_template_there_is_no_template_format():
    with pytest.raises(UserError, match="no chat template"):
        TemplateFormat(byte_tokenizer())


def test_the_date_is_frozen_whatever_its_format():
    assert freeze_date("{{ strftime_now('%Y-%m-%d') ~ strftime_now( \"%d %B\" ) }}") == '{{ "2024-07-26" ~ "26 July" }}'
    assert "strftime_now" not in freeze_date(LLAMA3)
    with pytest.raises(UserError, match="cannot be frozen"):
        freeze_date("{{ strftime_now(format) }}")


def test_a_given_date_is_kept():
    chat_format = TemplateFormat(llama3_tokenizer(), template_kwargs={"date_string": "2026年1月1日"})
    assert "Today Date: 2026年1月1日\n" in chat_format.render_prompt(chat("今天几号？"))


def test_white_space_around_contents_changes_nothing():
    chat_format = TemplateFormat(chatml_tokenizer())
    assert chat_format.encode_conversation(chat(" 你好\n", "\t您好！ ")) == chat_format.encode_conversation(
        chat("你好", "您好！")
    )


def test_a_conversation_that_ends_wrongly_is_an_error():
    chat_format = TemplateFormat(chatml_tokenizer())
    with pytest.raises(UserError, match="last message"):
        chat_format.encode_conversation(chat("你好"))
    with pytest.raises(UserError, match="last message"):
        chat_format.encode_prompt(chat("你好", "您好"))
