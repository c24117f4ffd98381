"""The kernel that multiplies is exact, chosen by measurement, kept, and not lost to what libraries set."""

import dataclasses
import json

import pytest
import torch

from deft.errors import UserError
from deft.model import matmul
from deft.model.matmul import KERNELS, Choice, Measured, Product, Shape, choose_kernel, products_by, shapes_of
from deft.testing.tiny import tiny_model

SWITCH = torch.backends.mkldnn.matmul


def as_measured(monkeypatch: pytest.MonkeyPatch, *, seconds: dict[str, float], error: float) -> None:
    """Have every way take so long, and oneDNN be that far off."""

    def timed(product: Product, way: str) -> tuple[float, torch.Tensor]:
        exact = product()
        return seconds[way], exact * (1 + error) if way == "onednn" else exact

    monkeypatch.setattr(matmul, "timed", timed)
    monkeypatch.setattr(matmul, "multiplies_in_bfloat16", lambda: False)
    matmul.measured_once.cache_clear()


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("DEFT_CACHE_DIR", str(tmp_path / "缓存"))
    matmul.measured_once.cache_clear()
    yield
    matmul.measured_once.cache_clear()


def test_what_is_chosen_here_is_exact() -> None:
    choice = choose_kernel(tiny_model("llama", seed=1), 64)
    assert set(KERNELS) <= set(choice.measured)
    assert choice.measured[choice.kernel].error <= 1e-6
    assert choice.measured["plain"].error <= 1e-6


@pytest.mark.parametrize(
    ("onednn_s", "error", "chosen"),
    [(0.5, 2e-7, "onednn"), (0.99, 2e-7, "plain"), (1.5, 2e-7, "plain"), (0.1, 1e-3, "plain")],
)
def test_the_faster_kernel_is_chosen_if_it_is_exact(
    onednn_s: float, error: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_measured(monkeypatch, seconds={"plain": 1.0, "onednn": onednn_s}, error=error)
    model = tiny_model("llama", seed=1)
    choice = choose_kernel(model, 100)
    assert choice.kernel == chosen
    assert choice.times_as_fast("onednn", "plain") == pytest.approx(1 / onednn_s)
    assert choose_kernel(model, 100, "plain").kernel == "plain"


def test_a_kernel_that_rounds_is_refused_to_who_asks_for_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    as_measured(monkeypatch, seconds={"plain": 1.0, "onednn": 0.1}, error=2e-3)
    with pytest.raises(UserError) as caught:
        choose_kernel(tiny_model("llama", seed=1), 100, "onednn")
    assert "not exact here" in caught.value.what and caught.value.got == "relative error 2.0e-03"
    assert "--matmul plain" in str(caught.value.fix)


def test_a_choice_is_kept_for_the_next_run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    as_measured(monkeypatch, seconds={"plain": 1.0, "onednn": 0.5}, error=0.0)
    model = tiny_model("llama", seed=1)
    first = choose_kernel(model, 100)
    as_measured(monkeypatch, seconds={"plain": 0.5, "onednn": 1.0}, error=0.0)  # measured again, it would be the other
    assert choose_kernel(model, 255) == first  # 64 to 255 tokens share a measurement
    [file] = (tmp_path / "缓存/products").iterdir()
    assert json.loads(file.read_text())["kernel"] == "onednn"
    file.write_text("{", encoding="utf-8")
    matmul.measured_once.cache_clear()
    assert choose_kernel(model, 100).kernel == "plain"  # a damaged file is none


def test_other_formats_and_devices_are_left_alone() -> None:
    model = tiny_model("llama", seed=1)
    assert choose_kernel(model.to(torch.bfloat16), 100) == Choice(kernel="plain", measured={})
    assert choose_kernel(model.float(), 100, device=torch.device("cuda")) == Choice(kernel="plain", measured={})


def test_numbers_of_tokens_near_each_other_share_a_measurement() -> None:
    assert [matmul.power_of_4_below(n) for n in (0, 1, 3, 4, 15, 16, 63, 64, 5000)] == [1, 1, 1, 4, 4, 16, 16, 64, 4096]


def test_products_are_counted_by_hand() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    assert shapes_of(model) == (Shape(3, 5, 2), Shape(5, 2, 1))
    forward, of_input, of_weight = matmul.products_of(Shape(3, 5, 2), 7)
    assert [tuple(product().shape) for product in (forward, of_input, of_weight)] == [(7, 5), (7, 3), (5, 3)]
    assert [product.flop for product in (forward, of_input, of_weight)] == [2 * 7 * 3 * 5] * 3


def test_a_block_of_a_product_is_compared_with_float64() -> None:
    for product in matmul.products_of(Shape(100, 300, 1), 200):
        whole = product.to(torch.float64)()
        rows, columns = (matmul.spread(size) for size in whole.shape)
        assert len(rows) == len(columns) == matmul.BLOCK and rows[-1] == whole.shape[0] - 1
        assert torch.allclose(product.block(rows, columns), whole[rows][:, columns], rtol=1e-12)
        assert matmul.relative_error(product, product()) < 1e-6
        rounded = product.to(torch.bfloat16)().float()
        assert 1e-3 < matmul.relative_error(product, rounded) < 1e-2


def test_a_head_is_measured_in_little_memory() -> None:
    forward, of_input, of_weight = matmul.products_of(Shape(576, 262_144, 1), 1024)
    assert all(product.left.numel() <= matmul.MAX_WEIGHTS for product in (forward, of_input, of_weight))
    assert forward.right.numel() <= matmul.MAX_WEIGHTS
    assert forward.right.shape[1] == of_weight.right.shape[1] == 576


def test_the_switch_comes_back_as_it_was() -> None:
    before = SWITCH.fp32_precision
    with pytest.raises(KeyError, match="坏"), products_by("onednn"):
        assert SWITCH.fp32_precision == "bf16"
        with products_by("plain"):
            assert SWITCH.fp32_precision == "ieee"
        assert SWITCH.fp32_precision == "bf16"
        raise KeyError("坏")
    assert SWITCH.fp32_precision == before


def test_measured_values_are_written_and_read_alike(tmp_path) -> None:
    choice = Choice(kernel="onednn", measured={name: Measured(flop_per_s=2.5e11, error=3e-7) for name in KERNELS})
    (tmp_path / "一.json").write_text(json.dumps(dataclasses.asdict(choice)), encoding="utf-8")
    assert matmul.read_choice(tmp_path / "一.json") == choice
