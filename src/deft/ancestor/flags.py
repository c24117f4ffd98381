"""The ancestor's `train_sft.py` flags, and the `TrainingArguments` names it accepted, as a `TrainConfig`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deft.ancestor.parser import Parser
from deft.errors import UserError, did_you_mean
from deft.training.config import NO_VALIDATION, TrainConfig
from deft.training.passed import OWNED, PASSED, WITHOUT_EFFECT, check_no_secrets, check_passed

RENAMED = {
    "num_train_epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "max_seq_len": "max_length_tokens",
    "model_name_or_path": "model",
    "torch_dtype": "dtype",
    "lr_scheduler_power": "lr_power",
    "lr_scheduler_type": "lr_schedule",
}
"""Names the ancestor or transformers used, and deft's."""

ANCESTOR_DEFAULTS: dict[str, Any] = {
    "num_epochs": 15,
    "save_total_limit": 15,
    "gradient_accumulation": 1,
    "learning_rate": 1e-5,
    "end_learning_rate": 1e-6,
}
"""Where the ancestor's defaults differ from deft's."""

SHORT_NAMES = {"linear": "polynomial", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def config_from_flags(arguments: Sequence[str]) -> TrainConfig:
    """Translate the ancestor's flags.

    A flag that is neither the ancestor's, nor deft's, nor a field of `transformers.TrainingArguments`, is refused with
    the nearest name.

    Raises:
        UserError: for a flag or value that cannot be used.
    """
    parser = Parser(prog="train_sft.py", allow_abbrev=False)
    parser.add_argument("--train_dir", type=Path, required=True, help="folder of *.json files to train on")
    parser.add_argument("--valid_dir", type=Path, help="folder of *.json files to validate on after each epoch")
    parser.add_argument("--model_name_or_path", required=True, help="alias, local folder or hub id")
    parser.add_argument("--resume_training", action="store_true", help="continue the unfinished run of output_dir")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory, a third more work")
    parser.add_argument("--use_data_cache", action="store_true", help="accepted; encoded rows are always cached")
    known, rest = parser.parse_known_args(list(arguments))
    values: dict[str, Any] = dict(ANCESTOR_DEFAULTS)
    values |= {
        "train": (known.train_dir,),
        "valid": (known.valid_dir or NO_VALIDATION,),
        "model": known.model_name_or_path,
        "resume_training": known.resume_training,
        "gradient_checkpointing": known.gradient_checkpointing,
    }
    trainer: dict[str, Any] = {}
    for flag, value in pairs(rest):
        name = RENAMED.get(flag, flag)
        if name in DEFT_TYPES:
            values[name] = converted(name, value)
        elif name in PASSED or name in OWNED or name in WITHOUT_EFFECT:
            check_passed(name)
            trainer[name] = parsed(name, value)
        else:
            raise UserError("unknown flag", got=f"--{flag}", fix=did_you_mean(flag, {*DEFT_TYPES, *RENAMED}))
    check_no_secrets(trainer)
    return TrainConfig(**values, trainer=trainer)


def pairs(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Split `--name value`, `--name=value` and bare `--name` (true) into names and values."""
    found: list[tuple[str, str]] = []
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            found.append((name.replace("-", "_"), value if equals else "true"))
        elif found and found[-1][1] == "true":
            found[-1] = (found[-1][0], token)
        else:
            fix = "put --NAME before it; a value with spaces needs quotes"
            raise UserError("this argument belongs to no flag", got=token, fix=fix)
    return found


RATES = ("learning_rate", "end_learning_rate")
DEFT_TYPES: dict[str, type] = {
    field.name: type(field.default) if field.default is not None else float if field.name in RATES else int
    for field in dataclasses.fields(TrainConfig)
    if isinstance(field.default, bool | int | float | str | Path) or field.default is None
}
"""deft's own settings that one value can set, with the type of that value."""


def converted(name: str, value: str) -> Any:
    """Return a flag's text as the type its setting has."""
    kind = DEFT_TYPES[name]
    if kind is bool:
        found = parsed(name, value)
        if not isinstance(found, bool):
            raise UserError(f"--{name} takes true or false", got=value, fix=f"--{name}, or leave it out")
        return found
    if name in ("dtype", "lr_schedule"):
        return SHORT_NAMES.get(value, value)
    try:
        return kind(float(value)) if kind is int and float(value).is_integer() else kind(value)
    except ValueError as error:
        wanted = "whole number" if kind is int else "number"
        raise UserError(f"--{name} wants a {kind.__name__}", got=value, fix=f"give one {wanted}") from error


def parsed(name: str, value: str) -> Any:
    """Return a flag's text as YAML reads it.

    Raises:
        UserError: if it is no YAML.
    """
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--{name} cannot be read", got=value, fix="put the text in quotes of its own") from error
