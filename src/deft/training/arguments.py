"""deft's settings as transformers takes them: a `TrainConfig` in, `TrainingArguments` out."""

import importlib.util
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from deft.errors import UserError, did_you_mean
from deft.training.config import TrainConfig
from deft.training.passed import check_no_secrets, check_passed

FILE_SETTINGS = ("deepspeed", "fsdp_config", "accelerator_config")
"""Settings of `TrainingArguments` that are the path of a file where they are text."""

ONCE = "cpu_ram_efficient_loading"
"""What accelerate calls it that one process reads the weights and sends the others their shares (FSDP)."""

TRACKER_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit"}
"""Packages of trackers that have another name than they."""


def arguments_of(config: TrainConfig, folder: Path) -> TrainingArguments:
    """Translate the settings for transformers.

    Raises:
        UserError: if `config.trainer` holds a name that `TrainingArguments` does not know, or a value it refuses.
    """
    further = further_settings(config.trainer)
    sharing = further.get("fsdp_config") or {}
    if further.get("fsdp") and isinstance(sharing, dict):
        further["fsdp_config"] = {ONCE: why_read_everywhere(config, sharing) is None} | sharing
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    on_gpu = torch.cuda.is_available()
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": config.num_epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate or 0.0,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu),
        "fp16": config.dtype == "float16" and on_gpu,
        "seed": config.seed,
        "eval_strategy": "epoch" if config.validates else "no",
        "save_strategy": "epoch",
        "save_total_limit": None,  # deft deletes checkpoints itself: two that delete leave none
        "metric_for_best_model": "loss" if config.validates else None,
        "greater_is_better": False if config.validates else None,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": ["tensorboard"],
        "use_cpu": not (on_gpu or torch.backends.mps.is_available()),
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }
    try:
        arguments = TrainingArguments(**(values | further))
    except (TypeError, ValueError, ImportError) as error:
        given = ", ".join(f"{name}: {value}" for name, value in further.items())
        raise UserError(
            "transformers refuses these training settings",
            got=str(error),
            where=f"trainer: {given}" if given else None,
            fix="see transformers.TrainingArguments for what each may be, and install the packages it asks for",
        ) from error
    if arguments.n_gpu > 1:  # transformers would copy the model to all of them in every step (DataParallel)
        arguments._n_gpu = 1
    return arguments


def why_read_everywhere(config: TrainConfig, fsdp_config: dict[str, Any] | None = None) -> str | None:
    """Return the setting for which every process that shares a model must read its weights, if there is one."""
    if config.method == "qlora":
        return "--method qlora, which brings them into 4 bits"
    if config.kernels == "liger":
        return "--kernels liger, which runs the model first"
    return None if str((fsdp_config or {}).get("version", 2)) == "2" else "version 1 of FSDP"


def further_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Return what `trainer` holds, checked; text that is JSON (from a flag, or nested in a recipe) becomes its value.

    Raises:
        UserError: for a name that `TrainingArguments` does not know, a file that is not there, or a DeepSpeed file that
            would overrule the run's own schedule or optimizer without a word.
    """
    found: dict[str, Any] = {}
    for name, text in given.items():
        value = text
        if isinstance(text, str):
            with suppress(json.JSONDecodeError):
                value = json.loads(text)
        check_no_secrets({name: value})
        check_passed(name)
        if name in FILE_SETTINGS and isinstance(value, str):
            value = read_settings_file(name, Path(value))
            check_no_secrets({name: value})  # TensorBoard's record of a run tells all that is passed on
        found[name] = value
    check_trackers(found.get("report_to"))
    deepspeed = found.get("deepspeed")
    if isinstance(deepspeed, dict) and (blocks := [name for name in ("scheduler", "optimizer") if name in deepspeed]):
        raise UserError(
            "the DeepSpeed settings bring a " + " and a ".join(blocks) + ", which would overrule the run's own",
            where="trainer: deepspeed",
            fix="take the block out: learning_rate, end_learning_rate, warmup_ratio and weight_decay are settings here",
        )
    return found


def check_trackers(named: Any) -> None:
    """Check the trackers under `report_to` before a model loads: known to transformers, their packages installed.

    Raises:
        UserError: naming the first that is not.
    """
    for name in [named] if isinstance(named, str) else named or ():
        if name in ("all", "none", "kubeflow"):  # kubeflow needs no package
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            fix = did_you_mean(str(name), {*INTEGRATION_TO_CALLBACK, "none"})
            raise UserError("unknown tracker under `trainer`: report_to", got=name, fix=fix)
        package = TRACKER_PACKAGES.get(name, name)
        if importlib.util.find_spec(package) is None:
            fix = f"pip install {package}, or choose another tracker"
            raise UserError(f"the tracker {name} is not installed", where="trainer: report_to", fix=fix)


def read_settings_file(name: str, path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file.

    Raises:
        UserError: if it is not there, or no JSON object.
    """
    fix = "give the path of a JSON file, from the folder you start in"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no such file under `trainer`: {name}", got=str(path), fix=fix) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"this file under `trainer`: {name} is not valid JSON", got=str(error), where=str(path), fix=fix
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"this file under `trainer`: {name} holds no settings", got=value, where=str(path), fix=fix)
    return value
