from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM

from deft.errors import UserError
from deft.testing.tiny import (
    BOS_ID,
    IM_END_ID,
    IM_START_ID,
    PAD_ID,
    SLIDING_WINDOW,
    VOCAB_SIZE,
    byte_tokenizer,
    save_tiny,
    tiny_model,
)

ARCHITECTURES = ("llama", "qwen3", "gemma3")
TEXT = "今天天气很好，我们去公园吧。Hello, world!\n\t 12"
TOKENIZER = byte_tokenizer()


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def test_ids_are_the_bytes_of_utf8() -> None:
    assert TOKENIZER.encode("中a ") == [0xE4, 0xB8, 0xAD, ord("a"), ord(" ")]
    assert TOKENIZER.encode(TEXT) == list(TEXT.encode("utf-8"))
    assert len(TOKENIZER) == VOCAB_SIZE == 260


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("text", ["", "你好 , . n't", " \n\n  ", "\x00\ufeff🎉", "<|im_end|> 结束 <pad>", "ＡＢ①"])
def test_awkward_texts_come_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_special_tokens() -> None:
    assert TOKENIZER.convert_tokens_to_ids(["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"]) == [256, 257, 258, 259]
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (PAD_ID, BOS_ID, IM_END_ID)
    ids = [IM_START_ID, *TOKENIZER.encode("你"), IM_END_ID]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "你"


def test_the_chat_template_is_chatml_without_a_system_prompt() -> None:
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n好<|im_end|>\n"
    prompt = TOKENIZER.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_seed_decides_the_weights_and_nothing_else_changes(architecture: str) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (tiny_model(architecture, seed=seed) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(1), expected), "the global random state is left alone"
    ids = TOKENIZER.encode(TEXT)
    assert torch.equal(logits(first, ids), logits(again, ids))
    assert not torch.allclose(logits(first, ids), logits(other, ids), atol=0.5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_spread_and_depend_on_order(architecture: str) -> None:
    model = tiny_model(architecture)  # type: ignore[arg-type]
    ids = TOKENIZER.encode(TEXT)
    scores = logits(model, ids)
    assert scores.std() > 1
    swapped = [ids[1], ids[0], *ids[2:]]
    assert (logits(model, swapped)[-1] - scores[-1]).abs().max() > 0.01, "the last token sees the first ones, in order"
    assert not model.training
    norms = [weights for weights in model.parameters() if weights.ndim == 1]
    assert norms
    assert all(weights.std() > 0.03 for weights in norms), "norms are off their starting values"
    assert model.config.num_key_value_heads < model.config.num_attention_heads


def test_gemma_has_a_window_that_a_test_can_cross() -> None:
    local = tiny_model("gemma3", num_layers=1)
    assert isinstance(local, Gemma3ForCausalLM)
    ids = list(range(3 * SLIDING_WINDOW))
    changed = [99, *ids[1:]]
    difference = (logits(local, ids) - logits(local, changed)).abs().amax(dim=-1)
    assert (difference[1:SLIDING_WINDOW] > 1e-4).all()
    assert (difference[SLIDING_WINDOW:] == 0).all(), "one local layer cannot see beyond its window"
    both = tiny_model("gemma3", num_layers=2)
    assert (logits(both, ids) - logits(both, changed))[-1].abs().max() > 1e-4, "the second layer sees everything"


def test_shapes_can_be_chosen() -> None:
    model = tiny_model("llama", vocab_size=300, num_layers=3, hidden_size=32, num_heads=2, num_key_value_heads=1)
    assert model.get_input_embeddings().weight.shape == (300, 32)
    assert len(model.model.layers) == 3
    assert tiny_model("qwen3", vocab_size=100).config.eos_token_id is None


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(UserError) as caught:
        tiny_model("lama")  # type: ignore[arg-type]
    assert "did you mean 'llama'?" in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_checkpoint_is_whole(architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "模型", architecture, seed=3)  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = TOKENIZER.encode(TEXT + "<|im_end|>")
    assert tokenizer.encode(TEXT + "<|im_end|>") == ids
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (IM_END_ID, PAD_ID)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded, ids), logits(tiny_model(architecture, seed=3), ids))  # type: ignore[arg-type]
    assert loaded.generation_config.eos_token_id == IM_END_ID
