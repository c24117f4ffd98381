"""How large a model is, and how far it reaches, as its configuration tells: no weights are read."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.errors import UserError, first_line
from deft.hub.files import read_json
from deft.hub.quiet import quiet_transformers
from deft.model.architecture import check_architecture

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""What configurations call the number of positions."""
SCALED_ALREADY = ("llama3", "longrope", "su")
"""Kinds of scaled rotary positions whose configurations give the number that is reached with the scaling."""


def read_model_config(folder: Path) -> "PreTrainedConfig":
    """Return a model's configuration as transformers has it; no code of the checkpoint runs.

    Raises:
        UserError: if transformers cannot read it.
    """
    from transformers import AutoConfig

    check_architecture(folder)
    with quiet_transformers(), explaining_config_errors(folder):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def num_parameters(folder: Path) -> int:
    """Return the number of a model's weights, a tied embedding counted once.

    Raises:
        UserError: if no model can be made from its configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = read_model_config(folder)
    with torch.device("meta"), quiet_transformers(), explaining_config_errors(folder):
        model = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in model.parameters())


@contextmanager
def explaining_config_errors(folder: Path) -> Iterator[None]:
    """Turn what transformers and torch raise over a configuration, which is of every kind, into an error.

    Raises:
        UserError: in place of it.
    """
    try:
        yield
    except Exception as error:
        fix = "copy or download its config.json again"
        got = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the configuration in {folder} cannot be used", got=got, fix=fix) from error


def num_positions(folder: Path) -> int | None:
    """Return how many tokens of one row a model was made for; None where no configuration sets a limit (ALiBi).

    Learned positions (GPT-2) end there. Rotary ones go on, but the model has never seen them; scaled ones, those with a
    factor in `rope_scaling`, reach as many times further, unless their kind has the factor in the number already.
    """
    if not (folder / "config.json").is_file():  # an adapter
        return None
    whole = read_json(folder / "config.json")
    of_text: Any = whole.get("text_config")
    config = of_text if isinstance(of_text, dict) else whole
    found = next((config[name] for name in POSITION_NAMES if isinstance(config.get(name), int)), None)
    scaling: Any = config.get("rope_scaling") or config.get("rope_parameters")
    if found is None or not isinstance(scaling, dict) or rope_kind(scaling) in SCALED_ALREADY:
        return found
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings", found)
    if isinstance(factor, int | float) and math.isfinite(factor) and isinstance(original, int):
        return max(found, int(factor * original))
    return found


def reach(folder: Path, max_length_tokens: int) -> int:
    """Return how long a row may be on a model: `max_length_tokens`, or less where its positions end before."""
    return min(max_length_tokens, num_positions(folder) or max_length_tokens)


def rope_kind(scaling: dict[str, Any]) -> Any:
    """Return the kind of scaling that a configuration names, in the new way or in the old."""
    return scaling.get("rope_type", scaling.get("type"))
