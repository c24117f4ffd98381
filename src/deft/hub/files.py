"""Look into the folder of a checkpoint, and name what is missing or damaged before torch gets to see it.

In: a folder. Out: the files a model is loaded from, and the JSON in them, or a `UserError` that names the file. Weights
are not opened here: `deft.model.weights` reads their headers.
"""

import json
import stat
from pathlib import Path
from typing import Any

from deft.errors import UserError
from deft.files import LARGEST_READ_BYTES

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx")
"""Of files that may have any size."""
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    ADAPTER_CONFIG,
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


# --- which files --------------------------------------------------------------------------------------------------


def holds_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter: the one place that knows what tells it from a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def missing_files(folder: Path, *, weights: bool = True, tokenizer: bool = True) -> list[str]:
    """List what a checkpoint lacks to be loaded: its config, its weights (each shard by name), its tokenizer.

    Raises:
        UserError: if an index of shards is damaged.
    """
    adapter = holds_adapter(folder)
    missing = [] if adapter or (folder / "config.json").is_file() else ["config.json"]
    if weights:
        found = weight_files(folder)
        missing += [file.name for file in found if not file.is_file()]
        if not found:
            missing.append("its weights (" + " or ".join(ADAPTER_FILES if adapter else WEIGHT_FILES) + ")")
    if tokenizer and not adapter and not has_tokenizer(folder):
        missing.append("a tokenizer (" + " or ".join(TOKENIZER_FILES) + ")")
    return missing


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint, whether or not each exists: safetensors go before `.bin`.

    Raises:
        UserError: if an index of shards is damaged, or names a file of another folder.
    """
    for name in ADAPTER_FILES if holds_adapter(folder) else WEIGHT_FILES:
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


def has_tokenizer(folder: Path) -> bool:
    """Say whether a folder holds a tokenizer's vocabulary."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def incomplete(folder: Path, missing: list[str]) -> UserError:
    """Return the error for a folder that lacks files of a model; its subfolders that hold one are named."""
    inside = sorted(found.parent.name for kind in ("config.json", ADAPTER_CONFIG) for found in folder.glob(f"*/{kind}"))
    fix = "these folders in it hold a model: " + ", ".join(inside) if inside else "copy or download the whole model"
    return UserError(f"{folder} is not a complete model: it lacks " + ", ".join(missing), fix=fix)


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
        raise UserError("this link is broken", got=str(file), fix=fix) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise UserError(f"this should be a file, but is {kind}", got=str(file), fix="copy or download the model again")
    if limited and status.st_size > LARGEST_READ_BYTES:
        fix = "copy or download that file again"
        raise UserError(
            "this file is far too large to be what its name says",
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
