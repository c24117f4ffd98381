"""Low-rank adapters (peft): a model in, the same model with a few trainable weights out."""

import difflib
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deft.errors import UserError, did_you_mean
from deft.model.device import choose_device

ADAPTER_METHODS = ("lora", "rslora", "dora", "qlora")
"""LoRA (Hu et al. 2021); with the product scaled by alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023); with a trained
magnitude per output beside it (DoRA, Liu et al. 2024); on a base model held in 4 bits (QLoRA, Dettmers et al. 2023)."""

ALL_LINEAR = ("all",)


def add_lora(
    model: PreTrainedModel,
    *,
    method: str = "lora",
    targets: Sequence[str] = ALL_LINEAR,
    rank: int,
    alpha: float,
    dropout: float,
    train_embeddings: bool,
) -> Any:
    """Wrap `model` with adapters on its linear layers, and return the `peft.PeftModel`.

    `targets` is "all", every linear layer but the head, or names of such layers, whole or their last parts.
    `train_embeddings` also trains and saves the embeddings and the head whole: tokens that were just added to the
    vocabulary mean nothing until they are trained.

    Raises:
        UserError: if the method is unknown, cannot run here, or the model has no layer of a name in `targets`.
    """
    from peft import LoraConfig, get_peft_model

    if method not in ADAPTER_METHODS:
        raise UserError("unknown adapter method", got=method, fix=did_you_mean(method, ADAPTER_METHODS))
    modules = target_modules(model, targets)
    if method == "qlora":
        check_qlora()
        hold_in_4_bits(model, choose_device(None))
    whole = (model.get_input_embeddings(), model.get_output_embeddings()) if train_embeddings else ()
    names = [name for name, module in model.named_modules() if any(module is part for part in whole)]
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by the rank; it need not be whole
        lora_dropout=dropout,
        target_modules=modules,
        use_rslora=method == "rslora",
        use_dora=method == "dora",
        modules_to_save=names or None,
        ensure_weight_tying=bool(names) and bool(model.config.tie_word_embeddings),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers under a name that is going away
        return get_peft_model(model, settings)


# --- which layers -------------------------------------------------------------------------------------------------


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of a model's linear layers but the head, in the model's order."""
    head = model.get_output_embeddings()
    return [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    ]


def target_modules(model: PreTrainedModel, targets: Sequence[str]) -> str | list[str]:
    """Return `targets` as peft takes them, each checked against the layers that the model has.

    Raises:
        UserError: naming the first that fits no linear layer, with the name nearest to it.
    """
    if tuple(targets) == ALL_LINEAR:
        return "all-linear"
    layers = linear_layers(model)
    short = {name.rpartition(".")[2] for name in layers}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            near = difflib.get_close_matches(target, layers, n=1) if "." in target else []
            raise UserError(
                "lora_targets names no linear layer of this model (the head is not adapted)",
                got=target,
                fix=f"did you mean {near[0]!r}?" if near else f"all, or {did_you_mean(target, short)}",
            )
    return list(targets)


# --- 4 bits -------------------------------------------------------------------------------------------------------


def check_qlora() -> None:
    """Check that QLoRA can run on this computer.

    Raises:
        UserError: if bitsandbytes or a CUDA device is missing.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        fix = "pip install bitsandbytes (it computes on NVIDIA GPUs), or choose method lora"
        raise UserError("qlora needs bitsandbytes, which is not installed", fix=fix)
    if not torch.cuda.is_available():
        fix = "choose method lora; or install torch for CUDA on a machine with an NVIDIA GPU: pip install torch"
        raise UserError("qlora needs a CUDA device, and there is none", fix=fix)


def hold_in_4_bits(model: PreTrainedModel, place: torch.device) -> None:
    """Bring a model to a device, the weights of its linear layers but the head in 4 bits (NF4, its scales quantised).

    Computing goes on in the type the weights had. A layer at a time, so that the device never holds more than the
    result and one layer if the model was on the CPU before.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in linear_layers(model):
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            fix = "choose method lora: qlora quantises plain linear layers only"
            raise UserError("this model's layers cannot be quantised to 4 bits", got=type(layer).__name__, fix=fix)
        dtype = layer.weight.dtype
        held = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
            device="meta",
        )
        weight = Params4bit(
            layer.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=held
        )
        held.weight = weight
        held.bias = layer.bias
        model.set_submodule(name, held.to(place))
    model.to(place)  # type: ignore[arg-type]  # what is left: embeddings, norms, the head
    vars(model)["is_loaded_in_4bit"] = True  # peft asks for it before it looks at a layer
