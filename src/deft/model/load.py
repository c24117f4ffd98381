"""Load a model with its tokenizer.

In: a model found already, or its name: an alias, a folder or a hub id. Out: a `LoadedModel` on its device, in
evaluation mode. No code from a checkpoint ever runs: weights come from safetensors, or from `.bin` files read as plain
tensors.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.errors import UserError, did_you_mean, explaining_panics, first_line, visible
from deft.hub.files import has_tokenizer, incomplete, missing_files, read_json, weight_files
from deft.hub.find import FoundModel, find
from deft.hub.quiet import quiet_transformers
from deft.model.architecture import check_architecture, enter_own, needed_class, remote_code
from deft.model.device import choose_device, choose_dtype
from deft.model.weights import adapter_embeddings, check_finite, check_pickles, check_weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedModel:
    """A model in evaluation mode on its device, its tokenizer, and the folder they were read from.

    `model` is a `transformers.PreTrainedModel`, or a `peft.PeftModel` where the folder held an adapter.
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    path: Path


def load_tokenizer(model: str | Path | FoundModel) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer, for an adapter the one saved with it or else its base model's.

    Raises:
        UserError: if there is none, it is damaged, or it needs code from the checkpoint.
    """
    from transformers import AutoTokenizer

    from deft.model.tokenizers.llama import load_llama_tokenizer

    found = find(model, weights=False)
    folder = found.folder
    if not has_tokenizer(folder):
        if found.is_adapter:
            return load_tokenizer(found.base)
        raise incomplete(folder, missing_files(folder))
    if (folder / "config.json").is_file():
        check_architecture(folder)
    for file in ("tokenizer_config.json", "tokenizer.json"):
        if (folder / file).is_file():
            enter_own(read_json(folder / file).get("tokenizer_class"))
    try:
        with quiet_transformers(), explaining_panics():
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
    model: str | Path | FoundModel,
    *,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    weights: bool = True,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> LoadedModel:
    """Load a model and its tokenizer, unless that is given, in evaluation mode.

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
    found = find(model)
    with quiet_transformers():
        if tokenizer is None:
            tokenizer = load_tokenizer(found)
        if found.is_adapter:
            made = load_adapter(found, dtype=kind, attn_implementation=attn_implementation)
        elif not weights:
            made = model_to_fill(found.folder, dtype=kind, attn_implementation=attn_implementation)
        else:
            made = load_weights(found.folder, dtype=kind, attn_implementation=attn_implementation)
    try:
        made.to(place)
    except torch.OutOfMemoryError as error:
        fix = "free the device, use dtype bfloat16, or load on the cpu"
        raise UserError(f"the model does not fit on {place}", got=first_line(error), fix=fix) from error
    return LoadedModel(model=made.eval(), tokenizer=tokenizer, path=found.folder)


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


def load_adapter(adapter: FoundModel, *, dtype: "torch.dtype", attn_implementation: str | None) -> Any:
    """Load an adapter's base model, resize its embeddings to the adapter's, and put the adapter on it."""
    from peft import PeftModel

    folder, base = adapter.folder, adapter.base.folder
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
        fault = f"the adapter in {folder} does not fit its base model {base}"
        fix = "set base_model_name_or_path in its adapter_config.json to the model it was trained on"
        raise UserError(fault, got=first_line(error), fix=fix) from error
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            what, fix = f"{files[0]} lacks weights of the adapter", "copy or download that file again"
            raise UserError(what, got=first_line(str(warning.message)), fix=fix)
    check_finite(adapted, folder)
    return adapted
