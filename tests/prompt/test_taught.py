"""A model that was taught reasoning in five layouts thinks where it was taught to, and stops by itself.

Tiny models learn a few rows by heart; then they are asked in deft, and, exported, in plain transformers.
"""

from pathlib import Path

import pytest
import torch
from chat_tokenizers import byte_tokenizer
from rich.console import Console
from test_served import CHANNELS, CLOSED, GLM, QWEN35, SPECIAL

from deft.publish.export import export
from deft.serve.assistant import Assistant
from deft.serve.thoughts import parts_of
from deft.testing.tiny import tiny_model
from deft.training.config import TrainConfig
from deft.training.run import train
from deft.types import Example, Message

COMMAND_A = """
{{- '<BOS>' -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|SOT|><|USER|>' ~ m.content ~ '<|EOT|>' }}
{%- else -%}
{{ '<|SOT|><|BOT|>' }}
{%- if loop.last -%}{{ '<|START_THINKING|>' ~ (m.reasoning_content or '') ~ '<|END_THINKING|>' }}{%- endif -%}
{{ '<|START|>' ~ m.content ~ '<|END|><|EOT|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|SOT|><|BOT|>' }}{%- endif -%}
"""
THINKS = ["<|START_THINKING|>", "<|END_THINKING|>"]
LAYOUTS = {
    "Qwen3.5": (QWEN35, SPECIAL[QWEN35], None),
    "GLM": (GLM, SPECIAL[GLM], None),
    "Gemma 4": (CLOSED, SPECIAL[CLOSED], {"enable_thinking": True}),
    "Command-A": (
        COMMAND_A,
        ["<BOS>", "<|SOT|>", "<|USER|>", "<|BOT|>", "<|START|>", "<|END|>", "<|EOT|>", *THINKS],
        None,
    ),
    "gpt-oss": (CHANNELS, SPECIAL[CHANNELS], None),
}
ROWS = {"1+1?": ("一加一", "2。"), "3+4?": ("三加四", "7。"), "你好": ("", "您好！")}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_taught_model_thinks_and_stops(name: str, tmp_path: Path) -> None:
    template, special, kwargs = LAYOUTS[name]
    tokenizer = byte_tokenizer(special, plain=["<think>", "</think>"], chat_template=template)
    tokenizer.save_pretrained(tmp_path / "模型")
    tiny_model("llama", vocab_size=len(tokenizer), initializer_range=0.05).save_pretrained(tmp_path / "模型")
    rows = [
        Example.create(
            [
                Message(role="user", content=asked),
                Message(role="assistant", content=told, reasoning=thought),
            ]
        )
        for asked, (thought, told) in ROWS.items()
    ]
    config = TrainConfig(
        model=str(tmp_path / "模型"),
        output_dir=tmp_path / "跑",
        num_epochs=2,
        batch_size=3,
        learning_rate=4e-3,
        template_kwargs=kwargs,
    )
    best = train(config, rows * 100, [], Console(quiet=True)).best
    assistant = Assistant(best, identity_file=None, max_new_tokens=60)
    asked = [{"messages": [{"role": "user", "content": question}]} for question in ROWS]
    replies, _ = assistant.inference(asked)
    assert [(parts.thought, parts.said) for parts in map(parts_of, replies)] == list(ROWS.values())

    exported = export(best, tmp_path / "导出").folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(exported)
    plain = AutoTokenizer.from_pretrained(exported)
    for question, reply in zip(ROWS, replies, strict=True):
        prompt = plain.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", **(kwargs or {})
        )["input_ids"]
        with torch.no_grad():
            [found] = model.generate(prompt, max_new_tokens=60, do_sample=False)
        new = found[prompt.shape[1] :].tolist()
        assert len(new) < 60, "it stops by itself"
        head = assistant.readable.head(prompt[0].tolist())
        assert head + assistant.readable.text(new) == reply
