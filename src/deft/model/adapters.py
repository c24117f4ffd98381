"""Low-rank adapters (peft): a model in, the same model with a few trainable weights out."""

import warnings
from typing import Any

from transformers import PreTrainedModel


def add_lora(model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, train_embeddings: bool) -> Any:
    """Wrap `model` with LoRA adapters on every linear layer but the head, and return the `peft.PeftModel`.

    `train_embeddings` also trains and saves the embeddings and the head whole: tokens that were just added to the
    vocabulary mean nothing until they are trained.
    """
    from peft import LoraConfig, get_peft_model

    whole = (model.get_input_embeddings(), model.get_output_embeddings()) if train_embeddings else ()
    names = [name for name, module in model.named_modules() if any(module is part for part in whole)]
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        modules_to_save=names or None,
        ensure_weight_tying=bool(names) and bool(model.config.tie_word_embeddings),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers under a name that is going away
        return get_peft_model(model, settings)
