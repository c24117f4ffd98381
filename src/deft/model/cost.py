"""What a model's weights take and its passes cost: a model in; bytes and floating-point operations out."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from deft.model.likelihood import base_model
from deft.model.speed import decoder_layers

Method = Literal["full", "lora", "rslora", "dora", "qlora"]

ADAM_BYTES_PER_PARAMETER = 8
"""Two moments in fp32, where the weights are fp32; AdamW keeps them in the weights' own type otherwise."""
NF4_BYTES_PER_PARAMETER = 4 / 8 + 1 / 64 + 4 / (64 * 256)
"""4-bit codes, an 8-bit scale for each 64 of them, and an fp32 scale for each 256 scales (QLoRA, 2023, section 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Bytes of a model's tensors, each shared one counted once, and its sizes for arithmetic.

    `matrix_parameters`: weights of all linear layers but the head (`adapter_parameters` of an adapter's);
    `layer_bytes`: the largest part that a sharded model brings together at a time, a layer or the embeddings, and
    `layer_trainable_bytes` how much of it has gradients; `largest_matrix_parameters`: of one linear layer.
    """

    num_parameters: int
    num_trainable: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    matrix_parameters: int
    adapter_parameters: int
    head_parameters: int
    largest_matrix_parameters: int
    quantised_bytes_saved: int
    layer_bytes: int
    layer_trainable_bytes: int
    num_layers: int


def model_size(model: Any, method: Method) -> ModelSize:
    """Count a model's parameters and bytes; `qlora` holds the linear layers of the base, but not the head, in NF4."""
    base = base_model(model)
    head = base.get_output_embeddings()
    weights = list(model.parameters())
    trainable = [weight for weight in weights if weight.requires_grad]
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    adapters = [m.weight for name, m in linears.items() if "lora_" in name]
    matrices = [m.weight for name, m in linears.items() if "lora_" not in name]
    saved = 0
    if method == "qlora":
        saved = sum(w.numel() * w.element_size() - round(w.numel() * NF4_BYTES_PER_PARAMETER) for w in matrices)
    layers = decoder_layers(base)
    parts = [list(layer.parameters()) for layer in layers] + [[base.get_input_embeddings().weight], [head.weight]]
    largest = max(parts, key=num_bytes)
    return ModelSize(
        num_parameters=sum(weight.numel() for weight in weights),
        num_trainable=sum(weight.numel() for weight in trainable),
        weights_bytes=num_bytes(weights) + num_bytes(model.buffers()) - saved,
        gradients_bytes=num_bytes(trainable),
        optimizer_bytes=sum(w.numel() * ADAM_BYTES_PER_PARAMETER * w.element_size() // 4 for w in trainable),
        matrix_parameters=sum(weight.numel() for weight in matrices),
        adapter_parameters=sum(weight.numel() for weight in adapters),
        head_parameters=head.weight.numel(),
        largest_matrix_parameters=max((weight.numel() for weight in matrices), default=0),
        quantised_bytes_saved=saved,
        layer_bytes=num_bytes(largest),
        layer_trainable_bytes=num_bytes(weight for weight in largest if weight.requires_grad),
        num_layers=len(layers),
    )


def num_bytes(tensors: Any) -> int:
    """Return the bytes of tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def flop_of(
    size: ModelSize,
    *,
    num_tokens: int,
    num_supervised: int,
    sum_squared_lengths: int,
    attention_width: int,
    method: Method,
    recomputes: bool,
) -> float:
    """Return the floating-point operations of matrix products, two for a multiplication and an addition.

    A weight takes part in one product forward, one backward for what came in, and one for its own gradient if it is
    trained; checkpointing adds a forward pass. Attention's two products see half of the square of a row; its backward
    pass has five of them (Dao 2023, section 3.1).
    """
    base = (3 if method == "full" else 2) + recomputes
    layers = num_tokens * (base * size.matrix_parameters + (3 + recomputes) * size.adapter_parameters)
    head = num_supervised * (3 if method == "full" else 2) * size.head_parameters
    forward = size.num_layers * sum_squared_lengths * attention_width
    return 2.0 * layers + 2.0 * head + forward * 2.0 * (1 + 2.5 + recomputes)


def attention_width(config: PreTrainedConfig) -> int:
    """Return the width of all of an attention layer's heads together."""
    heads = config.num_attention_heads
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
