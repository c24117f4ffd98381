"""Training Baichuan2: checkpointed gradients are the same, LoRA finds its layers, a merge keeps the logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from baichuan2_models import differ, logits, rows
from transformers import DynamicCache

from deft.errors import UserError
from deft.model.adapters import add_lora, linear_layers
from deft.model.alibi import Alibi
from deft.model.baichuan2.modelling import CACHE_FIELD
from deft.model.likelihood import PackedRows, takes_packs
from deft.model.load import load_model
from deft.model.selftest import check_packing
from deft.publish.merge import merge
from deft.testing.tiny import byte_tokenizer, save_tiny, tiny_model

ARCHITECTURES = ["baichuan2", "baichuan2_rope"]
IDS = torch.arange(0, 250, 3)


def gradients(model: Any, packed: PackedRows) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    with takes_packs(model):
        model(packed=packed).total.backward()
    return {name: weights.grad.clone() for name, weights in model.named_parameters() if weights.grad is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(architecture: Any, reentrant: bool) -> None:
    model, packed = tiny_model(architecture, seed=2), PackedRows.lay(rows())
    plain = gradients(model, packed)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    runs = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: runs.append(1))
    checkpointed = gradients(model, packed)
    assert len(runs) == 2, "the layer is run again for the backward pass"
    assert plain.keys() == checkpointed.keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in plain.items():
        assert differ(gradient, checkpointed[name]) < 1e-6, name


def test_checkpointing_leaves_a_cache_alone() -> None:
    model = tiny_model("baichuan2", seed=2)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    cache = DynamicCache(config=model.config)
    model(input_ids=IDS[None], labels=IDS[None], cache=cache).loss.backward()
    assert cache.get_seq_length() == 0
    model.eval()
    found = model(input_ids=IDS[None], use_cache=True)
    assert getattr(found, CACHE_FIELD).get_seq_length() == len(IDS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_finds_every_linear_layer_but_the_head(architecture: Any) -> None:
    model = tiny_model(architecture)
    expected = {"W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in linear_layers(model)} == expected
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0, train_embeddings=False)
    names = {name for name, weights in adapted.named_parameters() if weights.requires_grad}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == expected
    assert len(names) == 2 * len(expected) * model.config.num_hidden_layers


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_few_lora_steps_lower_the_loss_and_the_merge_keeps_it(architecture: Any, method: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "底", architecture, seed=4)
    model, packed = load_model(base, device="cpu").model, PackedRows.lay(rows())
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    adapted = add_lora(model, method=method, rank=4, alpha=8, dropout=0.0, train_embeddings=False)
    optimizer = torch.optim.AdamW([each for each in adapted.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    with takes_packs(adapted):
        for _ in range(8):
            optimizer.zero_grad()
            nll = adapted(packed=packed).total / packed.num_supervised
            nll.backward()
            optimizer.step()
            losses.append(nll.item())
    assert losses[-1] < losses[0] - 0.3
    for name, weights in adapted.state_dict().items():
        official = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if official in before:
            assert torch.equal(weights, before[official]), name
    adapted.save_pretrained(str(tmp_path / "适配器"))
    byte_tokenizer().save_pretrained(tmp_path / "适配器")
    expected = logits(adapted.eval(), IDS)
    merged = load_model(merge(tmp_path / "适配器", tmp_path / "合"), device="cpu").model
    assert differ(logits(merged, IDS), expected) < 1e-4
    assert differ(expected, logits(tiny_model(architecture, seed=4), IDS)) > 0.1, "the adapter does something"


def test_embeddings_and_head_trained_whole_with_new_tokens(tmp_path: Path) -> None:
    """Tokens added to the vocabulary: resized, trained and saved with the adapter, the head still normalising."""
    base = save_tiny(tmp_path / "底", "baichuan2", seed=4)
    model, packed = load_model(base, device="cpu").model, PackedRows.lay(rows())
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<user>", "<assistant>", "<eot>"], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0, train_embeddings=True)
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], lr=0.1)
    with takes_packs(adapted):
        (adapted(packed=packed).total / packed.num_supervised).backward()
    optimizer.step()
    adapted.save_pretrained(str(tmp_path / "适配器"))
    tokenizer.save_pretrained(tmp_path / "适配器")
    expected = logits(adapted.eval(), IDS)
    assert expected.shape[-1] == 263
    loaded = load_model(tmp_path / "适配器", device="cpu").model
    assert differ(logits(loaded, IDS), expected) < 1e-5
    scores = loaded.get_base_model().get_output_embeddings()
    hidden = torch.randn(3, loaded.config.hidden_size)
    assert differ(scores(7 * hidden), 7 * scores(hidden)) < 1e-4
    weight = dict(scores.named_parameters())["modules_to_save.default.weight"]
    assert differ(scores(hidden), hidden @ torch.nn.functional.normalize(weight).T) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_self_test_before_training_finds_packs_exact(architecture: Any, implementation: str) -> None:
    model = tiny_model(architecture, seed=3)
    model.set_attn_implementation(implementation)
    assert check_packing(model, rows()) < 1e-5


def test_the_self_test_finds_a_bias_that_is_not_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("baichuan2", seed=3)
    right = Alibi.within_row
    monkeypatch.setattr(Alibi, "within_row", lambda self, *shape: right(self, *shape) * 0.5)
    with pytest.raises(UserError, match="would see each other in BaichuanForCausalLM"):
        check_packing(model, rows())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_and_attention_weights_can_be_looked_at(architecture: Any) -> None:
    model = tiny_model(architecture)
    model.set_attn_implementation("eager")
    found = model(input_ids=IDS[None], output_hidden_states=True, output_attentions=True)
    assert len(found.hidden_states) == model.config.num_hidden_layers + 1
    assert len(found.attentions) == model.config.num_hidden_layers
    assert torch.allclose(found.attentions[0].sum(dim=-1), torch.ones(()), atol=1e-5)
    assert found.attentions[0].triu(1).eq(0).all()
    assert isinstance(model(input_ids=IDS[None], return_dict=False), tuple)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_autocast_of_a_padded_batch_gives_numbers(architecture: Any, dtype: torch.dtype) -> None:
    """The mask comes in the type of the scores: cast from fp32 to half precision it would hold infinities."""
    model = tiny_model(architecture, seed=3)
    mask = torch.tensor([[0] * 30 + [1] * (len(IDS) - 30), [1] * len(IDS)])
    ids = torch.stack([IDS, IDS])
    exact = model(input_ids=ids, attention_mask=mask).logits
    with torch.autocast("cpu", dtype=dtype):
        found = model(input_ids=ids, attention_mask=mask).logits
        arrange = model.model.biased if architecture == "baichuan2" else model.model.rotated
        numbered = arrange(torch.zeros(2, len(IDS), 8), mask + 1, None, None)["attention_mask"]
    assert numbered.dtype == dtype
    assert numbered.isfinite().all()
    assert found.isfinite().all()
    assert differ(found[1], exact[1]) < 0.3
    assert exact.std() > 0.5
