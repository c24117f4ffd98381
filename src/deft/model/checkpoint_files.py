"""Look into the folder of a checkpoint, and name what is missing or damaged before torch gets to see it.

In: a folder. Out: the files a model is loaded from and the shapes in them, or a `UserError` that names the file. Only
headers and JSON are read here, and `.bin` files as plain tensors: no code from a checkpoint ever runs.
"""

import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deft.errors import UserError
from deft.model.baichuan2.registration import register
from deft.rundir import LARGEST_READ_BYTES

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx")
"""Of files that may have any size."""
LARGEST_NUMBERS = {
    "num_hidden_layers": 10_000,
    "n_layer": 10_000,
    "n_layers": 10_000,
    "num_layers": 10_000,
    "num_attention_heads": 100_000,
    "num_key_value_heads": 100_000,
    "num_experts": 100_000,
    "num_local_experts": 100_000,
    "hidden_size": 10_000_000,
    "intermediate_size": 100_000_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": 10_000_000_000,
}
"""What a configuration may ask for at most: a model of more would be built for hours, or until memory ends."""
SHARES = ("dropout", "_pdrop", "dropout_prob")
"""Ends of the names of what is a share from 0 to 1."""
OWN_ATTENTION = (None, "eager", "sdpa", "deft_rows_apart")
"""Names of attention that run nothing but what is installed; `org/name` would fetch code from a hub."""
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_format.json",
    "chat_template.jinja",
    "source.json",
)
"""Files that are read whole wherever a checkpoint is loaded."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")


# --- which files --------------------------------------------------------------------------------------------------


def missing_files(folder: Path, *, weights: bool = True, tokenizer: bool = True) -> list[str]:
    """List what a checkpoint lacks to be loaded: its config, its weights (each shard by name), its tokenizer.

    Raises:
        UserError: if an index of shards is damaged.
    """
    adapter = (folder / ADAPTER_CONFIG).is_file()
    missing = [] if adapter or (folder / "config.json").is_file() else ["config.json"]
    if weights:
        found = weight_files(folder)
        missing += [file.name for file in found if not file.is_file()]
        if not found:
            missing.append("its weights (" + " or ".join(ADAPTER_FILES if adapter else WEIGHT_FILES) + ")")
    if tokenizer and not adapter and not has_tokenizer(folder):
        missing.append("a tokenizer (" + " or ".join(TOKENIZER_FILES) + ")")
    return missing


def has_tokenizer(folder: Path) -> bool:
    """Say whether a folder holds a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint, whether or not each exists: safetensors go before `.bin`."""
    for name in ADAPTER_FILES if (folder / ADAPTER_CONFIG).is_file() else WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise UserError(f"{index} lists no weights", fix="copy or download that file again")
            for shard in weight_map.values():
                if not isinstance(shard, str) or Path(shard).name != shard:
                    fix = "a shard is a file in the model's own folder: copy or download the model again"
                    raise UserError(
                        "an index names a shard outside of its folder", got=shard, where=str(index), fix=fix
                    )
            return [folder / shard for shard in sorted(set(weight_map.values()))]
    return []


def incomplete(folder: Path, missing: list[str]) -> UserError:
    """Return the error for a folder that lacks files of a model; its subfolders that hold one are named."""
    inside = sorted(found.parent.name for kind in ("config.json", ADAPTER_CONFIG) for found in folder.glob(f"*/{kind}"))
    fix = "these folders in it hold a model: " + ", ".join(inside) if inside else "copy or download the whole model"
    return UserError(f"{folder} is not a whole model: it lacks " + ", ".join(missing), fix=fix)


# --- what is in them ----------------------------------------------------------------------------------------------


def check_regular(folder: Path) -> None:
    """Check that what is read whole from a checkpoint's folder are files, and not too large to be what they are called.

    A pipe or a device of such a name would be read without end. Links, as in a hub's cache, are followed.

    Raises:
        UserError: naming the first that is something else.
    """
    for name in SMALL_FILES:
        check_readable(folder / name)
    for file in (*folder.iterdir(), *folder.glob("*/*.jinja")):
        holds_weights = file.suffix in WEIGHT_SUFFIXES
        if holds_weights or not file.is_dir():
            check_readable(file, limited=not holds_weights)


def check_readable(file: Path, *, limited: bool = True) -> None:
    """Check that a file, if it is there, is a regular one, and of a sane size if its size is `limited`.

    Raises:
        UserError: saying what it is instead.
    """
    try:
        status = file.stat()
    except OSError as error:
        if not file.is_symlink():
            return
        fix = "copy or download the model again"
        raise UserError("this link leads nowhere", got=str(file), fix=fix) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise UserError(f"this should be a file, and is {kind}", got=str(file), fix="copy or download the model again")
    if limited and status.st_size > LARGEST_READ_BYTES:
        fix = "copy or download that file again"
        raise UserError(
            "this file is far too large for what it is called",
            got=f"{status.st_size:,} bytes",
            where=str(file),
            fix=fix,
        )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: naming the file, if it is anything else.
    """
    check_readable(file)
    try:
        value = json.loads(file.read_text(encoding="utf-8"), parse_constant=number_of)
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{file} cannot be read", got=reason, fix="copy or download that file again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object", got=value, fix="copy or download that file again")
    return value


