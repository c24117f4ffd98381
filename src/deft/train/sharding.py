"""FSDP2 where accelerate leaves it out: on CPUs it copies the model to every process instead, without a word.

In: settings, and an accelerator that was just made. Out: one that shards, so that tests on CPUs run what GPUs run.
"""

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments

from deft.errors import UserError


def check_sharding(arguments: TrainingArguments, num_processes: int) -> None:
    """Check that there are processes to share the weights, if the settings ask for FSDP.

    Raises:
        UserError: if there is one alone; transformers says so only when the model is loaded.
    """
    if arguments.fsdp_plugin_args is not None and num_processes == 1:
        raise UserError(
            "FSDP shares a model's weights among processes, and there is one alone",
            where="trainer: fsdp",
            fix="torchrun --standalone --nproc_per_node N -m deft train …, or leave fsdp out",
        )


def shard_on_cpu(accelerator: Accelerator, arguments: TrainingArguments) -> None:
    """Have an accelerator of several CPU processes shard by FSDP2, if the settings ask for FSDP.

    Raises:
        UserError: if they ask for its first version.
    """
    settings, state = arguments.fsdp_plugin_args, accelerator.state
    if settings is None or state.distributed_type != DistributedType.MULTI_CPU:
        return
    if settings["fsdp_version"] != 2:
        fix = "take version out of fsdp_config, or make it 2"
        raise UserError(
            "CPUs share weights by FSDP2 only", got=settings["fsdp_version"], where="trainer: fsdp", fix=fix
        )
    plugin = FullyShardedDataParallelPlugin(**settings)
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def keep_losses_exact(accelerator: Accelerator) -> None:
    """Have FSDP2 hand losses out as they are, and add gradients up in fp32; accelerate rounds both to 16 bits."""
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if isinstance(policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)
