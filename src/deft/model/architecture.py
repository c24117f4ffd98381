"""Whether a configuration asks for a model that deft can build, and safely: a `config.json` in, an error out.

No code from a checkpoint ever runs: a model type is one that transformers has, or deft itself, or it is refused.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deft.errors import UserError
from deft.hub.files import WEIGHT_FILES, read_json

OWN = {"baichuan": "deft.model.baichuan2", "BaichuanTokenizer": "deft.model.baichuan2"}
"""Model types and classes of tokenizers that deft has beside transformers, and what to import for them."""
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


def check_architecture(folder: Path) -> None:
    """Check that transformers, or deft, has the model type of a config as a causal language model.

    Raises:
        UserError: if it has not; a checkpoint that brings its own code is told apart.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{folder / 'config.json'} names no model_type", fix="copy or download that file again")
    check_settings(config, folder / "config.json")
    enter_own(model_type)
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise remote_code(folder, needed_class(config))
        what = f"this transformers does not know the model type in {folder / 'config.json'}"
        raise UserError(what, got=model_type, fix="upgrade transformers, or choose another model: deft models")
    if CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        what = f"the model in {folder} is not a causal language model"
        raise UserError(what, got=model_type, fix="deft trains models that predict the next token")


def check_settings(config: dict[str, Any], file: Path) -> None:
    """Check that a configuration asks for a model that can be, for its own weights, and for attention of deft's.

    Raises:
        UserError: naming the setting.
    """
    named = config.get("transformers_weights")
    if named is not None and named not in {*WEIGHT_FILES, *(f"{name}.index.json" for name in WEIGHT_FILES)}:
        fix = "take it out of the file, and call the weights model.safetensors"
        raise UserError("the model names weights in another place", got=named, where=str(file), fix=fix)
    for part in objects_in(config):
        for name, value in part.items():
            if name.endswith(SHARES) and isinstance(value, int | float) and not 0 <= value <= 1:
                fix = "it must be between 0 and 1: copy or download that file again"
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


def enter_own(name: Any) -> None:
    """Make transformers know a model type or a class of tokenizers, where it is one that deft brings."""
    if isinstance(name, str) and name in OWN:
        importlib.import_module(OWN[name])


def needed_class(config: dict[str, Any]) -> str:
    """Return the class in a checkpoint's own code that a config would have run: a name, or a list of slow and fast."""
    auto_map = config.get("auto_map") or {}
    needed = auto_map.get("AutoModelForCausalLM") or next(iter(auto_map.values()), "a class of its own")
    return ", ".join(name for name in needed if name) if isinstance(needed, list) else str(needed)


def remote_code(folder: Path, name: str) -> UserError:
    """Return the error for a checkpoint that only loads by running its own code."""
    fix = "deft never runs code from a checkpoint: use a model whose architecture transformers has"
    return UserError(f"the checkpoint in {folder} needs code of its own", got=name, fix=fix)
