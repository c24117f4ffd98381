"""How a model gets ready to train: settings in; out, one with adapters, kernels and room for its tokens, checked.

Where several processes share the model, the first alone reads its weights; `sharding` sends the others their shares.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, TrainingArguments

from deft.errors import UserError
from deft.hub.find import FoundModel
from deft.model.adapters import add_lora
from deft.model.device import choose_device, choose_dtype
from deft.model.kernels import use_liger
from deft.model.load import LoadedModel, load_model
from deft.model.memory import is_out_of_memory, keep_freed_memory
from deft.model.selftest import check_packing
from deft.model.speed import checkpoint_activations, compile_layers
from deft.model.start import Start
from deft.model.vocabulary import check_rows, make_room
from deft.prompt.encode import EncodeResult
from deft.training.config import TrainConfig
from deft.training.out_of_memory import free_memory
from deft.training.sharding import deepspeed_dtype, follow_first_process, reads_once, tell_other_processes
from deft.types import TokenSequence


def prepare_device(config: TrainConfig) -> None:
    """Set what makes a process train faster: memory that stays on a CPU, TF32 for what is left in fp32 on a GPU."""
    kind = choose_device(None).type
    if kind == "cpu":
        keep_freed_memory()
    elif kind == "cuda" and config.dtype != "float32":  # whoever asks for float32 gets all of its bits
        torch.set_float32_matmul_precision("high")


def check_whole(model: FoundModel) -> None:
    """Check that a model is a whole one.

    Raises:
        UserError: if it is an adapter: a second one on top would be of no use without the first.
    """
    if model.is_adapter:
        fix = f"deft merge {model.folder} MERGED, and train that; an unfinished run goes on with --resume-training"
        raise UserError("training starts from a whole model, and this is an adapter", got=str(model.folder), fix=fix)


def load_to_train(config: TrainConfig, arguments: TrainingArguments, start: Start, rows: EncodeResult) -> LoadedModel:
    """Load the model, give it adapters, checkpointing and kernels as asked for, and check that it can run packs.

    Raises:
        UserError: if it cannot be loaded, or its rows would see each other in a pack.
    """
    load = partial(load_with_adapters, config, arguments, start, rows)
    if reads_once(config, arguments):
        loaded = load_for_all(load, rows.sequences, by_fsdp=arguments.deepspeed is None)
    else:
        on_cpu = config.method == "qlora"  # in 4 bits it may fit a device that it would not fit whole
        loaded = load(device="cpu" if on_cpu else None)
        check_packing(loaded.model, rows.sequences)
    if config.kernels == "liger":
        use_liger(loaded.model, rows.sequences)
    if config.compile:
        compile_layers(loaded.model)
    return loaded


def load_for_all(load: Callable[..., LoadedModel], rows: Sequence[TokenSequence], *, by_fsdp: bool) -> LoadedModel:
    """Load the model in the first process, which checks it, and make the same one without numbers in the others.

    It stays on the CPU until it is shared out: a device may hold no more than its share.
    """
    reads = PartialState().is_main_process
    try:
        loaded = load(device="cpu", weights=reads)
        if reads:
            check_packing_where_it_fits(loaded.model, rows)
    except UserError as error:
        if reads:
            tell_other_processes(error)
        raise
    follow_first_process(loaded.model, by_fsdp=by_fsdp)
    return loaded


def load_with_adapters(
    config: TrainConfig,
    arguments: TrainingArguments,
    start: Start,
    rows: EncodeResult,
    *,
    device: str | None,
    weights: bool = True,
) -> LoadedModel:
    """Load the model, or make it without its `weights`, with room for all tokens, adapters and checkpointing."""
    held = deepspeed_dtype(arguments) or weights_dtype(config)
    dtype = str(held).removeprefix("torch.")
    loaded = load_model(start.found, dtype=dtype, device=device, weights=weights, tokenizer=start.tokenizer)
    if start.num_added_tokens:
        make_room(loaded, seed=config.seed)
    if weights:
        check_rows(loaded.model, rows.sequences)
    if config.method != "full":
        model = with_adapters(loaded.model, config, train_embeddings=start.num_added_tokens > 0)
        loaded = dataclasses.replace(loaded, model=model)
    if config.gradient_checkpointing:
        checkpoint_activations(loaded.model, config.checkpointing_keeps)
    return loaded


def check_packing_where_it_fits(model: Any, rows: Sequence[TokenSequence]) -> None:
    """Check on the device that will train, or on the CPU if the whole model does not fit there; it stays on the CPU."""
    device = choose_device(None)
    try:
        check_packing(model.to(device), rows)
        fits = True
    except (RuntimeError, MemoryError) as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
        fits = False
    model.to("cpu")  # outside of the handler, whose error holds on to the memory
    free_memory()
    if not fits:
        check_packing(model, rows)


def weights_dtype(config: TrainConfig) -> str:
    """Return the type the weights are held in: a fully trained model keeps fp32 masters, adapters need none."""
    if config.method == "full" and config.dtype in ("auto", "bfloat16"):
        return "float32"
    if config.dtype == "auto":  # that of the device which trains, wherever the model is loaded first
        return str(choose_dtype(choose_device(None))).removeprefix("torch.")
    return config.dtype


def with_adapters(model: PreTrainedModel, config: TrainConfig, *, train_embeddings: bool) -> Any:
    """Return the model wrapped with LoRA adapters, seeded; `train_embeddings` where the vocabulary has grown."""
    torch.manual_seed(config.seed)
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    return add_lora(
        model,
        method=config.method,
        targets=config.lora_targets,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        train_embeddings=train_embeddings,
    )
