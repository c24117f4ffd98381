"""The fast way gives what the slow way gives, or leaves the row to it."""

from dataclasses import replace

import pytest
from chat_tokenizers import (
    CHATML,
    GEMMA3,
    LLAMA3,
    MISTRAL,
    QWEN3,
    byte_tokenizer,
    chat,
    chatml_tokenizer,
    gemma3_tokenizer,
    llama3_tokenizer,
    mistral_tokenizer,
)
from test_served import SPECIAL, WEATHER, format_of, weather

from deft.errors import NotTrainable
from deft.prompt.formats.batches import deciding_words
from deft.prompt.formats.template import TemplateFormat

MADE = {
    "chatml": lambda: TemplateFormat(chatml_tokenizer()),
    "qwen3": lambda: TemplateFormat(chatml_tokenizer(QWEN3)),
    "llama3": lambda: TemplateFormat(llama3_tokenizer()),
    "gemma3": lambda: TemplateFormat(gemma3_tokenizer()),
    "mistral": lambda: TemplateFormat(mistral_tokenizer()),
    **{f"served {number}": lambda template=template: format_of(template) for number, template in enumerate(SPECIAL)},
}
TWO = chat("你好", "您好！", "3 + 4?", "7.")
CONVERSATIONS = [
    *([chat(f"第 {number} 问", f"第 {number} 答，{'很' * number}长")] for number in range(3)),
    [TWO],
    [[*chat("x", system="简短。")[:1], *TWO]],
    [chat("标签 </think> 和 <think>", "它是 </think>。", "then", "<tool_call> <|im_end|> </s> [INST]")],
    [chat(" \n空白 ", "\t回答\n\n", "again", " x ")],
    [chat("1+1?", "<think>一加一</think>二", "3+4?", "<think>三加四</think>七")],
    [chat("3+4?", "<think>三加四</think>七")],
    [[TWO[0], replace(TWO[1], weight=0.0), *TWO[2:]]],
    [[TWO[0], replace(TWO[1], weight=0.5), *TWO[2:]]],
    [[*TWO[:3], replace(TWO[3], weight=0.0)]],
    [chat(*["问" if n % 2 == 0 else f"答{n}" for n in range(12)])],
    [chat("你好", "您好！"), chat("再见", "再见！")],
]
ROWS = [(messages, ()) for some in CONVERSATIONS for messages in some] * 2
ROWS += [(weather(), (WEATHER,))]


def outcome(found):
    return (found.reason, str(found)) if isinstance(found, NotTrainable) else found


@pytest.mark.parametrize("train_reasoning", ["last", "all", "none"])
@pytest.mark.parametrize("name", MADE)
def test_many_conversations_come_out_as_each_alone(name, train_reasoning):
    chat_format = MADE[name]()
    together = chat_format.encode_conversations(ROWS, train_reasoning=train_reasoning)
    for (messages, tools), found in zip(ROWS, together, strict=True):
        try:
            alone = chat_format.encode_conversation(messages, tools, train_reasoning=train_reasoning)
        except NotTrainable as error:
            alone = error
        assert outcome(found) == outcome(alone)


def test_plain_rows_go_the_fast_way():
    chat_format = TemplateFormat(chatml_tokenizer())
    chat_format.encode_conversations([(TWO, ())])
    slow = chat_format.encode_conversation
    met = []
    chat_format.encode_conversation = lambda *given, **options: met.append(given) or slow(*given, **options)
    chat_format.encode_conversations([(chat("甲", "乙", "丙", "丁"), ()), (chat("甲", "<|im_end|>", "丙", "丁"), ())])
    assert len(met) == 1, "a typed control token alone needs the slow way"


def test_the_words_by_which_a_template_decides():
    assert deciding_words(CHATML) == deciding_words(LLAMA3) == deciding_words(GEMMA3) == deciding_words(MISTRAL) == ()
    assert deciding_words(QWEN3) == ("</think>", "<think>")
    assert deciding_words("{{ '/no_think' in messages[0].content }}{{ x.startswith('总之') }}") == ("/no_think", "总之")
    assert deciding_words("{% for %}") is None


def test_a_template_that_decides_by_a_word_gets_rows_with_it_one_by_one():
    brief = CHATML.replace(
        "'<|im_start|>assistant\n'", "'<|im_start|>assistant\n' ~ ('!' if '/brief' in messages[0].content else '')"
    )
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], chat_template=brief)
    chat_format = TemplateFormat(tokenizer)
    rows = [(chat("长 问", "长答", "再问", "再答"), ()), (chat("/brief 问", "短答", "再问", "再答"), ())]
    for (messages, _), found in zip(rows, chat_format.encode_conversations(rows), strict=True):
        assert found == chat_format.encode_conversation(messages)
    [_, brief_rows] = chat_format.encode_conversations(rows)
    assert [tokenizer.decode(one.ids).count("assistant\n!") for one in brief_rows] == [1, 1]
