"""Small tokenizers and chat templates, written for these tests, that behave as well-known ones do."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deft.prompt.formats.kinds import Encoded
from deft.types import Message

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
CORPUS = [
    "What is the capital of France? The capital of France is Paris. system user assistant model",
    "你好，请问法国的首都是哪里？法国的首都是巴黎。谢谢你！不客气，再见。\n\n我们今天学习数学，明天学习语文。",
] * 4

CHATML = """
{%- for m in messages -%}
{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""

CHATML_WITH_MARKS = """
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content ~ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
{%- else -%}
{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""

LLAMA3 = """
{%- if date_string is not defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}{%- endif -%}
{%- set ns = namespace(system='', rest=messages) -%}
{%- if messages[0].role == 'system' -%}
{%- set ns.system = messages[0].content | trim -%}{%- set ns.rest = messages[1:] -%}
{%- endif -%}
{{ bos_token ~ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' ~ date_string ~ '\n\n' }}
{{- ns.system ~ '<|eot_id|>' }}
{%- for m in ns.rest -%}
{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ (m.content | trim) ~ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}
"""

GEMMA3 = """
{{- bos_token -}}
{%- set ns = namespace(first='', rest=messages) -%}
{%- if messages[0].role == 'system' -%}
{%- set ns.first = messages[0].content ~ '\n\n' -%}{%- set ns.rest = messages[1:] -%}
{%- endif -%}
{%- for m in ns.rest -%}
{%- if (m.role == 'user') == (loop.index0 is odd) -%}{{ raise_exception('roles must take turns') }}{%- endif -%}
{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' }}
{{- (ns.first if loop.first else '') ~ (m.content | trim) ~ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""

QWEN3 = """
{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role != 'assistant' -%}
{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}
{%- else -%}
{%- set thought = '' -%}{%- set said = m.content -%}
{%- if '</think>' in m.content -%}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
{%- set said = m.content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{ '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last -%}{{ '<think>\n' ~ thought ~ '\n</think>\n\n' }}{%- endif -%}
{{ said ~ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}
{%- endif -%}
"""

MISTRAL = """
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '[INST] ' ~ m.content ~ ' [/INST]' }}
{%- elif m.role == 'assistant' -%}{{ ' ' ~ m.content ~ eos_token }}
{%- else -%}{{ raise_exception('only user and assistant roles') }}
{%- endif -%}
{%- endfor -%}
"""


@cache
def backend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_tokenizer(
    special: Sequence[str | AddedToken] = (),
    *,
    plain: Sequence[str] = (),
    chat_template: str | None = None,
    bos: str | None = None,
    eos: str | None = None,
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the special and the other added tokens."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend().to_str()), bos_token=bos, eos_token=eos
    )
    tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.add_tokens(list(plain))
    tokenizer.chat_template = chat_template
    return tokenizer


def chatml_tokenizer(chat_template: str = CHATML) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_tokenizer(special, plain=["<think>", "</think>"], chat_template=chat_template, eos="<|im_end|>")


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_tokenizer(special, chat_template=LLAMA3, bos="<|begin_of_text|>", eos="<|eot_id|>")


def gemma3_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    return byte_tokenizer(special, plain=["\n\n", "  "], chat_template=GEMMA3, bos="<bos>", eos="<eos>")


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<s>", "</s>", "[INST]", "[/INST]"]
    return byte_tokenizer(special, chat_template=MISTRAL, bos="<s>", eos="</s>")


def role_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(["<s>", "</s>", "<user>", "<assistant>", "<eot>"], bos="<s>", eos="</s>")


def chat(*contents: str, system: str | None = None) -> list[Message]:
    """Return a conversation: user and assistant in turn, after the system message."""
    roles = ("user", "assistant")
    turns = [Message(role=roles[i % 2], content=text) for i, text in enumerate(contents)]
    return [Message(role="system", content=system), *turns] if system else turns


def only(encoded: list[Encoded]) -> tuple[list[int], list[bool]]:
    """Return the ids of the one sequence that a conversation became, and which of them carry loss."""
    [one] = encoded
    return one.ids, [weight > 0 for weight in one.weights]


def trained_texts(tokenizer, encoded) -> list[str]:
    """Return the text of each run of tokens that carry loss."""
    ids, trained = encoded
    runs = groupby(zip(ids, trained, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for carries_loss, run in runs if carries_loss]


def fixture_folder(name: str) -> Path:
    """Return a folder of shared fixtures, or skip the test where it is not there."""
    folder = FIXTURES / name
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    return folder
