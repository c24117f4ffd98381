"""Find a model by name, and load it with its tokenizer.

In: an alias, a folder or a hub id. Out: a `LoadedModel` on its device, in evaluation mode. No code from a checkpoint
ever runs: weights come from safetensors, or from `.bin` files read as plain tensors. What a folder lacks is found in
`checkpoint_files`.
"""

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.errors import UserError, did_you_mean, panics_told, visible
from deft.model.baichuan2.registration import register
from deft.model.checkpoint_files import (
    ADAPTER_CONFIG,
    adapter_embeddings,
    check_architecture,
    check_finite,
    check_pickles,
    check_regular,
    check_weight_files,
    first_line,
    has_tokenizer,
    incomplete,
    missing_files,
    needed_class,
    read_json,
    remote_code,
    weight_files,
)
from deft.model.embedded import find_damage
from deft.model.known import KNOWN_MODELS, find_known, models_folder
from deft.model.pull import pull_hub

if TYPE_CHECKING:
    from logging import LogRecord

    import torch
    from transformers import PreTrainedTokenizerBase

LONGEST_NAME = 1_000
LONGEST_PART_BYTES = 255
"""Of a path, between its slashes; what file systems allow."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
OWN_FOLDERS = {Path("models"), Path("runs")}
"""Where deft itself puts models: a name that begins with one of them is no hub's, also before there is any."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedModel:
    """A model in evaluation mode on its device, its tokenizer, and the folder they were read from.

    `model` is a `transformers.PreTrainedModel`, or a `peft.PeftModel` where the folder held an adapter.
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    path: Path


# --- finding ----------------------------------------------------------------------------------------------------


def find_model(name: str | Path, *, weights: bool = True) -> str | Path:
    """Return where a model is: the folder of an alias or of a local path, or the id of a hub model.

    An alias goes before a folder of the same name (write `./name` for the folder). `weights` False takes a folder
    without them, as a dry run does.

    Raises:
        UserError: if there is no such model, it has not been pulled, or its folder lacks files.
    """
    if is_no_path(str(name)):
        raise UserError("there is no such model", got=str(name), fix="give a folder, a hub id (org/name), or an alias")
    known = find_known(str(name))
    if known is not None:
        if known.hub_id is not None:
            return known.hub_id
        folder = models_folder() / known.alias
        if (damage := find_damage(folder, known)) is not None:
            what = f"{folder} is damaged: {damage}" if folder.exists() else f"{known.alias} is not in {folder.parent}"
            accept = " --accept-license" if known.terms is not None else ""
            raise UserError(what, fix=f"deft pull {known.alias}{accept}")
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        if missing := missing_files(folder, weights=weights, tokenizer=False):
            raise incomplete(folder, missing)
        return folder
    if folder.exists():
        raise UserError(
            "a model is a folder, and this is a file", got=str(name), fix="give the folder that holds the model"
        )
    if HUB_ID.fullmatch(str(name)) and not folder.parent.is_dir() and folder.parent not in OWN_FOLDERS:
        return str(name)
    raise unknown_model(str(name), folder)


def is_no_path(name: str) -> bool:
    """Say whether a name is empty, or too long for any file system: looking it up would be an error of its own."""
    longest = max((len(os.fsencode(part)) for part in Path(name).parts), default=0)
    return not name or len(name) > LONGEST_NAME or longest > LONGEST_PART_BYTES


def unknown_model(name: str, folder: Path) -> UserError:
    """Return the error for a name that is neither an alias nor a folder, with the folders and aliases near it."""
    if name == folder.name or folder.parent in OWN_FOLDERS:
        near = difflib.get_close_matches(folder.name, KNOWN_MODELS, n=1)
        if near:
            return UserError("there is no such model", got=name, fix=f"did you mean {near[0]!r}?")
    if (latest := next((each for each in (folder, *folder.parents) if each.name == "latest"), None)) is not None:
        if not latest.exists():
            fix = "deft quickstart, or deft train --train FILE, makes the first"
            return UserError(f"there is no run in {latest.parent} yet", got=name, fix=fix)
        if folder == latest / "best":
            fix = "wait for its first validation, or take one of its checkpoints"
            return UserError("the latest run has no best checkpoint yet", got=name, fix=fix)
    beside = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
    if near := difflib.get_close_matches(folder.name, beside, n=3):
        fix = "did you mean " + " or ".join(str(folder.parent / each) for each in near) + "?"
    elif HUB_ID.fullmatch(name):
        fix = f"the folder {folder.parent} holds no {folder.name}; for the hub's: deft pull {name}, then give its path"
    else:
        fix = "give a folder, a hub id (org/name), or one of: " + ", ".join(KNOWN_MODELS)
    return UserError("there is no such model", got=name, fix=fix)


def find_in_cache(hub_id: str, *, weights: bool = True) -> Path | None:
    """Return the snapshot of a hub model in the local cache, if it is whole; the network is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return None if missing_files(folder, weights=weights) else folder


