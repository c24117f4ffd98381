"""A process to which another one sends the weights makes the same model without reading them."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from deft.model.load import load_model
from deft.testing.tiny import Architecture, save_tiny


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_it_is_the_same_model_but_for_its_numbers(architecture: Architecture, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "模型", architecture, seed=3)
    read, unread = load_model(folder), load_model(folder, weights=False)
    told = [
        [(name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in one.model.state_dict().items()]
        for one in (read, unread)
    ]
    assert told[0] == told[1]
    assert unread.tokenizer.get_vocab() == read.tokenizer.get_vocab()
    embeddings, head = unread.model.get_input_embeddings().weight, unread.model.get_output_embeddings().weight
    assert (embeddings is head) == read.model.config.tie_word_embeddings
    addresses = [weight.data_ptr() for weight in unread.model.parameters()]
    assert len(set(addresses)) == len(addresses), "accelerate tells weights apart by them"
    filled = unread.model
    filled.load_state_dict(read.model.state_dict())
    ids = torch.tensor([read.tokenizer.encode("夜来风雨声")])
    with torch.inference_mode():
        assert torch.equal(filled(ids).logits, read.model(ids).logits), "what no checkpoint holds was computed"


MEASURE = """
import sys
import psutil
from deft.model.load import load_model
load_model("small", weights=False)
before = psutil.Process().memory_info().rss
model = load_model("large", dtype="bfloat16", weights=sys.argv[1] == "read")
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.slow
def test_its_memory_is_not_taken(tmp_path: Path) -> None:
    save_tiny(tmp_path / "small")
    large = save_tiny(tmp_path / "large", hidden_size=1024, num_layers=4, num_heads=8)
    num_bytes = (large / "model.safetensors").stat().st_size // 2  # in the 16 bits asked for, so that they are copied
    assert num_bytes > 50e6

    def taken(how: str) -> int:
        command = [sys.executable, "-c", MEASURE, how]
        return int(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)

    assert taken("read") > 0.9 * num_bytes, "so that the measure can tell"
    assert taken("leave") < 0.2 * num_bytes
