"""Checkpoints of Baichuan2: official `.bin` shards and safetensors hold the same; damage is named, nothing runs."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from baichuan2_models import differ, logits, official_folder, official_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deft.errors import UserError
from deft.hub.quiet import quiet_transformers
from deft.model.load import load_model, load_weights
from deft.publish.export import export, weights_of
from deft.testing.tiny import byte_tokenizer, save_tiny, tiny_model

FIRST, SECOND = (f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))
IDS = torch.arange(0, 250, 7)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A copy of the fixture that can be damaged, with a tokenizer so that it loads as a whole."""
    folder = tmp_path / "百川"
    shutil.copytree(official_folder(), folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def as_bin(folder: Path, num_shards: int = 2) -> Path:
    """Write a folder's weights as official releases have them."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    weight_map = {}
    for shard in range(num_shards):
        file = f"pytorch_model-{shard + 1:05}-of-{num_shards:05}.bin"
        part = {name: state[name] for name in names[shard::num_shards]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Say whether two sets of tensors are the same to the bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].contiguous().numpy().tobytes() == second[name].contiguous().numpy().tobytes()
        for name in first
    )


def test_saved_and_loaded_again_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    stored = weights_of(official_folder())
    model = official_model()
    with quiet_transformers():
        for round_trip in ("一", "二"):
            logits(model, IDS)  # an evaluation in between changes nothing
            model.save_pretrained(tmp_path / round_trip, max_shard_size="8MB")
            assert same(weights_of(tmp_path / round_trip), stored)
            model = AutoModelForCausalLM.from_pretrained(tmp_path / round_trip)
    first, second = (sorted((tmp_path / each).iterdir()) for each in ("一", "二"))
    assert [file.name for file in first] == [file.name for file in second]
    assert len([file for file in first if file.suffix == ".safetensors"]) == 3
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_bin_shards_and_a_safetensors_copy_are_one_model(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(official_folder() / "config.json", copy)
    stored = weights_of(official_folder())
    save_file(stored, copy / "model.safetensors", metadata={"format": "pt"})
    loaded = load_weights(copy, dtype=torch.float32, attn_implementation=None)
    assert same(dict(official_model().state_dict()), dict(loaded.state_dict()))
    assert same(dict(loaded.state_dict()), stored), "the names are the official ones"


def test_rotary_tables_of_old_releases_are_passed_over(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = save_tiny(tmp_path / "模型", "baichuan2_rope")
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.full((8,), 3.0)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(folder, device="cpu").model
    assert torch.equal(logits(model, IDS), logits(tiny_model("baichuan2_rope"), IDS))
    assert not [warning for warning in recwarn if "does not use" in str(warning.message)]


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1000, 5_000_000, -1])
def test_a_cut_shard_is_named(official: Path, keep: int) -> None:
    shard = official / SECOND
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(UserError) as caught:
        load_model(official)
    assert caught.value.what == f"{shard} is damaged"


def test_a_missing_shard_is_named(official: Path) -> None:
    (official / SECOND).unlink()
    with pytest.raises(UserError) as caught:
        load_model(official)
    assert caught.value.what == f"{official} is not a complete model: it lacks {SECOND}"


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("packed", [True, False])
def test_a_shard_with_code_does_not_run(official: Path, packed: bool) -> None:
    ran, shard = official / "ran", official / SECOND
    content = torch.load(shard, weights_only=True) | {"恶意": Evil(ran)}
    if packed:
        torch.save(content, shard)
    else:
        shard.write_bytes(pickle.dumps(Evil(ran)))
    with pytest.raises(UserError) as caught:
        load_model(official)
    assert caught.value.what == f"{shard} cannot be read as weights"
    assert not ran.exists()
    if packed:
        torch.load(shard, weights_only=False)
        assert ran.exists(), "the shard would have done it"


def test_missing_and_unexpected_tensors_are_named(official: Path) -> None:
    shard = official / FIRST
    content = torch.load(shard, weights_only=True)
    moved = content.pop("model.layers.1.self_attn.W_pack.weight")
    torch.save(content | {"model.layers.1.self_attn.q_proj.weight": moved}, shard)
    with pytest.raises(UserError, match="lack 1 tensors that its config") as caught:
        load_model(official)
    assert caught.value.got == "model.layers.1.self_attn.W_pack.weight"
    torch.save(content | {"model.layers.1.self_attn.W_pack.weight": moved, "多余": moved}, shard)
    with pytest.warns(UserWarning, match="1 tensors that the model does not use: 多余"):
        load_model(official)


# --- memory -----------------------------------------------------------------------------------------------------

WATCH = """
import sys, threading, time
from pathlib import Path
import torch
from deft.model.load import load_weights, quiet_transformers
from deft.model.baichuan2.modelling import BaichuanForCausalLM

def own_memory():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, own_memory())
        time.sleep(0.0005)

with quiet_transformers():
    load_weights(Path(sys.argv[2]), dtype=torch.float32, attn_implementation=None)  # what the first load imports
before = own_memory()
watcher = threading.Thread(target=watch)
watcher.start()
with quiet_transformers():
    model = load_weights(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[3]), attn_implementation=None)
done = True
watcher.join()
print(peak - before, sum(weights.nbytes for weights in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process's memory")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_loading_shards_takes_the_weights_and_at_most_one_shard(dtype: str, tmp_path: Path) -> None:
    """Stored in bfloat16; loaded in fp32 every tensor is made anew, loaded in bfloat16 the file's pages are used."""
    small = as_bin(save_tiny(tmp_path / "小", "baichuan2"))
    large = tmp_path / "大"
    with quiet_transformers():
        tiny_model("baichuan2", vocab_size=150_000).bfloat16().save_pretrained(large)
    as_bin(large, num_shards=6)
    shard = max(file.stat().st_size for file in large.glob("*.bin"))
    code = [sys.executable, "-c", WATCH, str(large), str(small), dtype]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, weights = map(int, done.stdout.split())
    assert weights > 2 * shard > 40_000_000
    assert peak < weights + shard, f"{peak / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights"


# --- exports ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["baichuan2", "baichuan2_rope"])
def test_an_export_keeps_official_names_and_the_same_logits(architecture: Any, tmp_path: Path) -> None:
    folder = as_bin(save_tiny(tmp_path / "模型", architecture, seed=3))
    export(folder, tmp_path / "出", license="other")
    assert same(weights_of(tmp_path / "出"), weights_of(folder))
    config = json.loads((tmp_path / "出" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("baichuan", ["BaichuanForCausalLM"])
    assert not list((tmp_path / "出").glob("*.bin"))
    found = logits(load_model(tmp_path / "出", device="cpu").model, IDS)
    assert differ(found, logits(tiny_model(architecture, seed=3), IDS)) == 0
