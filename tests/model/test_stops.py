"""Where a reply ends, for programs that know no chat format: plain `transformers` stops where deft stops."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from deft.model.baichuan2.tokenization import Baichuan2Tokenizer
from deft.model.generate import generate
from deft.model.load import load_model
from deft.model.sampling import Sampling
from deft.model.stops import name_stops
from deft.prompt.detect import find_chat_format
from deft.prompt.formats.kinds import chat_format_for
from deft.prompt.formats.role_tokens import RoleTokenFormat, add_role_tokens
from deft.prompt.store import load_chat_format, save_chat_format
from deft.publish.export import export
from deft.publish.merge import merge
from deft.testing.baichuan2_tokenizer import save_tiny_tokenizer
from deft.testing.tiny import BOS_ID, IM_END_ID, byte_tokenizer, save_tiny, tiny_model
from deft.training.config import TrainConfig
from deft.training.run import train
from deft.types import Example, Message

ROWS = [
    Example.create([Message(role="user", content=question), Message(role="assistant", content=reply)])
    for question, reply in [("你好", "好。"), ("再见", "嗯。"), ("Hi", "Yo"), ("谢谢", "不谢")]
]


def trained(folder: Path, method: str) -> Path:
    """Teach a tiny base model, whose own end is another token, to end its replies; return the checkpoint."""
    base = save_tiny(folder / "底座", "qwen3", seed=5)
    (base / "chat_template.jinja").unlink()
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": IM_END_ID, "bos_token_id": BOS_ID}))
    config = TrainConfig(
        model=str(base),
        output_dir=folder / "runs",
        method=method,
        num_epochs=30,
        batch_size=4,
        learning_rate=1e-2,
        max_length_tokens=64,
    )
    return train(config, ROWS, [], Console(quiet=True)).best


def plain_and_deft(folder: Path, texts: list[str], max_new_tokens: int) -> list[tuple[list[int], tuple[int, ...]]]:
    """Return what plain `transformers` and deft answer greedily, as ids; the token that ends a reply is left out."""
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded = load_model(folder, dtype="float32", device="cpu")
    chat_format = find_chat_format(loaded.tokenizer, folder)
    pairs = []
    for text in texts:
        prompt = chat_format.encode_prompt([Message(role="user", content=text)])
        options = {"max_new_tokens": max_new_tokens, "do_sample": False}
        ids = plain.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        stops = chat_format.stop_token_ids
        [reply] = generate(
            loaded.model, [prompt], stop_token_ids=stops, settings=Sampling(max_new_tokens=max_new_tokens)
        )
        assert reply.finish_reason == "stop" and ids[-1] in stops, f"{text}: the reply did not end"
        pairs.append((ids[:-1], reply.token_ids))
    return pairs


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_plain_transformers_stops_where_deft_stops(tmp_path: Path, method: str) -> None:
    best = trained(tmp_path, method)
    tokenizer = AutoTokenizer.from_pretrained(best)
    end = tokenizer.convert_tokens_to_ids("<eot>")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<eot>", end)
    stops = json.loads((best / "generation_config.json").read_text())["eos_token_id"]
    assert stops[0] == end and set(stops) == set(load_chat_format(best, tokenizer).stop_token_ids)  # type: ignore[union-attr]
    assert IM_END_ID in stops, "the base's own end stays one"
    outs = [export(best, tmp_path / "发布").folder]
    if method == "lora":
        outs += [merge(best, tmp_path / "合并")]
    else:
        outs += [best]
    for out in outs:
        for plain, deft in plain_and_deft(out, ["你好", "谢谢", "Hi"], 32):
            assert tuple(plain) == deft and len(plain) < 32


def test_a_checkpoint_of_an_earlier_deft_is_exported_with_its_stops(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "旧", "llama", seed=5)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    add_role_tokens(tokenizer)
    model: Any = tiny_model("llama", vocab_size=len(tokenizer))
    model.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    save_chat_format(RoleTokenFormat(tokenizer), folder)
    stored = json.loads((folder / "chat_format.json").read_text())
    del stored["version"]
    (folder / "chat_format.json").write_text(json.dumps(stored))
    out = export(folder, tmp_path / "新").folder
    again = AutoTokenizer.from_pretrained(out)
    assert again.eos_token == "<eot>"
    chat_format = load_chat_format(out, again)
    assert chat_format is not None and chat_format.stop_token_ids == tuple(stored["stop_token_ids"])
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"][0] == again.eos_token_id


def test_an_eos_that_the_template_writes_elsewhere_stays(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<pad>"  # written before every message, as some templates do
    tokenizer.chat_template = "{{ eos_token }}" + str(tokenizer.chat_template)
    chat_format = chat_format_for(tokenizer)
    model = tiny_model("llama")
    name_stops(model, tokenizer, chat_format)
    assert tokenizer.eos_token == "<pad>"
    assert model.generation_config.eos_token_id == [IM_END_ID, 256, BOS_ID]


def test_baichuan2_keeps_its_eos_and_is_still_known_as_chat(tmp_path: Path) -> None:
    tokenizer = Baichuan2Tokenizer(save_tiny_tokenizer(tmp_path / "词表") / "tokenizer.model")
    model = tiny_model("baichuan2_rope", vocab_size=len(tokenizer))
    name_stops(model, tokenizer, RoleTokenFormat(tokenizer))
    assert tokenizer.eos_token == "</s>"
    assert model.generation_config.eos_token_id == [199, 1, 2, 0, 197, 198]
    folder = tmp_path / "百川"
    model.generation_config.user_token_id, model.generation_config.assistant_token_id = 195, 196
    name_stops(model, tokenizer, chat_format_for(tokenizer, kind="baichuan_chat"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 1, 195, 196]
    assert find_chat_format(tokenizer, folder).kind == "baichuan_chat"


@pytest.mark.slow
def test_smollm2_exported_stops_where_deft_stops(tmp_path: Path) -> None:
    out = export("smollm2-135m", tmp_path / "发布").folder
    for plain, deft in plain_and_deft(out, ["What is the capital of France?", "你好"], 200):
        assert tuple(plain) == deft
