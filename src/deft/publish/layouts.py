"""Baichuan2 in layouts for tools that do not know it: a model ready to be written in, the same function out.

`llama` is for tools that know no Baichuan at all. `plain_head` is for those that multiply by the head as it is stored,
which Baichuan2 normalises first: llama.cpp's converter takes it for Baichuan 1.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from deft.errors import UserError
from deft.hub.files import read_json
from deft.hub.find import FoundModel, fetch
from deft.model.baichuan2.configuration import MODEL_TYPE, Baichuan2Config
from deft.publish.merge import Ready, check_logits, logits_of
from deft.registry import resolve

LAYOUTS = {
    "llama": "deft.publish.layouts:as_llama",
    "plain_head": "deft.publish.layouts:with_plain_head",
}
"""Layouts for other tools that a checkpoint can be written in, besides its own."""
KIND = "layout to export to"
"""What a name in the table is called where it is not found."""


def check_layout(model: FoundModel, to: str, *, keep_adapter: bool = False) -> None:
    """Check by configs alone, before anything is loaded, that a checkpoint can be written in another layout.

    Raises:
        UserError: if the layout is unknown, or the checkpoint, or the base model of its adapter, does not fit into it.
    """
    resolve(LAYOUTS, to, kind=KIND)
    if keep_adapter:
        fix = "leave --keep-adapter out: the adapter is then merged"
        raise UserError("an adapter keeps its base model's layout", got=f"--to {to} --keep-adapter", fix=fix)
    # Of a base model at the hub the config is fetched for this, and its weights only once it is known to fit.
    folder = fetch(model.base_place, weights=False).folder if model.is_adapter else model.folder
    values = read_json(folder / "config.json")
    if values.get("model_type") != MODEL_TYPE:
        what = "only Baichuan2-7B is written in Llama's layout"
        if to == "plain_head":
            what = "only Baichuan2 has a head to normalise"
        fix = f"leave --to {to} out: other models are exported in their own layout"
        raise UserError(what, got=values.get("model_type"), fix=fix)
    if to == "llama" and Baichuan2Config.from_dict(values).position_embedding == "alibi":
        raise UserError(
            "this Baichuan2 has no equivalent in Llama's layout: it biases attention by distance (ALiBi), Llama cannot",
            got=str(folder),
            fix=f"leave --to {to} out, and serve it with an engine that knows Baichuan: vLLM up to 0.23, or LMDeploy",
        )


def in_layout(ready: Ready, to: str) -> Ready:
    """Return a model ready to be written in another layout of `LAYOUTS`.

    Raises:
        UserError: if there is no such layout, or the model computes other logits in it.
    """
    changed: Ready = resolve(LAYOUTS, to, kind=KIND)(ready)
    return changed


def as_llama(ready: Ready) -> Ready:
    """Return a Baichuan2-7B ready to be written in Llama's layout; `ready.model` loses its weights to it.

    Queries, keys and values get matrices of their own, and the rows of the head length 1. The 13B cannot be written so:
    Llama has no ALiBi.

    Raises:
        UserError: if it computes other logits.
    """
    config = ready.model.config
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "max_position_embeddings",
        "initializer_range",
        "rms_norm_eps",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    )
    llama_config = LlamaConfig(
        **{name: getattr(config, name) for name in same},
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
    )
    generation_config = ready.model.generation_config
    weights = llama_weights(ready.model)
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config)
    model.load_state_dict(weights, assign=True)
    # Made on the meta device, the table of rotary frequencies holds no numbers yet.
    model.model.rotary_emb = type(model.model.rotary_emb)(llama_config)
    model.generation_config = generation_config
    model.eval()
    check_logits(ready.logits, logits_of(model, ready.texts), "float32", what="the model in Llama's layout")
    return replace(ready, model=model)


def llama_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return a Baichuan2 model's weights under Llama's names, taking them out of it one by one."""
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        head = model.lm_head.effective_weight()
        for name, weight in model.state_dict().items():
            if name == "lm_head.weight":
                found[name] = head
            elif name.endswith("W_pack.weight"):
                parts = weight.chunk(3)  # rows of queries, keys, values
                names = (name.replace("W_pack", f"{letter}_proj") for letter in "qkv")
                found |= {name: part.clone() for name, part in zip(names, parts, strict=True)}
                model.get_parameter(name).data = weight.new_empty(0)
            else:
                found[name] = weight
    return found


def with_plain_head(ready: Ready) -> Ready:
    """Return a Baichuan2 ready to be written whose head is normalised in place: normalising it again changes nothing.

    Raises:
        UserError: if it computes other logits with a plain head.
    """
    head: Any = ready.model.get_output_embeddings()
    with torch.no_grad():
        head.weight.copy_(head.effective_weight())
    normalising = type(head)
    head.__class__ = nn.Linear
    try:
        found = logits_of(ready.model, ready.texts)
    finally:
        head.__class__ = normalising
    check_logits(ready.logits, found, "float32", what="the model with a plain head")
    return ready
