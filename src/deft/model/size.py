"""How large a model is, and how far it reaches, as its configuration tells: no weights are read."""

from pathlib import Path
from typing import Any

from deft.model.checkpoint_files import check_architecture, read_json

POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""What configurations call the number of positions."""
SCALED_ALREADY = ("llama3", "longrope", "su")
"""Kinds of scaled rotary positions whose configurations give the number that is reached with the scaling."""


def num_parameters(folder: Path) -> int:
    """Return the number of a model's weights, a tied embedding counted once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    check_architecture(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters())


def num_positions(folder: Path) -> int | None:
    """Return how many tokens of one row a model was made for; None where its configuration sets no limit (ALiBi).

    Learned positions (GPT-2) end there. Rotary ones go on, but the model has never seen them; scaled ones, those with a
    factor in `rope_scaling`, reach as many times further, unless their kind has the factor in the number already.
    """
    whole = read_json(folder / "config.json")
    of_text: Any = whole.get("text_config")
    config = of_text if isinstance(of_text, dict) else whole
    found = next((config[name] for name in POSITION_NAMES if isinstance(config.get(name), int)), None)
    scaling: Any = config.get("rope_scaling") or config.get("rope_parameters")
    if found is None or not isinstance(scaling, dict) or rope_kind(scaling) in SCALED_ALREADY:
        return found
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings", found)
    if isinstance(factor, int | float) and isinstance(original, int):
        return max(found, int(factor * original))
    return found


def rope_kind(scaling: dict[str, Any]) -> Any:
    """Return the kind of scaling that a configuration names, in the new way or in the old."""
    return scaling.get("rope_type", scaling.get("type"))
