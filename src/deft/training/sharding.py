"""A model that several processes share by FSDP2 or DeepSpeed: read by one of them, and exact.

In: settings, a model that was just loaded, an accelerator that was just made. Out: the model shared out weight by
weight, and an accelerator that shards by FSDP2 on CPUs as well, where it would copy the model to every process without
a word, and tests could not run what GPUs run.
"""

import os
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast_object_list
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments

from deft.errors import UserError, did_you_mean
from deft.training.arguments import ONCE, why_read_everywhere
from deft.training.config import TrainConfig


def check_sharding(config: TrainConfig, arguments: TrainingArguments, num_processes: int) -> None:
    """Check that there are processes to share the weights, if the settings ask for FSDP, and that each can begin.

    Raises:
        UserError: if there is one alone, which transformers says only when the model is loaded; or if one is to read
            the weights for all where each needs them first.
    """
    if arguments.deepspeed is not None and "RANK" not in os.environ:
        fix = "torchrun --standalone --nproc_per_node N -m deft train …, with N = 1 for one process"
        raise UserError("DeepSpeed needs its processes started by torchrun", where="trainer: deepspeed", fix=fix)
    if arguments.fsdp_plugin_args is None:
        return
    fsdp_config: Any = arguments.fsdp_config
    reason = why_read_everywhere(config, fsdp_config)
    if reason and reads_once(config, arguments):
        raise UserError(
            f"every process must read the weights, because of {reason}",
            got=f"{ONCE}: true",
            where="trainer: fsdp_config",
            fix=f"take {ONCE} out",
        )
    if num_processes == 1:
        raise UserError(
            "FSDP shards a model's weights across processes, and there is only one",
            where="trainer: fsdp",
            fix="torchrun --standalone --nproc_per_node N -m deft train …, or leave fsdp out",
        )


def check_layer_names(model: torch.nn.Module, arguments: TrainingArguments) -> None:
    """Check that the model has the layers that the settings want shared one by one (FSDP).

    Raises:
        UserError: naming the first that it does not have.
    """
    settings: Any = arguments.fsdp_config
    known = {type(module).__name__ for module in model.modules()}
    for name in (arguments.fsdp_plugin_args and settings.get("transformer_layer_cls_to_wrap")) or ():
        if name not in known:
            what = f"{type(model).__name__} has no layers of that name"
            where = "trainer: fsdp_config: transformer_layer_cls_to_wrap"
            raise UserError(what, got=name, where=where, fix=did_you_mean(name, known))


def reads_once(config: TrainConfig, arguments: TrainingArguments) -> bool:
    """Say whether the first process alone reads the weights, and sends the others their shares."""
    if arguments.fsdp_plugin_args is not None:
        return bool(arguments.fsdp_plugin_args[ONCE])
    return arguments.deepspeed is not None and why_read_everywhere(config) is None


def follow_first_process(model: torch.nn.Module, *, by_fsdp: bool) -> None:
    """Hold every weight as the first process does, which read it, so that it can send the numbers.

    A checkpoint may keep a few weights in fp32 whatever format was asked for, and both libraries send bytes without
    asking. Buffers that a checkpoint holds are sent here: DeepSpeed leaves them out.

    Raises:
        UserError: that of the first process, if it has one to tell; or if there are such buffers, and accelerate's
            FSDP2 is to send them: it knows weights only.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    mine = model.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in mine.items() if name not in weights}
    if buffers and by_fsdp:
        what = f"FSDP2 cannot send what {type(model).__name__} keeps beside its weights to the other processes"
        fix = f'"{ONCE}": false in the fsdp_config has each of them read the model'
        raise UserError(what, got=", ".join(list(buffers)[:3]), where="trainer: fsdp", fix=fix)
    formats: Any = {name: tensor.dtype for name, tensor in mine.items()}
    formats, numbers = broadcast_object_list([formats, {name: one.cpu() for name, one in buffers.items()}])
    if isinstance(formats, UserError):
        raise formats
    for name, tensor in mine.items():
        if tensor.dtype != formats[name]:
            tensor.data = torch.empty_like(tensor, dtype=formats[name])
        if name in numbers:
            tensor.data.copy_(numbers[name])


def tell_other_processes(error: UserError) -> None:
    """Tell the processes that wait in `follow_first_process` why there is nothing to follow."""
    broadcast_object_list([error, None])


def deepspeed_dtype(arguments: TrainingArguments) -> torch.dtype | None:
    """Return the 16-bit format that DeepSpeed would bring a model into, before it copies the weights in fp32."""
    if arguments.deepspeed is None:
        return None
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None


def divide_by_zero3(model: torch.nn.Module, arguments: TrainingArguments) -> None:
    """Send every process its part of each weight, one weight at a time, if the settings ask for DeepSpeed's ZeRO-3.

    By itself DeepSpeed would bring the whole model to every device before it divides it.
    """
    if arguments.deepspeed is None or not arguments.hf_deepspeed_config.is_zero3():
        return
    import deepspeed

    kind = deepspeed_dtype(arguments)
    for weight in model.parameters():
        if kind is not None and weight.dtype != kind:  # adapters; DeepSpeed takes no model of two formats
            weight.data = weight.data.to(kind)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(arguments.device)
    deepspeed.zero.Init(module=model, config_dict_or_path=arguments.hf_deepspeed_config.config)


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
            "on CPUs, only FSDP2 shards weights", got=settings["fsdp_version"], where="trainer: fsdp", fix=fix
        )
    if settings.get("cpu_offload"):
        fix = "take cpu_offload out of fsdp_config"
        raise UserError("on CPUs there is nowhere to offload weights to", where="trainer: fsdp_config", fix=fix)
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
