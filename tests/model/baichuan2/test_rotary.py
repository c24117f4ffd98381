"""Baichuan2-7B's layout against transformers' Llama with the same weights: the two are one function."""

from typing import Any

import pytest
import torch
from baichuan2_models import TEXTS, differ, logits, rows
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from deft.errors import UserError
from deft.model.attention import rows_apart
from deft.model.generate import generate
from deft.model.likelihood import PackedRows, supervised_nll
from deft.model.sampling import Sampling
from deft.testing.tiny import byte_tokenizer, tiny_model, untrained

SEQUENCES = [torch.tensor(byte_tokenizer().encode(text)) for text in TEXTS]
IDS = torch.cat(SEQUENCES)
LENGTHS = [len(each) for each in SEQUENCES]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("baichuan2_rope", seed=7)


@pytest.fixture(scope="module")
def llama(model: PreTrainedModel) -> LlamaForCausalLM:
    """Llama, its weights written out of `W_pack` by hand."""
    config, heads = model.config, model.config.num_attention_heads
    shape = {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": config.hidden_size // heads,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "pad_token_id": config.pad_token_id,
    }
    made: Any = untrained("llama", shape)
    weights = dict(model.state_dict())
    width = config.hidden_size
    for layer in range(config.num_hidden_layers):
        packed = weights.pop(f"model.layers.{layer}.self_attn.W_pack.weight")
        for place, letter in enumerate("qkv"):
            part = packed[place * width : (place + 1) * width]
            weights[f"model.layers.{layer}.self_attn.{letter}_proj.weight"] = part
    weights["lm_head.weight"] = torch.nn.functional.normalize(weights["lm_head.weight"])
    made.load_state_dict(weights)
    return made.eval()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_logits_equal_llamas(model: PreTrainedModel, llama: LlamaForCausalLM, implementation: str) -> None:
    model.set_attn_implementation(implementation)
    expected = logits(llama, IDS)
    assert differ(logits(model, IDS), expected) < 1e-5
    assert expected.std() > 0.5, "logits that do not vary would pass any comparison"


def test_gradients_equal_llamas_but_for_the_heads(model: PreTrainedModel, llama: LlamaForCausalLM) -> None:
    for each in (model, llama):
        each.zero_grad()
        each(input_ids=IDS[None], labels=IDS[None]).loss.backward()
    layer, theirs = model.model.layers[0], llama.model.layers[0]
    packed = torch.cat([getattr(theirs.self_attn, f"{letter}_proj").weight.grad for letter in "qkv"])
    assert differ(layer.self_attn.W_pack.weight.grad, packed) < 1e-6
    assert differ(layer.mlp.gate_proj.weight.grad, theirs.mlp.gate_proj.weight.grad) < 1e-6


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_rows_of_one_sequence_equal_each_alone(
    model: PreTrainedModel, llama: LlamaForCausalLM, implementation: str
) -> None:
    model.set_attn_implementation(implementation)
    expected = torch.cat([logits(llama, each) for each in SEQUENCES])
    numbers = torch.repeat_interleave(torch.tensor([3, 1, 2, 9]), torch.tensor(LENGTHS))[None]
    assert differ(logits(model, IDS, attention_mask=numbers), expected) < 1e-5, "by their numbers"
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    assert differ(logits(model, IDS, position_ids=positions), expected) < 1e-5, "by their positions"
    with rows_apart(model):
        found = logits(model, IDS, position_ids=positions, row_lengths=LENGTHS)
    assert differ(found, expected) < 1e-5, "as deft trains"


def test_positions_start_again_with_each_numbered_row(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention depends on differences of positions only, so it is the angles that are looked at."""
    numbers = torch.tensor([[0, 5, 5, 5, 2, 2, 0]])
    rotary = model.model.rotated(torch.zeros(1, 7, 64), numbers, None, None)["rotary"]
    angle = torch.atan2(rotary.sin[0, 0, :, 0], rotary.cos[0, 0, :, 0])
    assert angle[1:6].tolist() == pytest.approx([0, 1, 2, 0, 1], abs=1e-6)


def test_numbered_rows_need_a_mask_of_scores(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(UserError, match="cannot tell rows apart by their numbers"):
        logits(model, IDS[:4], attention_mask=torch.tensor([[1, 1, 2, 2]]))


def test_a_left_padded_batch_and_its_cache(model: PreTrainedModel, llama: LlamaForCausalLM) -> None:
    model.set_attn_implementation("sdpa")
    width = max(LENGTHS)
    ids = torch.stack([torch.nn.functional.pad(each, (width - len(each), 0)) for each in SEQUENCES])
    mask = torch.stack([(torch.arange(width) >= width - length).long() for length in LENGTHS])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        first = model(input_ids=ids[:, :-3], attention_mask=mask[:, :-3], past_key_values=cache, use_cache=True)
        rest = model(input_ids=ids[:, -3:], attention_mask=mask, cache=cache, use_cache=True)
    found = torch.cat([first.logits, rest.logits], dim=1)
    for index, each in enumerate(SEQUENCES):
        assert differ(found[index, -len(each) :], logits(llama, each)) < 1e-5


def test_decoding_equals_llamas(model: PreTrainedModel, llama: LlamaForCausalLM) -> None:
    prompts = [each.tolist() for each in SEQUENCES]
    for settings in (
        Sampling(max_new_tokens=12),
        Sampling(max_new_tokens=12, temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.1, seed=5),
    ):
        found, expected = (generate(each, prompts, stop_token_ids=[], settings=settings) for each in (model, llama))
        assert [reply.token_ids for reply in found] == [reply.token_ids for reply in expected]


@pytest.mark.parametrize("architecture", ["baichuan2", "baichuan2_rope"])
def test_beams_of_a_padded_batch_equal_those_of_each_row(architecture: Any) -> None:
    model = tiny_model(architecture, seed=3)
    width = max(LENGTHS)
    ids = torch.stack([torch.nn.functional.pad(each, (width - len(each), 0)) for each in SEQUENCES])
    mask = torch.stack([(torch.arange(width) >= width - length).long() for length in LENGTHS])
    options = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=mask, **options)[:, width:]
    for index, each in enumerate(SEQUENCES):
        alone = model.generate(each[None], **options)[0, len(each) :]
        assert found[index, : len(alone)].tolist() == alone.tolist()


def test_sampling_through_transformers_runs_and_repeats(model: PreTrainedModel) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        found.append(model.generate(SEQUENCES[0][None], do_sample=True, max_new_tokens=8, pad_token_id=0)[0].tolist())
    assert found[0] == found[1]


def test_tokens_past_the_trained_length_are_warned_about() -> None:
    model = tiny_model("baichuan2_rope", max_length_tokens=16)
    with pytest.warns(UserWarning, match=f"{len(IDS)} tokens are more than the 16 this model was trained on"):
        logits(model, IDS)
    with pytest.raises(UserError, match="do not fit into the model's 16 positions"):
        generate(model, [IDS.tolist()], stop_token_ids=[], settings=Sampling(max_new_tokens=1))


def test_a_long_pack_of_short_rows_is_no_long_context(recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model("baichuan2_rope", max_length_tokens=max(LENGTHS))
    with rows_apart(model), torch.no_grad():
        supervised_nll(model, PackedRows.lay(rows()))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    logits(model, IDS, position_ids=positions)
    assert not [warning for warning in recwarn if "trained on" in str(warning.message)]