def find_folder(name: str | Path, *, weights: bool = True) -> Path:
    """Return the folder of a model, downloading a hub model that is not in the cache."""
    found = find_model(name, weights=weights)
    folder = found if isinstance(found, Path) else find_in_cache(found, weights=weights)
    if folder is None:
        folder = pull_hub(str(found), weights=weights, tell=lambda line: print(line, file=sys.stderr, flush=True))
    check_regular(folder)
    return folder


# --- loading ----------------------------------------------------------------------------------------------------


def load_tokenizer(name: str | Path) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer, for an adapter the one saved with it or else its base model's.

    Raises:
        UserError: if there is none, it is damaged, or it needs code from the checkpoint.
    """
    from transformers import AutoTokenizer

    from deft.model.llama_tokenizer import load_llama_tokenizer

    folder = find_folder(name, weights=False)
    register()
    if not has_tokenizer(folder):
        if (folder / ADAPTER_CONFIG).is_file():
            return load_tokenizer(base_of(folder))
        raise incomplete(folder, missing_files(folder))
    if (folder / "config.json").is_file():
        check_architecture(folder)
    for file in ("tokenizer_config.json", "tokenizer.json"):
        if (folder / file).is_file():
            read_json(folder / file)
    try:
        with quiet_transformers(), panics_told():
            if (by_sentencepiece := load_llama_tokenizer(folder)) is not None:
                return by_sentencepiece
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except UserError:  # deft's own: a model of an earlier generation
        raise
    except Exception as error:  # tokenizers raises bare Exception
        if "trust_remote_code" in str(error):
            raise remote_code(folder, needed_class(read_json(folder / "tokenizer_config.json"))) from error
        what, fix = f"the tokenizer in {folder} cannot be loaded", "copy or download its files again"
        raise UserError(what, got=first_line(error), fix=fix) from error


def load_model(
    name: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    weights: bool = True,
) -> LoadedModel:
    """Load a model and its tokenizer, in evaluation mode.

    `dtype` "auto" is bfloat16 on a GPU that computes in it, otherwise float32: without hardware support bf16 is many
    times slower. `device` None is the first GPU, else Apple's, else the CPU. A folder with a LoRA adapter loads the
    base model that it names, its embeddings resized to those the adapter was trained with. `weights` False makes the
    same model with no meaningful numbers in it, for a process to which another one will send them.

    Raises:
        UserError: if the model is not found, is damaged (the file is named), needs code from the checkpoint, or does
            not fit the device.
    """
    import torch

    if dtype not in DTYPES:
        raise UserError("unknown dtype", got=dtype, fix=did_you_mean(dtype, DTYPES))
    place = choose_device(device)
    kind = choose_dtype(place) if dtype == "auto" else getattr(torch, dtype)
    folder = find_folder(name)
    with quiet_transformers():
        tokenizer = load_tokenizer(folder)
        if (folder / ADAPTER_CONFIG).is_file():
            model = load_adapter(folder, dtype=kind, attn_implementation=attn_implementation)
        elif not weights:
            model = model_to_fill(folder, dtype=kind, attn_implementation=attn_implementation)
        else:
            model = load_weights(folder, dtype=kind, attn_implementation=attn_implementation)
    try:
        model.to(place)
    except torch.OutOfMemoryError as error:
        fix = "free the device, use dtype bfloat16, or load on the cpu"
        raise UserError(f"the model does not fit on {place}", got=first_line(error), fix=fix) from error
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, path=folder)


def load_weights(folder: Path, *, dtype: "torch.dtype", attn_implementation: str | None) -> Any:
    """Load the model of a whole checkpoint on the CPU; every weight must be in its files."""
    from transformers import AutoModelForCausalLM

    check_architecture(folder)
    files = weight_files(folder)
    check_weight_files(files)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attn_implementation,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=files[0].suffix == ".safetensors",
            weights_only=True,
            output_loading_info=True,
        )
    except UserError as error:  # deft's own: a model of an earlier generation
        raise error.at(str(folder / "config.json")) from error
    except Exception as error:  # transformers, torch and safetensors raise of every kind
        if "trust_remote_code" in str(error):
            raise remote_code(folder, needed_class(read_json(folder / "config.json"))) from error
        check_pickles(files)
        what, fix = f"the model in {folder} cannot be loaded", "copy or download config.json and the weights again"
        raise UserError(what, got=first_line(error), fix=fix) from error
    model, report = loaded
    check_finite(model, folder)
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"the weights in {folder} lack {len(missing)} tensors that its config.json asks for",
            got=", ".join(missing[:3]),
            fix="the config and the weights are of different models: copy or download them again",
        )
    if unused := sorted(report["unexpected_keys"]):
        message = f"{folder} holds {len(unused)} tensors that the model does not use: {', '.join(unused[:3])}"
        warnings.warn(visible(message), stacklevel=2)  # names of tensors come from the file
    return model


def model_to_fill(folder: Path, *, dtype: "torch.dtype", attn_implementation: str | None) -> Any:
    """Make the model of a whole checkpoint on the CPU without reading its weights.

    Their memory is never touched, so it costs none; they have addresses, though, by which accelerate (1.15) tells them
    apart. Buffers that no checkpoint holds, such as the frequencies of rotary positions, are computed.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    check_architecture(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    model._apply(lambda tensor: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor)
    model.tie_weights()
    return model


def load_adapter(folder: Path, *, dtype: "torch.dtype", attn_implementation: str | None) -> Any:
    """Load an adapter's base model, resize its embeddings to the adapter's, and put the adapter on it."""
    from peft import PeftModel

    base = find_folder(base_of(folder))
    if (base / ADAPTER_CONFIG).is_file():
        fix = "merge that adapter into its own base model first, and name the result"
        raise UserError(f"the base model of {folder} is itself an adapter", got=str(base), fix=fix)
    files = weight_files(folder)
    check_weight_files(files)
    model = load_weights(base, dtype=dtype, attn_implementation=attn_implementation)
    num_embeddings = adapter_embeddings(files[0])
    if num_embeddings not in (None, model.get_input_embeddings().weight.shape[0]):
        model.resize_token_embeddings(num_embeddings, mean_resizing=False)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=False, local_files_only=True)
    except Exception as error:  # peft, torch and safetensors raise of every kind
        check_pickles(files)
        fault = f"the adapter in {folder} does not go on its base model {base}"
        fix = "set base_model_name_or_path in its adapter_config.json to the model it was trained on"
        raise UserError(fault, got=first_line(error), fix=fix) from error
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            what, fix = f"{files[0]} lacks weights of the adapter", "copy or download that file again"
            raise UserError(what, got=first_line(str(warning.message)), fix=fix)
    check_finite(adapted, folder)
    return adapted


