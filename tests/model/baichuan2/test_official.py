"""Baichuan2-13B's layout against the numbers of the official code (`expected.npz`), with the issue's tolerances."""

from typing import Any

import pytest
import torch
from baichuan2_models import differ, logits, official_model, official_numbers
from transformers import DynamicCache, PreTrainedModel, StaticCache

from deft.model.attention import rows_apart
from deft.model.generate import generate
from deft.model.likelihood import PackedRows, supervised_nll
from deft.model.sampling import Sampling
from deft.types import IGNORED_LABEL, TokenSequence

NUM_SEQUENCES = 3


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return official_model(request.param)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return official_numbers()


def matches(found: torch.Tensor, expected: dict[str, torch.Tensor], index: int) -> bool:
    """Say whether logits `[length, vocab]` are those of the official code: within 1e-4, the same token in front."""
    near = differ(found[:, expected["logit_columns"]], expected[f"eval_logits{index}"]) < 1e-4
    return near and torch.equal(found.argmax(dim=-1), expected[f"eval_argmax{index}"])


def test_evaluation_logits(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    for index in range(NUM_SEQUENCES):
        assert matches(logits(model, expected[f"seq{index}"]), expected, index)


def test_logits_of_chosen_positions(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    ids = expected["seq0"]
    whole = logits(model, ids)
    assert differ(logits(model, ids, logits_to_keep=2), whole[-2:]) < 1e-5
    chosen = torch.tensor([0, 7, 3])
    assert differ(logits(model, ids, logits_to_keep=chosen), whole[chosen]) < 1e-5


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cached_decoding_token_by_token(model: PreTrainedModel, expected: dict[str, torch.Tensor], kind: str) -> None:
    for index in range(NUM_SEQUENCES):
        ids = expected[f"seq{index}"]
        cache: Any = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, 40)
        found = []
        with torch.no_grad():
            for chunk in (ids[:4], *ids[4:].split(1)):
                found.append(model(input_ids=chunk[None], past_key_values=cache, use_cache=True).logits[0])
        assert matches(torch.cat(found), expected, index)


def test_left_padded_batch(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    sequences = [expected[f"seq{index}"] for index in range(NUM_SEQUENCES)]
    width = max(map(len, sequences)) + 2
    ids = torch.stack([torch.nn.functional.pad(each, (width - len(each), 0), value=0) for each in sequences])
    mask = torch.stack([(torch.arange(width) >= width - len(each)).long() for each in sequences])
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for index, each in enumerate(sequences):
        assert matches(found[index, -len(each) :], expected, index)


def test_segments_of_one_sequence(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    sequences = [expected[f"seq{index}"] for index in range(NUM_SEQUENCES)]
    numbers = [torch.full_like(each, index + 1) for index, each in enumerate(sequences)]
    padding = torch.zeros(2, dtype=torch.long)
    ids, mask = torch.cat([*sequences, padding]), torch.cat([*numbers, padding])
    found = logits(model, ids, attention_mask=mask[None])
    for index, part in enumerate(found[:-2].split([len(each) for each in sequences])):
        assert matches(part, expected, index)
    assert differ(logits(model, ids), found) > 0.1, "without the numbers, the rows see each other"


def test_positions_that_start_again_tell_rows_apart(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    sequences = [expected[f"seq{index}"] for index in range(NUM_SEQUENCES)]
    positions = torch.cat([torch.arange(len(each)) for each in sequences])[None]
    found = logits(model, torch.cat(sequences), position_ids=positions)
    for index, part in enumerate(found.split([len(each) for each in sequences])):
        assert matches(part, expected, index)


def test_defts_rows_in_a_pack(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    sequences = [expected[f"seq{index}"] for index in range(NUM_SEQUENCES)]
    lengths = [len(each) for each in sequences]
    with rows_apart(model):
        found = logits(model, torch.cat(sequences), row_lengths=lengths)
    for index, part in enumerate(found.split(lengths)):
        assert matches(part, expected, index)


def test_greedy_tokens(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    settings = Sampling(max_new_tokens=24)
    prompts = [expected[f"seq{index}"].tolist() for index in range(NUM_SEQUENCES)]
    replies = generate(model, prompts, stop_token_ids=[2], settings=settings)
    width = max(map(len, prompts))
    batch = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    together = model.generate(batch, attention_mask=mask, max_new_tokens=24, do_sample=False, pad_token_id=0)
    for index, prompt in enumerate(prompts):
        greedy = expected[f"greedy{index}"].tolist()
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert alone[0, len(prompt) :].tolist() == greedy
        assert together[index, width:].tolist() == greedy
        assert list(replies[index].token_ids) == greedy, "through deft's own decoding, in a batch"


def check_gradients(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    rows = expected["grad_rows"]
    weights = dict(model.named_parameters())
    found = {
        "grad_W_pack_0": weights["model.layers.0.self_attn.W_pack.weight"].grad,
        "grad_norm": weights["model.norm.weight"].grad,
        "grad_lm_head_rows": weights["lm_head.weight"].grad[rows],
        "grad_embed_rows": weights["model.embed_tokens.weight"].grad[rows],
    }
    for name, gradient in found.items():
        assert differ(gradient, expected[name]) < 1e-4, name
        assert expected[name].abs().max() > 1e-3, "gradients near nothing would pass any comparison"


def test_training_loss_and_gradients(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    model.train()
    model.zero_grad()
    loss = model(input_ids=expected["seq0"][None], labels=expected["labels0"][None]).loss
    loss.backward()
    assert differ(loss.detach(), expected["train_loss"]) < 1e-5
    check_gradients(model, expected)
    model.eval()


def test_training_loss_and_gradients_through_defts_head(
    model: PreTrainedModel, expected: dict[str, torch.Tensor]
) -> None:
    ids, labels = expected["seq0"].int().numpy(), expected["labels0"].int().numpy()
    beside = expected["seq1"].int().numpy()
    no_loss = beside.copy()
    no_loss[:-1] = IGNORED_LABEL
    model.zero_grad()
    packed = PackedRows.lay([TokenSequence(id="0", input_ids=ids, labels=labels)])
    with rows_apart(model):
        nll = supervised_nll(model, packed)
        (nll.total / packed.num_supervised).backward()
        two = PackedRows.lay(
            [
                TokenSequence(id="1", input_ids=beside, labels=no_loss),
                TokenSequence(id="0", input_ids=ids, labels=labels),
            ]
        )
        behind = supervised_nll(model, two).per_row(two)[1]
    assert differ(nll.total.detach() / packed.num_supervised, expected["train_loss"]) < 1e-5
    assert differ(behind / packed.num_supervised, expected["train_loss"]) < 1e-5
    check_gradients(model, expected)


def test_evaluation_does_not_touch_the_head(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    before = model.lm_head.weight.detach().clone()
    logits(model, expected["seq0"])
    assert torch.equal(model.lm_head.weight, before)
    assert (before.norm(dim=-1) - 1).abs().min() > 1e-3, "the fixture's head is not normalised yet"
