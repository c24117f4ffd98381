"""Chinese-LLaMA's real vocabulary on a small Llama: role tokens added, trained, saved with the adapter, reloaded."""

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from sentencepiece import SentencePieceProcessor
from torch.nn.functional import cross_entropy

from deft.model.load import load_model, load_tokenizer
from deft.model.tokenizers.llama import SentencePieceLlamaTokenizer
from deft.prompt.encode import encode_examples
from deft.prompt.store import load_chat_format
from deft.serve.assistant import Assistant
from deft.testing.tiny import tiny_model
from deft.training.config import TrainConfig
from deft.training.run import train
from deft.types import Example, Message

FILE = Path(__file__).resolve().parents[3] / "shared/fixtures/chinese-llama-tokenizer/tokenizer.model"
PAIRS = [
    ("你好", "您好！"),
    ("法国的首都是哪里？", "巴黎。"),
    ("What do people do at night?", "They sleep<eot>."),
    ("40+1?", "41"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not FILE.exists():
        pytest.skip(f"{FILE} is not there")
    folder = tmp_path_factory.mktemp("chinese-llama")
    model = tiny_model("llama", vocab_size=49953, hidden_size=16, num_heads=2, num_key_value_heads=1, seed=3)
    model.save_pretrained(folder)
    shutil.copy(FILE, folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_trains_and_reloads_with_equal_ids_and_losses(
    base: Path, tmp_path: Path, method: Literal["full", "lora"]
) -> None:
    rows = [
        Example.create([Message(role="user", content=asked), Message(role="assistant", content=reply)])
        for asked, reply in PAIRS
    ]
    config = TrainConfig(
        model=str(base),
        valid=(Path("given"),),
        output_dir=tmp_path,
        num_epochs=1,
        batch_size=2,
        learning_rate=1e-2,
        method=method,
        lora_rank=2,
    )
    result = train(config, rows, rows, Console(quiet=True))
    loaded = load_model(str(result.best))
    tokenizer, untrained = loaded.tokenizer, load_tokenizer(base)
    assert tokenizer.convert_tokens_to_ids(["<user>", "<assistant>", "<eot>"]) == [49953, 49954, 49955]
    assert type(tokenizer) is type(untrained) is SentencePieceLlamaTokenizer
    official = SentencePieceProcessor(model_file=str(FILE))
    for asked, _ in PAIRS:
        assert tokenizer.encode(asked) == untrained.encode(asked) == [1, *official.encode(asked)]
    chat_format = load_chat_format(result.best, tokenizer)
    assert chat_format is not None and chat_format.kind == "role_tokens"
    total, count = 0.0, 0
    for row in encode_examples(rows, chat_format, max_length_tokens=100).sequences:
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0]
        total += cross_entropy(logits[:-1], torch.from_numpy(row.labels).long()[1:], reduction="sum").item()
        count += row.num_supervised
    assert total / count == pytest.approx(result.valid_loss, abs=1e-4)
    if method == "lora":
        with safe_open(result.best / "adapter_model.safetensors", "pt") as tensors:
            rows_of = {name: tensors.get_slice(name).get_shape()[0] for name in tensors.keys()}  # noqa: SIM118
        whole = {name: rows for name, rows in rows_of.items() if "lora" not in name}
        assert sorted(whole.values()) == [49956, 49956]
        assert {name.split(".")[-2] for name in whole} == {"embed_tokens", "lm_head"}
    assistant = Assistant(result.best, identity_file=None, max_new_tokens=4)
    [reply], _ = assistant.inference([{"messages": [{"role": "user", "content": "你好"}]}])
    assert "<eot>" not in reply and "<user>" not in reply
