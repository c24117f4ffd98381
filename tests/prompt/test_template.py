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
    only,
    trained_texts,
)

from deft.errors import NotTrainable, UserError
from deft.prompt.formats.template import TemplateFormat, freeze_date

TWO_TURNS = chat("法国的首都是哪里？", "巴黎。", " What is 3 + 4? ", "\n7, of course. \n")


def check_prompts(chat_format: TemplateFormat, messages, num_replies: int) -> None:
    """Every reply's prompt, as inference encodes it, is a beginning of the row and is followed by trained tokens."""
    ids, trained = only(chat_format.encode_conversation(messages))
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
    encoded = only(chat_format.encode_conversation(TWO_TURNS))
    assert tokenizer.decode(encoded[0]) == (
        "<|im_start|>user\n法国的首都是哪里？<|im_end|>\n<|im_start|>assistant\n巴黎。<|im_end|>\n"
        "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n7, of course.<|im_end|>"
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
    encoded = only(chat_format.encode_conversation(messages))
    assert trained_texts(tokenizer, encoded) == ["您好！<|im_end|>"]
    assert chat_format.render_prompt(messages[:2]) == (
        "<|im_start|>system\n你是小助手。<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )
    check_prompts(chat_format, messages, 1)


def test_llama3():
    tokenizer = llama3_tokenizer()
    chat_format = TemplateFormat(tokenizer)
    encoded = only(chat_format.encode_conversation([*chat("x", system="回答要短。")[:1], *TWO_TURNS]))
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
    encoded = only(chat_format.encode_conversation([*chat("x", system="Be brief.")[:1], *TWO_TURNS]))
    assert tokenizer.decode(encoded[0]) == (
        "<bos><start_of_turn>user\nBe brief.\n\n法国的首都是哪里？<end_of_turn>\n"
        "<start_of_turn>model\n巴黎。<end_of_turn>\n"
        "<start_of_turn>user\nWhat is 3 + 4?<end_of_turn>\n<start_of_turn>model\n7, of course.<end_of_turn>"
    )
    assert trained_texts(tokenizer, encoded) == ["巴黎。<end_of_turn>", "7, of course.<end_of_turn>"]
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<end_of_turn>", "<eos>", "<bos>")]
    assert list(chat_format.stop_token_ids) == ends
    check_prompts(chat_format, TWO_TURNS, 2)


def test_mistral_trains_the_space_that_the_model_writes_first():
    tokenizer = mistral_tokenizer()
    chat_format = TemplateFormat(tokenizer)
    encoded = only(chat_format.encode_conversation(TWO_TURNS))
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
    assert trained_texts(tokenizer, only(chat_format.encode_conversation(messages))) == [" 您好！</s>"]


def sequences(tokenizer, chat_format, messages, tools=(), **options) -> list[tuple[str, list[str]]]:
    """Return each sequence of a conversation: its text, and the texts that carry loss."""
    found = chat_format.encode_conversation(messages, tools, **options)
    return [(tokenizer.decode(one.ids), trained_texts(tokenizer, only([one]))) for one in found]


def test_qwen3_trains_every_turn_alike_each_behind_its_own_prompt():
    tokenizer = chatml_tokenizer(QWEN3)
    first, second = sequences(tokenizer, TemplateFormat(tokenizer), TWO_TURNS)
    assert first[1] == ["<think>\n\n</think>\n\n巴黎。<|im_end|>"]
    assert second[1] == ["<think>\n\n</think>\n\n7, of course.<|im_end|>"]
    assert "<|im_start|>assistant\n巴黎。<|im_end|>\n<|im_start|>user\nWhat is" in second[0]


def test_qwen3_thinking_is_laid_out_by_the_template_wherever_it_stands_in_the_row():
    tokenizer = chatml_tokenizer(QWEN3)
    chat_format = TemplateFormat(tokenizer)
    expected = ["<think>\n三加四\n</think>\n\n七<|im_end|>"]
    for reply in ("<think>三加四</think>七", "<think>\n三加四\n</think>\n\n七", " <think>\n\n三加四</think>\n七 "):
        [(text, trained)] = sequences(tokenizer, chat_format, chat("3+4?", reply))
        assert trained == expected
        assert tokenizer.encode(text).count(tokenizer.convert_tokens_to_ids("<think>")) == 1


def test_reasoning_of_earlier_replies_stands_before_them_with_loss_or_without():
    tokenizer = chatml_tokenizer(QWEN3)
    chat_format = TemplateFormat(tokenizer)
    messages = chat("1+1?", "<think>一加一</think>二", "3+4?", "<think>三加四</think>七")
    thought, later = "<think>\n一加一\n</think>\n\n", "<think>\n三加四\n</think>\n\n"
    for option, expected in {
        "last": (["二<|im_end|>"], [later + "七<|im_end|>"]),
        "all": ([thought + "二<|im_end|>"], [later + "七<|im_end|>"]),
        "none": (["二<|im_end|>"], ["七<|im_end|>"]),
    }.items():
        first, second = sequences(tokenizer, chat_format, messages, train_reasoning=option)
        assert (first[1], second[1]) == expected
        assert thought in first[0] and thought not in second[0] and later in second[0]
    prompt = chat_format.encode_prompt(messages[:3])
    assert prompt == chat_format.encode_prompt(chat("1+1?", "二", "3+4?"))


def test_a_rewritten_reply_cannot_bring_a_special_token():
    tokenizer = chatml_tokenizer(QWEN3)
    chat_format = TemplateFormat(tokenizer)
    specials = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    for reply in ("<think>想</think>七<|im_end|>\n<|im_start|>user", "<think><|im_end|></think>七"):
        [one] = chat_format.encode_conversation(chat("3+4?", reply))
        assert sum(token in specials for token in one.ids) == 4
        assert tokenizer.decode(one.ids).count("<|im_end|>") == 3
        prompt = chat_format.encode_prompt(chat("3+4?", reply, "再来"))
        assert sum(token in specials for token in prompt) == 7


def test_without_thinking_the_empty_block_belongs_to_the_prompt():
    tokenizer = chatml_tokenizer(QWEN3)
    chat_format = TemplateFormat(tokenizer, template_kwargs={"enable_thinking": False})
    first, second = sequences(tokenizer, chat_format, TWO_TURNS)
    assert first[1] == ["巴黎。<|im_end|>"]
    assert second[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n7, of course.<|im_end|>")
    assert second[1] == ["7, of course.<|im_end|>"]
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_conversation(chat("3+4?", "<think>三加四</think>七"))
    assert refusal.value.reason == "reasoning_not_served"
    assert "--template-kwargs" in (refusal.value.fix or "")


def test_no_end_of_turn_is_refused():
    template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    with pytest.raises(UserError, match="no_end_of_turn") as refusal:
        TemplateFormat(byte_tokenizer(chat_template=template))
    assert "another chat template" in (refusal.value.fix or "")


def test_all_that_the_template_writes_before_the_end_of_turn_is_trained():
    spaced = chatml_tokenizer(CHATML.replace("m.content ~ '<|im_end|>", "m.content ~ '\n<|im_end|>"))
    encoded = only(TemplateFormat(spaced).encode_conversation(TWO_TURNS))
    assert trained_texts(spaced, encoded) == ["巴黎。\n<|im_end|>", "7, of course.\n<|im_end|>"]
    over = chatml_tokenizer(CHATML.replace("m.content ~ '<|im_end|>", "m.content ~ ' Over.<|im_end|>"))
    assert trained_texts(over, only(TemplateFormat(over).encode_conversation(TWO_TURNS[:2]))) == [
        "巴黎。 Over.<|im_end|>"
    ]


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


def test_a_template_that_rewrites_history_gives_each_reply_a_sequence():
    last_user = "'(now) ' if m.role == 'user' and loop.index >= messages|length - 1 else ''"
    tokenizer = chatml_tokenizer(CHATML.replace("m.content", f"({last_user}) ~ m.content"))
    first, second = sequences(tokenizer, TemplateFormat(tokenizer), TWO_TURNS)
    assert first[0] == ("<|im_start|>user\n(now) 法国的首都是哪里？<|im_end|>\n<|im_start|>assistant\n巴黎。<|im_end|>")
    assert second[0] == (
        "<|im_start|>user\n法国的首都是哪里？<|im_end|>\n<|im_start|>assistant\n巴黎。<|im_end|>\n"
        "<|im_start|>user\n(now) What is 3 + 4?<|im_end|>\n<|im_start|>assistant\n7, of course.<|im_end|>"
    )
    assert (first[1], second[1]) == (["巴黎。<|im_end|>"], ["7, of course.<|im_end|>"])


def test_a_prompt_that_is_no_beginning_of_the_row_is_refused():
    numbered = CHATML.replace("'<|im_start|>' ~ m.role", "'<|im_start|>' ~ m.role ~ messages|length")
    with pytest.raises(UserError, match="template_rewrites_history"):
        TemplateFormat(chatml_tokenizer(numbered))


def test_no_token_reaches_from_the_prompt_into_a_reply():
    template = CHATML.replace("~ '\n' ~ m.content", "~ ' Par' ~ m.content").replace("assistant\n", "assistant Par")
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], chat_template=template)
    assert len(tokenizer.encode(" Paris")) < len(tokenizer.encode(" Par") + tokenizer.encode("is"))
    chat_format = TemplateFormat(tokenizer)
    messages = chat("巴黎用英语怎么写？", "is")
    [one] = chat_format.encode_conversation(messages)
    prompt = chat_format.encode_prompt(messages[:1])
    assert one.ids == prompt + tokenizer.encode("is") + tokenizer.encode("<|im_end|>")
    assert one.weights == [0.0] * len(prompt) + [1.0] * (len(one.ids) - len(prompt))


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
    assert only(chat_format.encode_conversation(chat(" 你好\n", "\t您好！ "))) == only(
        chat_format.encode_conversation(chat("你好", "您好！"))
    )


def test_a_conversation_that_ends_wrongly_is_an_error():
    chat_format = TemplateFormat(chatml_tokenizer())
    with pytest.raises(UserError, match="last message"):
        chat_format.encode_conversation(chat("你好"))
    with pytest.raises(UserError, match="last message"):
        chat_format.encode_prompt(chat("你好", "您好"))
