"""The packing self-test: silent where packs are exact, and refusing where a model leaks."""

import numpy as np
import pytest
import torch

from deft.errors import UserError
from deft.model import selftest
from deft.model.attention import rows_apart
from deft.model.likelihood import PackedRows, supervised_nll
from deft.model.selftest import check_packing, few_short_rows, last_of_each, nll_alone
from deft.testing.tiny import byte_tokenizer, tiny_model
from deft.types import IGNORED_LABEL, TokenSequence


def row(text: str) -> TokenSequence:
    ids = np.array(byte_tokenizer()(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    labels = ids.copy()
    labels[:3] = IGNORED_LABEL
    return TokenSequence(id=text, input_ids=ids, labels=labels)


ROWS = [row("春眠不觉晓，处处闻啼鸟。"), row("Twelve is 4 × 3."), row("夜来风雨声"), row("花落知多少？"), row("静夜思")]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "baichuan2", "baichuan2_rope"])
def test_exact_packs_pass(architecture: str) -> None:
    assert check_packing(tiny_model(architecture, seed=3), ROWS) < 1e-5


def test_a_layer_that_mixes_neighbouring_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=3)
    embed = model.get_input_embeddings()
    plain = embed.forward
    monkeypatch.setattr(embed, "forward", lambda ids: plain(ids) + 0.5 * plain(ids).roll(1, dims=1).cumsum(1))
    with pytest.raises(UserError, match="would see each other in LlamaForCausalLM") as caught:
        check_packing(model, ROWS)
    assert "nats per token over 4 rows" in str(caught.value)


def test_a_model_that_drops_the_lengths_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=3)
    decoder = model.get_decoder()
    plain = decoder.forward

    def forgetful(*args: object, row_lengths: object = None, **options: object) -> object:
        return plain(*args, **options)

    monkeypatch.setattr(decoder, "forward", forgetful)
    with pytest.raises(UserError, match="would see each other") as caught:
        check_packing(model, ROWS)
    assert "lengths of the rows" in str(caught.value)


def test_a_model_that_gives_no_numbers_is_refused() -> None:
    model = tiny_model("llama", seed=3)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(UserError, match="no finite loss, before any training"):
        check_packing(model, ROWS)


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("CUDA"), RuntimeError("CPU: can't allocate memory")])
def test_a_device_that_is_too_small_is_not_taken_for_a_leak(
    fault: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise fault

    model = tiny_model("llama", seed=3)
    monkeypatch.setattr(model.get_decoder(), "forward", full)
    with pytest.raises(RuntimeError) as caught:
        check_packing(model, ROWS)
    assert caught.value is fault


def test_few_and_short_rows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(one) for one in few_short_rows(ROWS)] == sorted(len(one) for one in ROWS)[:4]
    monkeypatch.setattr(selftest, "MAX_TOKENS", 20)
    assert len(few_short_rows(ROWS)) == 1


def test_training_mode_is_kept() -> None:
    model = tiny_model("llama", seed=3).train()
    check_packing(model, ROWS)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_over_tokens_are_refused_in_any_number_format(dtype: torch.dtype) -> None:
    """LFM2 mixes neighbouring tokens by short convolutions; in bfloat16 that stays below any tolerance on a mean."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
    )
    with pytest.raises(UserError, match="would see each other in Lfm2ForCausalLM"):
        check_packing(Lfm2ForCausalLM(config).eval().to(dtype), ROWS)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "baichuan2", "baichuan2_rope"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_leak_of_the_least_size_is_seen_and_exact_packs_pass_in_16_bits(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture, seed=3).to(dtype)
    check_packing(model, ROWS)
    embed = model.get_input_embeddings()
    plain = embed.forward

    def leaking(ids: torch.Tensor) -> torch.Tensor:
        embedded = plain(ids)
        return embedded + 0.02 * embedded.roll(1, dims=1)

    monkeypatch.setattr(embed, "forward", leaking)
    with pytest.raises(UserError, match="would see each other"):
        check_packing(model, ROWS)


def test_a_decoder_that_gives_no_hidden_states_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=3)
    monkeypatch.setattr(model.get_decoder(), "forward", lambda *_, **__: (torch.zeros(1),))
    with pytest.raises(UserError, match="would see each other"):
        check_packing(model, ROWS)


def test_of_a_long_row_the_last_supervised_tokens_are_compared() -> None:
    chosen = [row("千里莺啼绿映红，" * 20), row("静夜思")]
    model = tiny_model("llama", seed=3)
    pack = PackedRows.lay(chosen)
    with torch.no_grad():
        alone = [nll_alone(model, one) for one in chosen]
        with rows_apart(model):
            packed = last_of_each(pack, supervised_nll(model, pack).per_token)
    assert [len(found) for found in alone] == [256, len(chosen[1]) - 3]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=0)
