"""What one device holds while it trains: weights, gradients, optimizer states, and the fullest moment of a step.

In: a model's configuration, a method, the traces of its steps. Out: bytes, by what they are for. Weights are never
loaded. What several devices share is divided by arithmetic.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from deft.estimate.trace import NOTHING, Moment, StepTrace
from deft.hub.quiet import quiet_transformers
from deft.model.adapters import ALL_LINEAR, add_lora
from deft.model.cost import Method, ModelSize
from deft.model.speed import checkpointing_settings

Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp2"]
SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)
BY_DEEPSPEED = ("zero1", "zero2", "zero3")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Peak memory of one device for one way to train, at the fullest moment of a step; the parts sum to the peak."""

    method: Method
    gradient_checkpointing: bool
    sharding: Sharding
    num_devices: int
    weights_bytes: int
    gathered_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    attention_bytes: int
    head_bytes: int
    weight_copies_bytes: int
    working_bytes: int
    library_bytes: int
    saved_per_layer_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        parts = [f.name for f in fields(self) if f.name.endswith("_bytes") and f.name != "saved_per_layer_bytes"]
        return sum(getattr(self, name) for name in parts)


# --- a model without numbers ----------------------------------------------------------------------------------------


def meta_model(
    config: PreTrainedConfig,
    *,
    method: Method,
    dtype: torch.dtype,
    lora_rank: int = 16,
    lora_targets: Sequence[str] = ALL_LINEAR,
    lora_dropout: float = 0.0,
    train_embeddings: bool = False,
    gradient_checkpointing: bool = False,
    checkpointing_keeps: str = "nothing",
) -> Any:
    """Return the model that `train` would make, on the meta device: shapes and types, no numbers.

    A quantised base has the shapes of a plain one here; `model_size` counts its bytes.
    """
    with torch.device("meta"), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # names that leave with transformers 6
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.train()
        if gradient_checkpointing:  # transformers itself sets this up, when training begins
            model.gradient_checkpointing_enable(
                checkpointing_settings(checkpointing_keeps) | {"preserve_rng_state": False}
            )
        if method == "full":
            return model
        if gradient_checkpointing:
            model.enable_input_require_grads()
        return add_lora(
            model,
            method="lora" if method == "qlora" else method,
            targets=lora_targets,
            rank=lora_rank,
            alpha=1.0,  # no number is computed
            dropout=lora_dropout,
            train_embeddings=train_embeddings,
        )


# --- what each device holds -----------------------------------------------------------------------------------------


def divide(
    size: ModelSize,
    traces: Sequence[StepTrace],
    *,
    method: Method,
    gradient_checkpointing: bool,
    sharding: Sharding = "none",
    num_devices: int = 1,
    compute_bytes: int = 4,
    library_bytes: int = 0,
    saving_bytes: int = 0,
) -> MemoryEstimate:
    """Return one device's memory at the fullest moment of a step.

    ZeRO-1 divides the optimizer's states by the devices, ZeRO-2 the gradients too, ZeRO-3 and FSDP2 the weights too
    (Rajbhandari et al. 2020, section 5); these bring one layer together at a time, FSDP2 the next one as well. A
    layer's gradients are whole before they are divided. Without sharding, DDP copies all gradients into its buckets.
    `compute_bytes` is the size of the number products are computed in: a 4-bit layer is widened to it while it is used.
    `saving_bytes` is what libraries take in place of `library_bytes` when a checkpoint is saved: then no activations
    are there, but where a step takes little it is the fullest moment.
    """
    n = num_devices if sharding != "none" else 1
    splits_gradients, splits_weights = (sharding in ("zero2", "zero3", "fsdp2"), sharding in ("zero3", "fsdp2"))
    weights = size.weights_bytes // n if splits_weights else size.weights_bytes
    gathered = size.layer_bytes * (2 if sharding == "fsdp2" else 1) if splits_weights and n > 1 else 0
    if sharding == "none" and num_devices > 1:
        gathered = size.gradients_bytes
    whole_gradients = size.layer_trainable_bytes if splits_gradients and n > 1 else 0
    widened = size.largest_matrix_parameters * compute_bytes if method == "qlora" else 0

    def held(moment: Moment) -> Moment:
        gradients = moment.gradients // n + whole_gradients if splits_gradients else moment.gradients
        copies = min(moment.weight_copies, gathered) if splits_weights and n > 1 else moment.weight_copies
        return moment._replace(gradients=gradients, weight_copies=copies)

    peak = max((held(moment) for trace in traces for moment in trace.moments), key=sum, default=NOTHING)
    if sum(peak) + widened + library_bytes < saving_bytes:
        peak, widened, library_bytes = NOTHING, 0, saving_bytes
    return MemoryEstimate(
        method=method,
        gradient_checkpointing=gradient_checkpointing,
        sharding=sharding,
        num_devices=num_devices,
        weights_bytes=weights,
        gathered_bytes=gathered,
        gradients_bytes=peak.gradients,
        optimizer_bytes=size.optimizer_bytes // n,
        activations_bytes=peak.activations,
        attention_bytes=peak.attention,
        head_bytes=peak.head,
        weight_copies_bytes=peak.weight_copies,
        working_bytes=peak.working + widened,
        library_bytes=library_bytes,
        saved_per_layer_bytes=max((trace.saved_bytes for trace in traces), default=0) // size.num_layers,
    )
