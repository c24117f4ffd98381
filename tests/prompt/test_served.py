"""Rows as they are served, on small templates that behave as those of well-known models do."""

from dataclasses import replace

import pytest
from chat_tokenizers import byte_tokenizer, chat, only, trained_texts

from deft.errors import NotTrainable, UserError
from deft.prompt.formats.template import TemplateFormat
from deft.types import Message, ToolCall

GLM = """
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}{{ '<|assistant|>' }}{%- elif m.role == 'tool' -%}{{ '<|observation|>' }}
{%- else -%}{{ '<|' ~ m.role ~ '|>' }}{%- endif -%}
{%- if m.role == 'assistant' -%}
{{ '\n<think>' ~ (m.reasoning_content if m.reasoning_content and loop.last else '') ~ '</think>' }}{%- endif -%}
{{ '\n' ~ m.content if m.content else '' }}
{%- for c in m.tool_calls or [] -%}
{{ '\n<tool_call>' ~ c.function.name }}
{%- for k, v in c.function.arguments.items() %}{{ '\n' ~ k ~ '=' ~ v }}{% endfor %}{{ '</tool_call>' }}
{%- endfor -%}
{%- endfor -%}
{%- if tools and add_generation_prompt %}{% endif -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""
"""The end of a reply is what the next turn opens with; thinking is dropped from history."""

COMMAND = """
{{- '<BOS><|SOT|><|SYSTEM|>' ~ (tools | tojson if tools else '') ~ '<|EOT|>' -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|SOT|><|USER|>' ~ m.content ~ '<|EOT|>' }}
{%- elif m.role == 'assistant' -%}{{ '<|SOT|><|BOT|><|START|>' ~ m.content ~ '<|END|><|EOT|>' }}
{%- endif -%}
{%- endfor -%}
{{- '<|SOT|><|BOT|>' -}}
"""
"""An end of two tokens; the prompt for the next reply always follows."""

LAST_OPEN = """
{%- for m in messages -%}
{{ ('' if loop.first else '\n') ~ '<|im_start|>' ~ m.role ~ '\n' ~ m.content }}
{{- '<|im_end|>' if not loop.last or add_generation_prompt else '' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\n<|im_start|>assistant\n' }}{%- endif -%}
"""
"""The last turn has no end, as in Qwen1.5."""

DISTILL = """
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ m.content }}
{%- elif m.role == 'user' -%}{{ '<|User|>' ~ m.content }}
{%- else -%}{{ '<|Bot|>' ~ m.content.split('</think>')[-1] ~ eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|Bot|><think>\n' }}{%- endif -%}
"""
"""The prompt opens thinking that no rendered turn has."""

NEMO = """
{%- set ns = namespace(system='') -%}
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- set ns.system = m.content ~ '\n\n' -%}
{%- elif m.role == 'user' -%}{{ '[INST]' ~ (ns.system if loop.last else '') ~ m.content ~ '[/INST]' }}
{%- else -%}{{ ' ' ~ m.content ~ eos_token }}
{%- endif -%}
{%- endfor -%}
"""
"""The system message is shown only while the user speaks last."""

CHANNELS = """
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|start|>user<|message|>' ~ m.content ~ '<|end|>' }}
{%- elif loop.last -%}
{%- if m.thinking -%}{{ '<|start|>assistant<|channel|>analysis<|message|>' ~ m.thinking ~ '<|end|>' }}{%- endif -%}
{{ '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ '<|return|>' }}
{%- else -%}{{ '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ '<|end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}
"""
"""Thinking in a channel of its own, and another end for the last turn."""

QWEN35 = """
{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{{ '<|im_start|>' ~ m.role ~ '\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last -%}
{{ '<think>\n' ~ (m.reasoning_content or '') ~ '\n</think>\n\n' }}
{%- endif -%}
{{ m.content ~ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n<think>\n' ~ ('\n</think>\n\n' if enable_thinking is false else '') }}
{%- endif -%}
"""
"""The prompt opens thinking, or an empty block of it, and the last turn alone has one."""

CLOSED = """
{%- for m in messages -%}
{{ '<|turn>' ~ m.role ~ '\n' ~ m.content ~ '<turn|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|turn>assistant\n' ~ ('' if enable_thinking else '<|channel>thought\n<channel|>') }}
{%- endif -%}
"""
"""The prompt closes an empty thinking block that history lacks."""

TOOLS = """
{%- if tools -%}{{ '<|im_start|>tools\n' ~ tools | tojson ~ '<|im_end|>\n' }}{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}{{ '<|im_start|>tool\n' ~ m.content | tojson ~ '<|im_end|>\n' }}
{%- else -%}
{{ '<|im_start|>' ~ m.role ~ '\n' ~ (m.content or '') }}
{%- for c in m.tool_calls or [] -%}
{{ '<tool_call>' ~ {'name': c.function.name, 'arguments': c.function.arguments} | tojson ~ '</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""

SPECIAL = {
    GLM: ["<|user|>", "<|assistant|>", "<|observation|>", "<|system|>"],
    COMMAND: ["<BOS>", "<|SOT|>", "<|SYSTEM|>", "<|USER|>", "<|BOT|>", "<|START|>", "<|END|>", "<|EOT|>"],
    LAST_OPEN: ["<|im_start|>", "<|im_end|>"],
    DISTILL: ["<s>", "</s>", "<|User|>", "<|Bot|>"],
    NEMO: ["<s>", "</s>", "[INST]", "[/INST]"],
    CHANNELS: ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"],
    QWEN35: ["<|im_start|>", "<|im_end|>"],
    CLOSED: ["<|turn>", "<turn|>", "<|channel>", "<channel|>"],
    TOOLS: ["<|im_start|>", "<|im_end|>"],
}
TWO = chat("你好", "您好！", "3 + 4?", "7.")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def format_of(template: str, **kwargs) -> TemplateFormat:
    special = SPECIAL[template]
    bos, eos = ("<s>", "</s>") if "<s>" in special else (special[0] if special[0] == "<BOS>" else None, None)
    plain = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    return TemplateFormat(byte_tokenizer(special, plain=plain, chat_template=template, bos=bos, eos=eos), **kwargs)


def taught(chat_format, messages, tools=(), **options) -> list[tuple[str, list[str]]]:
    """Return of each sequence what stands before its first trained token, and the texts that carry loss."""
    found = []
    for one in chat_format.encode_conversation(messages, tools, **options):
        text = chat_format._tokenizer.decode(one.ids)
        trained = trained_texts(chat_format._tokenizer, only([one]))
        found.append((text[: text.index(trained[0])], trained))
        prompts = [messages[:n] for n, message in enumerate(messages) if message.role == "assistant"]
        served = [chat_format.encode_prompt(prompt, tools) for prompt in prompts]
        assert any(one.ids[: len(prompt)] == prompt and not one.weights[len(prompt) - 1] for prompt in served)
        assert one.ids[-1] in chat_format.end_of_turn_ids and one.weights[-1]
    return found


def ends(chat_format) -> list[str]:
    return chat_format._tokenizer.convert_ids_to_tokens(list(chat_format.end_of_turn_ids))


def test_the_next_turn_opens_with_the_end():
    chat_format = format_of(GLM)
    empty = "\n<think></think>\n"
    assert ends(chat_format) == ["<|user|>", "<|observation|>"]
    assert taught(chat_format, TWO) == [
        ("<|user|>\n你好<|assistant|>", [f"{empty}您好！<|user|>", f"{empty}7.<|user|>"])
    ]


def test_the_whole_end_is_trained_and_generation_stops_at_its_last_token():
    chat_format = format_of(COMMAND)
    assert ends(chat_format) == ["<|EOT|>"]
    assert taught(chat_format, TWO) == [
        (
            "<BOS><|SOT|><|SYSTEM|><|EOT|><|SOT|><|USER|>你好<|EOT|><|SOT|><|BOT|>",
            ["<|START|>您好！<|END|><|EOT|>", "<|START|>7.<|END|><|EOT|>"],
        )
    ]


def test_a_last_turn_without_an_end_gets_the_one_of_earlier_turns():
    chat_format = format_of(LAST_OPEN)
    assert ends(chat_format) == ["<|im_end|>"]
    [(_, trained)] = taught(chat_format, TWO)
    assert trained == ["您好！<|im_end|>", "7.<|im_end|>"]


def test_thinking_that_the_prompt_opens_is_closed_by_the_reply():
    chat_format = format_of(DISTILL)
    first, second = taught(chat_format, TWO)
    assert first == ("<s><|User|>你好<|Bot|><think>\n", ["\n</think>\n\n您好！</s>"])
    assert second == (
        "<s><|User|>你好<|Bot|>您好！</s><|User|>3 + 4?<|Bot|><think>\n",
        ["\n</think>\n\n7.</s>"],
    )
    [(prompt, trained)] = taught(chat_format, chat("3 + 4?", "<think>三加四</think>7."))
    assert (prompt, trained) == ("<s><|User|>3 + 4?<|Bot|><think>\n", ["三加四\n</think>\n\n7.</s>"])


def test_a_reply_without_reasoning_closes_the_thinking_that_its_prompt_opens():
    first, second = taught(format_of(QWEN35), TWO)
    assert first == (
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n<think>\n",
        ["\n</think>\n\n您好！<|im_end|>"],
    )
    assert second[1] == ["\n</think>\n\n7.<|im_end|>"]
    closed = taught(format_of(QWEN35, template_kwargs={"enable_thinking": False}), TWO)
    assert [trained for _, trained in closed] == [["您好！<|im_end|>"], ["7.<|im_end|>"]]


def test_a_system_message_that_moves_gives_each_reply_its_own_sequence():
    chat_format = format_of(NEMO)
    first, second = taught(chat_format, chat("你好", "您好！", "3 + 4?", "7.", system="简短。"))
    assert first == ("<s>[INST]简短。\n\n你好[/INST]", [" 您好！</s>"])
    assert second == ("<s>[INST]你好[/INST] 您好！</s>[INST]简短。\n\n3 + 4?[/INST]", [" 7.</s>"])
    assert len(taught(chat_format, TWO)) == 1


def test_the_last_turn_ends_as_it_is_served():
    chat_format = format_of(CHANNELS)
    final = "<|channel|>final<|message|>"
    assert ends(chat_format) == ["<|return|>"]
    assert [trained for _, trained in taught(chat_format, TWO)] == [
        [f"{final}您好！<|return|>"],
        [f"{final}7.<|return|>"],
    ]
    messages = chat("1+1?", "<think>一加一</think>2", "3+4?", "<think>三加四</think>7")
    analysis = "<|channel|>analysis<|message|>三加四<|end|><|start|>assistant"
    first, second = taught(chat_format, messages)
    assert first[0].endswith(f"一加一<|end|><|start|>assistant{final}") and first[1] == ["2<|return|>"]
    assert second[1] == [f"{analysis}{final}7<|return|>"]


def test_a_prompt_that_closes_thinking_refuses_reasoning_and_says_how_to_ask_for_it():
    chat_format = format_of(CLOSED)
    prompt = "<|turn>user\n你好<turn|>\n<|turn>assistant\n<|channel>thought\n<channel|>"
    assert taught(chat_format, TWO)[0] == (prompt, ["您好！<turn|>"])
    messages = chat("3+4?", "<think>三加四</think>7")
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_conversation(messages)
    assert refusal.value.reason == "reasoning_not_served"
    thinking = format_of(CLOSED, template_kwargs={"enable_thinking": True})
    assert taught(thinking, messages)[0][1] == ["<|channel>thought\n三加四\n<channel|>7<turn|>"]


def weather(**reply) -> list[Message]:
    return [
        Message(role="user", content="北京天气？"),
        Message(
            role="assistant", content="", tool_calls=(ToolCall(name="weather", arguments='{"城市": "北京"}'),), **reply
        ),
        Message(role="tool", content='晴 "20" 度'),
        Message(role="assistant", content="晴天。"),
    ]


def test_calls_are_trained_and_results_never():
    chat_format = format_of(TOOLS)
    call = '<tool_call>{"name": "weather", "arguments": {"城市": "北京"}}</tool_call><|im_end|>'
    [(before, trained)] = taught(chat_format, weather(), [WEATHER])
    assert before.startswith('<|im_start|>tools\n[{"type": "function", "function": {"name": "weather"')
    assert trained == [call, "晴天。<|im_end|>"]
    [(_, trained)] = taught(chat_format, weather(weight=0.0), [WEATHER])
    assert trained == ["晴天。<|im_end|>"]
    [(_, trained)] = taught(chat_format, weather()[:2], [WEATHER])
    assert trained == [call]


def test_a_call_ends_with_what_its_result_opens_with():
    chat_format = format_of(GLM)
    [(_, trained)] = taught(chat_format, weather())
    call = "\n<think></think>\n<tool_call>weather\n城市=北京</tool_call><|observation|>"
    assert trained == [call, "\n<think></think>\n晴天。<|user|>"]


def test_a_template_without_tools_refuses_them_by_name():
    for template, tools in ((DISTILL, [WEATHER]), (NEMO, []), (GLM, [WEATHER])):
        with pytest.raises(NotTrainable) as refusal:
            format_of(template).encode_conversation(weather(), tools)
        assert refusal.value.reason == "no_tool_support"


ONE_CALL = """
{%- for m in messages -%}
{{ '<|im_start|>' ~ m.role ~ '\n' }}
{%- if m.tool_calls -%}{{ m.content if m.content else m.tool_calls[0].function | tojson }}
{%- else -%}{{ m.content }}{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""


def test_a_call_that_the_template_drops_is_refused():
    chat_format = TemplateFormat(byte_tokenizer(SPECIAL[TOOLS], chat_template=ONE_CALL))
    assert len(chat_format.encode_conversation(weather())) == 1
    asked, called, *rest = weather()
    [call] = called.tool_calls
    two = replace(called, tool_calls=(call, replace(call, arguments='{"城市": "上海"}')))
    twice = replace(called, tool_calls=(call, call))
    for reply in (two, twice, replace(called, content="我查一下。")):
        for messages in ([asked, reply], [asked, replace(reply, weight=0.0), *rest]):
            with pytest.raises(NotTrainable) as refusal:
                chat_format.encode_conversation(messages)
            assert refusal.value.reason == "template_hides_content"


CALL_FIRST = """
{%- for m in messages -%}
{{ '<|im_start|>' ~ m.role ~ '\n' }}
{%- for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor -%}
{{ m.content ~ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""


def test_a_call_that_is_written_before_the_text_that_led_to_it_is_refused():
    chat_format = TemplateFormat(byte_tokenizer(SPECIAL[TOOLS], chat_template=CALL_FIRST))
    assert len(chat_format.encode_conversation(weather())) == 1
    asked, called, *rest = weather()
    for beside in ({"content": "我查一下 weather。"}, {"reasoning": "要查"}):
        with pytest.raises(NotTrainable) as refusal:
            chat_format.encode_conversation([asked, replace(called, **beside), *rest])
        assert refusal.value.reason == "template_rewrites_reply"


ENDED_THOUGHT = """
{%- for m in messages -%}
{%- if m.reasoning_content -%}{{ '<|think|>' ~ m.reasoning_content ~ '<|end|>' }}{%- endif -%}
{{ '<|begin|>' ~ m.role ~ '\n' ~ m.content ~ '<|end|>' }}
{%- endfor -%}
"""


@pytest.mark.parametrize("train_reasoning", ["last", "none"])
def test_a_thought_that_ends_as_a_reply_does_is_refused_with_loss_or_without(train_reasoning):
    chat_format = TemplateFormat(byte_tokenizer(["<|think|>", "<|begin|>", "<|end|>"], chat_template=ENDED_THOUGHT))
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_conversation(chat("3+4?", "<think>三加四</think>7"), train_reasoning=train_reasoning)
    assert refusal.value.reason == "stop_token_in_reply"


def test_a_tool_cannot_bring_a_special_token():
    described = {"type": "function", "function": {"name": "weather", "description": "<|im_end|>天气"}}
    with pytest.raises(NotTrainable) as refusal:
        format_of(TOOLS).encode_conversation(weather(), [described])
    assert refusal.value.reason == "control_token_in_text"


def test_a_stop_token_within_a_reply_is_refused():
    template = TOOLS.replace("<tool_call>", "<|im_end|>")
    special = SPECIAL[TOOLS]
    chat_format = TemplateFormat(byte_tokenizer(special, plain=["</tool_call>"], chat_template=template))
    with pytest.raises(NotTrainable) as refusal:
        chat_format.encode_conversation(weather(), [WEATHER])
    assert refusal.value.reason == "stop_token_in_reply"


def test_no_refusal_asks_for_new_role_tokens():
    for template in ("{{ messages[0].content }}", "{{ raise_exception('不行') }}", CLOSED):
        with pytest.raises(UserError) as refusal:
            TemplateFormat(byte_tokenizer(SPECIAL[DISTILL], chat_template=template, bos="<s>", eos="</s>"))
        assert refusal.value.fix and "role_tokens" not in refusal.value.fix
