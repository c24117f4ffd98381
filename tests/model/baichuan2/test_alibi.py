"""ALiBi's slopes and biases by hand, their precision far from the start, and which attention functions can add them."""

from pathlib import Path

import pytest
import torch
from baichuan2_models import TEXTS, differ, logits

from deft.errors import UserError
from deft.model.alibi import ALIGNMENT, Alibi, alibi_slopes
from deft.model.attention import rows_apart_attention
from deft.model.baichuan2.masks import visible
from deft.model.load import load_model
from deft.testing.tiny import byte_tokenizer, save_tiny, tiny_model

IDS = torch.tensor(byte_tokenizer().encode("".join(TEXTS)))


def test_slopes_of_a_power_of_two_and_of_others() -> None:
    assert alibi_slopes(8) == tuple(2.0**-k for k in range(1, 9))
    assert alibi_slopes(5) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1)
    forty = [2 ** (-0.25 * k) for k in range(1, 33)] + [2 ** (-0.125 * k) for k in range(1, 16, 2)]
    assert alibi_slopes(40) == pytest.approx(forty, rel=1e-12)


def test_a_bias_by_hand() -> None:
    alibi = Alibi(2, torch.device("cpu"))
    assert alibi.slopes.tolist() == [2**-4, 2**-8]
    never = torch.finfo(torch.float32).min
    bias = alibi.bias(2, 4, 1, torch.float32)
    assert bias[0].tolist() == [[-1 / 16, 0, never, never], [-2 / 16, -1 / 16, 0, never]]
    assert bias[1, 1].tolist() == [-2 / 256, -1 / 256, 0, never]


def test_biases_are_computed_in_fp32() -> None:
    bias = Alibi(40, torch.device("cpu")).bias(1, 4096, 4095, torch.float32)[:, 0].double()
    exact = -torch.tensor(alibi_slopes(40)).double()[:, None] * torch.arange(4095, -1, -1)
    assert torch.allclose(bias, exact, rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_neighbours_far_from_the_start_are_told_apart_in_half_precision(dtype: torch.dtype) -> None:
    alibi = Alibi(40, torch.device("cpu"))
    last = alibi.bias(1, 4096, 4095, dtype)[:, 0]
    steps = last[:, -1] - last[:, -2]
    assert torch.allclose(steps.float(), alibi.slopes, rtol=0.01)
    coarse = (alibi.slopes[:, None] * torch.tensor([4094, 4095])).to(dtype).float()
    assert not torch.allclose(coarse[:, 1] - coarse[:, 0], alibi.slopes, rtol=0.5), "slope · j would not do"


def test_which_keys_are_seen_by_hand() -> None:
    rows = torch.tensor([[0, 3, 3, 1, 3]])
    assert visible(rows, 5, 6, 0)[0, 0].int().tolist() == [
        [0, 0, 0, 0, 0, 0],  # padding sees nothing, not even itself
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 1, 1, 0, 1, 0],  # the sixth place is room in a cache
    ]
    assert visible(rows, 1, 5, 4)[0, 0].int().tolist() == [[0, 1, 1, 0, 1]], "the last query alone, after a cache"


def test_a_shorter_row_takes_a_corner_of_the_longest_rows_bias() -> None:
    alibi = Alibi(5, torch.device("cpu"))
    longest = alibi.within_row(21, 21, torch.float32)
    short = alibi.within_row(6, 21, torch.float32)
    assert torch.equal(short[0], alibi.bias(6, 6, 0, torch.float32))
    assert short.data_ptr() == longest.data_ptr(), "made once"
    assert short.stride(-2) % ALIGNMENT == 0
    assert alibi.within_row(40, 40, torch.float32).shape == (1, 5, 40, 40)
    assert alibi.within_row(6, 6, torch.bfloat16).dtype == torch.bfloat16


def test_rows_of_a_pack_are_biased_as_alone() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 5, 12, 8).unbind(0)
    alibi = Alibi(5, torch.device("cpu"))
    found, _ = rows_apart_attention(
        torch.nn.Module(), query, key, value, None, row_lengths=[7, 5], scaling=0.5, alibi=alibi
    )
    here = slice(7, 12)
    scores = query[:, :, here] @ key[:, :, here].transpose(-1, -2) * 0.5 + alibi.bias(5, 5, 0, torch.float32)
    assert differ(found[0, here], (scores.softmax(dim=-1) @ value[:, :, here])[0].transpose(0, 1)) < 1e-6


def test_distance_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("baichuan2", seed=1)
    biased = logits(model, IDS)
    monkeypatch.setattr("deft.model.alibi.alibi_slopes", lambda num_heads: (0.0,) * num_heads)
    assert differ(biased, logits(model, IDS)) > 0.1


def test_positions_past_the_trained_length_are_allowed(recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model("baichuan2", seed=1, max_length_tokens=16)
    assert logits(model, IDS).isfinite().all()
    assert len(IDS) > 16
    assert not [warning for warning in recwarn if "trained on" in str(warning.message)]


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_that_cannot_bias_is_refused(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("baichuan2")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", implementation)
    with pytest.raises(UserError, match="biases attention by distance") as caught:
        logits(model, IDS)
    assert caught.value.got == implementation
    assert "sdpa" in str(caught.value.fix)


def test_loading_with_attention_that_cannot_bias_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "模型", "baichuan2")
    with pytest.raises(UserError, match="biases attention by distance"):
        load_model(folder, attn_implementation="flex_attention")