def base_of(folder: Path) -> str | Path:
    """Return the base model that an adapter names, as `find_model` takes it.

    deft writes down the whole path the base was loaded from. If that is not here, a relative one is looked up from the
    adapter's folder, and one that ends with an alias means the alias. A hub is asked for what looks like a hub's id
    only, and it is said.
    """
    config = folder / ADAPTER_CONFIG
    base = read_json(config).get("base_model_name_or_path")
    if not isinstance(base, str) or is_no_path(base):
        raise UserError(f"{config} names no base model", got=base, fix="set base_model_name_or_path in it")
    if not Path(base).exists():
        if not Path(base).is_absolute() and (folder / base).is_dir():
            return folder / base
        if Path(base).name in KNOWN_MODELS:
            base = Path(base).name
    try:
        found = find_model(base)
    except UserError as error:
        raise error.at(f"{config}: base_model_name_or_path") from error
    if isinstance(found, str) and find_in_cache(found) is None:
        print(f"{visible(str(config))} names {found} as its base model", file=sys.stderr, flush=True)
    return base


# --- devices, and quiet -----------------------------------------------------------------------------------------


def choose_device(device: str | None) -> "torch.device":
    """Return the device asked for, or the best there is: CUDA, Apple's MPS, the CPU.

    Raises:
        UserError: if the device is not a device, or not there.
    """
    import torch

    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            "cannot use that device", got=f"{device}: {first_line(error)}", fix="cpu, cuda or mps"
        ) from error
    return place


def choose_dtype(device: "torch.device") -> "torch.dtype":
    """Return bfloat16 for a GPU that computes in it, float32 otherwise."""
    import torch

    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def shown_safely(record: "LogRecord") -> bool:
    """Let a line of transformers' log pass, its control characters, which come from checkpoints, as escapes."""
    record.msg, record.args = visible(record.getMessage(), keep="\n"), ()
    return True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the screen; its errors still show."""
    from transformers.utils import logging

    for handler in logging.get_logger("transformers").handlers:
        handler.addFilter(shown_safely)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