def number_of(name: str) -> float:
    """Return what JSON with numbers beyond its standard calls a number: there are settings without limit (Infinity).

    Raises:
        ValueError: if it is none (NaN).
    """
    if name == "NaN":
        raise ValueError("NaN is no number that a setting can have")
    return float(name.replace("Infinity", "inf"))


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a weight file."""
    import torch
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        check_pickles([file])
        state = torch.load(file, map_location="meta", weights_only=True)
        return {key: tuple(tensor.shape) for key, tensor in state.items()}
    with safe_open(file, framework="pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 (not a dict)


def adapter_embeddings(file: Path) -> int | None:
    """Return the rows of the embedding that was saved with an adapter, if one was; only shapes are read."""
    for key, shape in tensor_shapes(file).items():
        if key.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight")):
            return shape[0]
        if "lora_embedding_A" in key:
            return shape[1]
    return None


# --- checks -------------------------------------------------------------------------------------------------------


def check_architecture(folder: Path) -> None:
    """Check that transformers, or deft, has the model type of a config as a causal language model.

    Raises:
        UserError: if it has not; a checkpoint that brings its own code is told apart.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    register()
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{folder / 'config.json'} names no model_type", fix="copy or download that file again")
    check_numbers(config, folder / "config.json")
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise remote_code(folder, needed_class(config))
        what = f"this transformers does not know the model type in {folder / 'config.json'}"
        raise UserError(what, got=model_type, fix="upgrade transformers, or choose another model: deft models")
    if CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        what = f"the model in {folder} is not a causal language model"
        raise UserError(what, got=model_type, fix="deft trains models that predict the next token")


def check_numbers(config: dict[str, Any], file: Path) -> None:
    """Check that a configuration asks for a model that can be, for its own weights, and for attention of deft's.

    Raises:
        UserError: naming the setting.
    """
    named = config.get("transformers_weights")
    if named is not None and named not in {*WEIGHT_FILES, *(f"{name}.index.json" for name in WEIGHT_FILES)}:
        fix = "take it out of the file, and call the weights model.safetensors"
        raise UserError("the model names weights of another place", got=named, where=str(file), fix=fix)
    for part in objects_in(config):
        for name, value in part.items():
            if name.endswith(SHARES) and isinstance(value, int | float) and not 0 <= value <= 1:
                fix = "it is a share from 0 to 1: copy or download that file again"
                raise UserError(f"a model cannot have this `{name}`", got=value, where=str(file), fix=fix)
        for name, most in LARGEST_NUMBERS.items():
            value = part.get(name)
            if isinstance(value, int | float) and not 0 <= value <= most:
                fix = f"it may be at most {most:,}: copy or download that file again"
                raise UserError(f"a model cannot have this `{name}`", got=value, where=str(file), fix=fix)
        for name in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
            if part.get(name) not in OWN_ATTENTION:
                fix = f"take `{name}` out of the file: deft chooses how attention is computed, and fetches no code"
                raise UserError(
                    "the model asks for attention that is not deft's", got=part[name], where=str(file), fix=fix
                )


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield a JSON object and all those in it: a configuration may hold those of its parts, at any depth."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield one
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def check_finite(model: Any, folder: Path) -> None:
    """Check that all weights of a model are numbers.

    Raises:
        UserError: naming the first that holds NaN or an infinite number.
    """
    import torch

    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.is_meta or not weight.numel():
            continue
        least, most = torch.aminmax(weight.detach())  # a NaN is both
        if not (torch.isfinite(least) and torch.isfinite(most)):
            what, fix = (
                f"the weights in {folder} are damaged: they hold NaN or infinite numbers",
                "fetch the model again",
            )
            raise UserError(what, got=name, fix=f"{fix}, or take an earlier checkpoint")


def needed_class(config: dict[str, Any]) -> str:
    """Return the class in a checkpoint's own code that a config would have run: a name, or a list of slow and fast."""
    auto_map = config.get("auto_map") or {}
    needed = auto_map.get("AutoModelForCausalLM") or next(iter(auto_map.values()), "a class of its own")
    return ", ".join(name for name in needed if name) if isinstance(needed, list) else str(needed)


def remote_code(folder: Path, name: str) -> UserError:
    """Return the error for a checkpoint that only loads by running its own code."""
    fix = "deft never runs code from a checkpoint: use a model whose architecture transformers has"
    return UserError(f"the checkpoint in {folder} needs code of its own", got=name, fix=fix)


def check_weight_files(files: list[Path]) -> None:
    """Check that weight files are whole, reading only their headers.

    Raises:
        UserError: naming the first that is cut short or is no such file.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        fix = "copy or download that file again"
        if not file.is_file():
            raise UserError(f"{file} is missing", fix=fix)
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} is damaged", got=str(error), fix=fix) from error
        else:
            with file.open("rb") as stream:
                packed = stream.read(2) == b"PK"
            if file.stat().st_size == 0 or (packed and not zipfile.is_zipfile(file)):
                raise UserError(f"{file} is damaged", got=f"{file.stat().st_size} bytes", fix=fix)


def check_pickles(files: list[Path]) -> None:
    """After a failure, name the `.bin` file that does not read as plain tensors."""
    import torch

    for file in files:
        if file.suffix == ".bin":
            try:
                torch.load(file, map_location="meta", weights_only=True)
            except Exception as error:
                fix = "deft reads tensors only, no other pickled objects: convert it to safetensors"
                raise UserError(f"{file} cannot be read as weights", got=first_line(error), fix=fix) from error


def first_line(error: Exception | str) -> str:
    """Return the first line of an error's text that says something, or the error's kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
