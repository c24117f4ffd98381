"""Baichuan2-7B in Llama's layout, for tools that know no Baichuan.

In: a RoPE model ready to be written. Out: the same function as a `LlamaForCausalLM`: queries, keys and values in
matrices of their own, the rows of the head at length 1. The 13B cannot be written so: Llama has no ALiBi.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import LlamaConfig, LlamaForCausalLM

from deft.errors import UserError, did_you_mean
from deft.hub.files import ADAPTER_CONFIG, read_json
from deft.hub.find import base_of, find_folder
from deft.model.baichuan2.configuration import MODEL_TYPE, Baichuan2Config
from deft.publish.merge import Ready, check_logits, logits_of

if TYPE_CHECKING:
    import torch

LAYOUTS = ("llama", "plain_head")
"""Layouts for other tools that a checkpoint can be written in: Llama's, or its own with a head already normalised."""


def check_layout(folder: Path, to: str, *, keep_adapter: bool = False) -> None:
    """Check by configs alone, before anything is loaded, that a checkpoint can be written in another layout.

    Raises:
        UserError: if the layout is unknown, or the checkpoint, or the base model of its adapter, does not fit into it.
    """

    if to not in LAYOUTS:
        raise UserError("unknown layout to export to", got=to, fix=did_you_mean(to, LAYOUTS))
    if keep_adapter:
        fix = "leave --keep-adapter out: the adapter is then merged"
        raise UserError("an adapter keeps its base model's layout", got=f"--to {to} --keep-adapter", fix=fix)
    if (folder / ADAPTER_CONFIG).is_file():
        folder = find_folder(base_of(folder), weights=False)
    values = read_json(folder / "config.json")
    if values.get("model_type") != MODEL_TYPE:
        fix = f"leave --to {to} out: other models are exported in their own layout"
        what = {"llama": "only Baichuan2-7B is written in Llama's layout"}
        raise UserError(what.get(to, "only Baichuan2 has a head to normalise"), got=values.get("model_type"), fix=fix)
    if to == "llama" and Baichuan2Config.from_dict(values).position_embedding == "alibi":
        raise UserError(
            "this Baichuan2 has no equivalent in Llama's layout: it biases attention by distance (ALiBi), Llama cannot",
            got=str(folder),
            fix=f"leave --to {to} out, and serve it with an engine that knows Baichuan: vLLM up to 0.23, or LMDeploy",
        )


def as_llama(ready: Ready) -> Ready:
    """Return a model ready to be written in Llama's layout; `ready.model` loses its weights to it.

    Raises:
        UserError: if it computes other logits.
    """
    import torch

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


def llama_weights(model: Any) -> dict[str, "torch.Tensor"]:
    """Return a Baichuan2 model's weights under Llama's names, taking them out of it one by one."""
    import torch

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
