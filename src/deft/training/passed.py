"""The names of `transformers.TrainingArguments`: which deft decides itself, which do nothing here, which are passed on.

One table for `trainer:` in recipes, `--trainer.NAME` and the flags of the old commands. A name that changed nothing
would be a setting that was made and not kept, and one that deft decides as well would overrule the run's own record.
"""

import re
from collections.abc import Mapping
from typing import Any

from deft.errors import UserError, did_you_mean

OWNED: dict[str, str] = {
    "output_dir": "output_dir",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "pack_length_tokens",
    "auto_find_batch_size": "pack_length_tokens (packs are halved where memory runs out)",
    "num_train_epochs": "num_epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_schedule",
    "lr_scheduler_kwargs": "lr_schedule, lr_power and end_learning_rate",
    "warmup_steps": "warmup_steps or warmup_ratio",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "gradient_accumulation_steps": "gradient_accumulation",
    "max_grad_norm": "max_grad_norm",
    "bf16": "dtype",
    "fp16": "dtype",
    "bf16_full_eval": "dtype",
    "fp16_full_eval": "dtype",
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "checkpointing_keeps",
    "gradient_checkpointing": "gradient_checkpointing",
    "gradient_checkpointing_kwargs": "checkpointing_keeps",
    "torch_compile": "compile",
    "torch_compile_backend": "compile",
    "torch_compile_mode": "compile",
    "use_liger_kernel": "kernels",
    "liger_kernel_config": "kernels",
    "save_strategy": "save_steps (a checkpoint is saved after every epoch as well)",
    "save_steps": "save_steps",
    "save_total_limit": "save_total_limit",
    "eval_strategy": "valid (measured after every epoch)",
    "eval_steps": "valid (measured after every epoch)",
    "eval_delay": "valid (measured after every epoch)",
    "eval_on_start": "valid (measured before training as well)",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "resume_training",
    "ignore_data_skip": "resume_training",
    "restore_callback_states_from_checkpoint": "resume_training",
    "push_to_hub": "deft export --push",
    "hub_token": "the environment variable HF_TOKEN, and deft export --push",
    "hub_private_repo": "deft export --push",
    "hub_model_id": "deft export --push",
    "hub_strategy": "deft export --push",
    "hub_always_push": "deft export --push",
    "hub_revision": "deft export --push",
    "use_cpu": "the environment variable CUDA_VISIBLE_DEVICES, empty",
    "deepspeed_config": "deepspeed",
}
"""What deft decides itself, and the setting to use instead."""

WITHOUT_EFFECT: dict[str, str] = {
    "load_best_model_at_end": "`best` in the folder of the run is the best checkpoint",
    "metric_for_best_model": "`best` is the checkpoint with the lowest validation loss",
    "greater_is_better": "`best` is the checkpoint with the lowest validation loss",
    "disable_tqdm": "progress is deft's own",
    "label_smoothing_factor": "the loss is deft's own",
    "prediction_loss_only": "validation is deft's own",
    "eval_do_concat_batches": "validation is deft's own",
    "eval_use_gather_object": "validation is deft's own",
    "eval_accumulation_steps": "validation is deft's own",
    "include_for_metrics": "validation is deft's own",
    "batch_eval_metrics": "validation is deft's own",
    "label_names": "rows are deft's own",
    "remove_unused_columns": "rows are deft's own",
    "length_column_name": "rows are deft's own",
    "train_sampling_strategy": "the order of rows is a function of seed, epoch and step",
    "dataloader_drop_last": "rows are already in memory, and none is left out",
    "dataloader_num_workers": "rows are already in memory",
    "dataloader_pin_memory": "rows are already in memory",
    "dataloader_persistent_workers": "rows are already in memory",
    "dataloader_prefetch_factor": "rows are already in memory",
    "dataloader_multiprocessing_context": "rows are already in memory",
    "dataloader_in_order": "rows are already in memory",
    "average_tokens_across_devices": "losses are weighted by tokens over all devices anyway",
    "logging_strategy": "steps are logged, each or every logging_steps of them",
    "logging_nan_inf_filter": "a loss that is no number stops the run",
    "include_num_input_tokens_seen": "tokens are counted and logged anyway",
    "skip_memory_metrics": "no memory is traced; see --dry-run",
    "use_cache": "training needs no cache",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint anyway",
    "save_on_each_node": "the first process writes for all",
    "do_train": "that is what the command is for",
    "do_eval": "rows under valid are measured after every epoch",
    "do_predict": "nothing is predicted while training",
    "local_rank": "torchrun tells each process its rank",
}
"""What would change nothing, and why."""

PASSED = frozenset(
    """
    optim optim_args optim_target_modules adam_epsilon tf32 neftune_noise_alpha torch_empty_cache_steps logging_steps
    logging_first_step log_on_each_node log_level log_level_replica report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id save_only_model accelerator_config parallelism_config
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp
    fsdp_config deepspeed debug full_determinism
    """.split()  # noqa: SIM905
)
"""What transformers is told as it is."""

SECRET_NAME = re.compile(
    r".*(token|secrets?|passw(or)?ds?|passphrase|(^|_)(pwd|auth)|(api|access|private)_?keys?|credentials?"
    r"|authorization|bearer)(_?(key|value|id|text|string))?",
    re.IGNORECASE,
)
"""A name that ends so, its words joined by `_`, is that of a secret."""
SECRET_VALUE = re.compile(
    r"\w://[^/\s:@]*:[^/\s@]+@"  # a password in a URL
    r"|\b(hf_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abp]-|AKIA|AIza)[\w-]{12,}"
    r"|\bBearer\s+\S|-----BEGIN [A-Z ]*PRIVATE KEY"
)
"""Text that can only be a secret, whatever its name: a URL with a password, and keys that say what they are."""


def check_passed(name: str) -> None:
    """Check that a setting under `trainer` is one that is passed on.

    Raises:
        UserError: naming deft's own setting for it, why it would change nothing, or the nearest name.
    """
    where = f"trainer: {name}"
    if name in OWNED:
        raise UserError("deft decides this itself", got=name, where=where, fix=f"use {OWNED[name]}")
    if name in WITHOUT_EFFECT:
        raise UserError(
            "this setting would have no effect", got=name, where=where, fix=f"take it out: {WITHOUT_EFFECT[name]}"
        )
    if name not in PASSED:
        raise UserError("unknown setting under `trainer`", got=name, fix=did_you_mean(name, PASSED | OWNED.keys()))


def check_no_secrets(values: Any, place: str = "trainer") -> None:
    """Refuse settings that hold a secret, at any depth: they are written into the folder of the run.

    Raises:
        UserError: naming the setting, never its value.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            where = f"{place}: {name}"
            if names_secret(str(name)) and value and not isinstance(value, bool):
                raise secret_found(where)
            check_no_secrets(value, where)
    elif isinstance(values, list | tuple):
        for value in values:
            check_no_secrets(value, place)
    elif isinstance(values, str):
        assigned = (part.partition("=") for part in re.split(r"[\s,;&?]+", values))  # NAME=value
        if SECRET_VALUE.search(values) or any(value and names_secret(name) for name, _, value in assigned):
            raise secret_found(place)


def names_secret(name: str) -> bool:
    """Say whether a name is that of a secret."""
    return SECRET_NAME.fullmatch(re.sub(r"\W", "_", name)) is not None


def secret_found(where: str) -> UserError:
    """Return the refusal of a setting that holds a secret."""
    fix = "take it out, and set the environment variable that its library reads (HF_TOKEN, WANDB_API_KEY, …)"
    return UserError("secrets do not belong in settings, which are saved", where=where, fix=fix)
