"""The assistant on Baichuan2's vocabulary: which format it speaks, its identity, and the format after training.

The model is a small Llama; what is tested is the way from messages to tokens and back.
"""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from deft.model.baichuan2.tokenization import Baichuan2Tokenizer, register_tokenizer
from deft.model.generate import Reply
from deft.prompt.store import load_chat_format
from deft.serve.assistant import Assistant
from deft.testing.baichuan2_tokenizer import save_tiny_tokenizer
from deft.testing.tiny import tiny_model
from deft.training.config import TrainConfig
from deft.training.run import train
from deft.types import Example, Message

NAMED_ROLES = {"user_token_id": 195, "assistant_token_id": 196}
ASKED = {"messages": [{"role": "user", "content": "你好<reserved_107></s>"}]}


def save_checkpoint(folder: Path, *, is_chat: bool) -> Path:
    register_tokenizer()
    model = tiny_model("llama", vocab_size=1024)
    model.save_pretrained(save_tiny_tokenizer(folder))
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text()) | (NAMED_ROLES if is_chat else {})
    file.write_text(json.dumps(settings | {"temperature": 0.3, "do_sample": True}))
    return folder


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("chat"), is_chat=True)


@pytest.fixture(scope="module")
def ancestor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the ancestor's released weights: official files, no `chat_format.json`."""
    return save_checkpoint(tmp_path_factory.mktemp("released"), is_chat=False)


@pytest.fixture
def identity_file(tmp_path: Path) -> Path:
    file = tmp_path / "model_identity.txt"
    file.write_text(r"你是小明。\n由某校开发。", encoding="utf-8")
    return file


def prompt_of(assistant: Assistant) -> list[int]:
    return assistant.prompt_ids([Message(**ASKED["messages"][0])], assistant.sampling())


def test_a_chat_model_gets_its_identity_as_system_text(chat_folder: Path, identity_file: Path) -> None:
    assistant = Assistant(chat_folder, identity_file=identity_file, max_new_tokens=8)
    assert type(assistant.tokenizer) is Baichuan2Tokenizer
    encode = assistant.tokenizer.encode
    system, typed = encode("你是小明。\n由某校开发。"), prompt_of(assistant)
    assert typed[: len(system) + 1] == [*system, 195]
    assert [typed.count(index) for index in (2, 195, 196)] == [0, 1, 1]
    assert assistant.tokenizer.decode(typed[len(system) :]) == "<reserved_106>你好<reserved_107></s><reserved_107>"
    assistant.set_model_identity("")
    assert prompt_of(assistant) == typed[len(system) :]


def test_the_ancestors_weights_are_told_their_identity_once(
    ancestor_folder: Path, identity_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[list[int]] = []

    def scripted(self: Assistant, prompts: list[list[int]], *_: object, **__: object) -> list[Reply]:
        met.extend(prompts)
        ids = tuple(self.tokenizer.encode("好的。"))
        return [Reply(token_ids=ids, finish_reason="stop", first_logits=torch.empty(0))] * len(prompts)

    monkeypatch.setattr(Assistant, "generate", scripted)
    assistant = Assistant(ancestor_folder, identity_file=identity_file, max_new_tokens=8)
    encode = assistant.tokenizer.encode
    told = [197, *encode("你是小明。\n由某校开发。"), 199, 198]
    assert met == [told]
    exchange = [*told, *encode("好的。"), 199]
    prompt = prompt_of(assistant)
    assert prompt[: len(exchange) + 1] == [*exchange, 197]
    assert [prompt.count(index) for index in (2, 197, 198, 199)] == [0, 2, 2, 3]
    assert assistant.inference([ASKED])[0] == ["好的。"]
    assert met[1:] == [prompt]


def test_replies_end_at_the_formats_tokens_and_are_greedy(chat_folder: Path, ancestor_folder: Path) -> None:
    chat = Assistant(chat_folder, identity_file=None, max_new_tokens=6)
    assert chat.chat_format.stop_token_ids == (2, 1, 195, 196)
    assert Assistant(ancestor_folder, identity_file=None).chat_format.stop_token_ids == (1, 2, 0, 199, 197, 198)
    # as for every model, sampling settings in the checkpoint's generation config do not count
    assert chat.inference([ASKED])[0] == chat.inference([ASKED])[0]
    assert chat.sampling().temperature == 0.0


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_fine_tune_carries_its_format(tmp_path: Path, *, is_chat: bool) -> None:
    base = save_checkpoint(tmp_path / "base", is_chat=is_chat)
    contents = ("你好", "您好！", "法国的首都？", "巴黎。")
    turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(contents)]
    rows = [Example.create(turns[:2]), Example.create(turns), Example.create(turns[2:])]
    config = TrainConfig(
        model=str(base), output_dir=tmp_path / "runs", num_epochs=1, batch_size=2, learning_rate=1e-3, method="full"
    )
    best = train(config, rows, (), Console(quiet=True)).best
    kind = "baichuan_chat" if is_chat else "role_tokens"
    before = Assistant(base, identity_file=None, max_new_tokens=8)
    after = Assistant(best, identity_file=None, max_new_tokens=8)
    stored = load_chat_format(best, after.tokenizer)
    assert stored is not None and before.chat_format.kind == after.chat_format.kind == stored.kind == kind
    assert prompt_of(before) == prompt_of(after)
    assert (best / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    assert len(after.tokenizer) == after.model.get_input_embeddings().weight.shape[0] == 1024
