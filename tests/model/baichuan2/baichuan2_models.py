"""What the tests of Baichuan2 share: the official fixture, small models, and rows of Chinese and English bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from deft.hub.quiet import quiet_transformers
from deft.model.load import load_weights
from deft.testing.tiny import byte_tokenizer
from deft.types import IGNORED_LABEL, TokenSequence

FIXTURE = Path(__file__).parents[4] / "shared/fixtures/baichuan2-13b-tiny"
"""A random model in the official 13B's layout, with what the official code computed (lies beside the repository)."""

TEXTS = ("春眠不觉晓，处处闻啼鸟。", "Two and two make 4.", "夜来风雨声", "花落知多少？")


def official_folder() -> Path:
    """Return the fixture's folder, or skip the test where it is not there."""
    if not FIXTURE.exists():
        pytest.skip(f"{FIXTURE} is not there")
    return FIXTURE


def official_model(attn_implementation: str | None = None) -> PreTrainedModel:
    """Return the fixture's model in fp32, in evaluation mode."""
    with quiet_transformers():
        model = load_weights(official_folder(), dtype=torch.float32, attn_implementation=attn_implementation)
    return model.eval()


def official_numbers() -> dict[str, torch.Tensor]:
    """Return what the official code computed."""
    with np.load(official_folder() / "expected.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def rows() -> list[TokenSequence]:
    """Return a row of bytes for each of `TEXTS`, the first three tokens without loss."""
    made = []
    for text in TEXTS:
        ids = np.array(byte_tokenizer().encode(text), dtype=np.int32)
        labels = ids.copy()
        labels[:3] = IGNORED_LABEL
        made.append(TokenSequence(id=text, input_ids=ids, labels=labels))
    return made


def logits(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return the logits of one sequence `[length]`, `[length, vocab]`, without a cache."""
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False, **options).logits[0]


def differ(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest difference of two tensors."""
    return (first.double() - second.double()).abs().max().item()
