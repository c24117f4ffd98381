"""Baichuan2 written with a plain head: the logits are those of a product with the head as it is stored."""

from pathlib import Path

import pytest
import torch
from baichuan2_models import differ, logits
from safetensors.torch import load_file

from deft.errors import UserError
from deft.model.baichuan2.norm_head import DirectionHead
from deft.model.load import load_model
from deft.publish.export import export
from deft.testing.tiny import save_tiny, tiny_model

IDS = torch.arange(0, 250, 3)


@pytest.mark.parametrize("architecture", ["baichuan2", "baichuan2_rope"])
def test_a_tool_without_norm_heads_computes_the_same_logits(architecture: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "百川", architecture, seed=6)  # type: ignore[arg-type]
    export(base, tmp_path / "出", to="plain_head")
    head = load_file(tmp_path / "出" / "model.safetensors")["lm_head.weight"]
    assert differ(head, load_file(base / "model.safetensors")["lm_head.weight"]) > 0.1
    model = tiny_model(architecture, seed=6)  # type: ignore[arg-type]
    hidden = model.get_decoder()(input_ids=IDS[None]).last_hidden_state[0]  # type: ignore[operator]
    assert differ(hidden @ head.T, logits(model, IDS)) < 1e-5
    written = load_model(tmp_path / "出", device="cpu").model
    assert differ(logits(written, IDS), logits(model, IDS)) < 1e-5, "normalising again changes nothing"
    export(tmp_path / "出", tmp_path / "再出", to="plain_head")
    assert differ(load_file(tmp_path / "再出" / "model.safetensors")["lm_head.weight"], head) < 1e-7


def test_a_head_that_is_not_normalised_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny(tmp_path / "百川", "baichuan2", seed=6)
    monkeypatch.setattr(DirectionHead, "effective_weight", lambda head: head.weight)
    with pytest.raises(UserError, match="the model with a plain head computes other logits"):
        export(base, tmp_path / "出", to="plain_head")
    assert not (tmp_path / "出").exists()


def test_other_models_are_refused(tmp_path: Path) -> None:
    qwen = save_tiny(tmp_path / "千问", "qwen3")
    with pytest.raises(UserError, match="only Baichuan2 has a head to normalise") as caught:
        export(qwen, tmp_path / "出", to="plain_head")
    assert caught.value.got == "qwen3"
