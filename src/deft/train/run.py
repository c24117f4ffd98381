"""One fine-tuning run from start to finish: examples and settings in, a run folder with checkpoints out."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, TrainingArguments

from deft.errors import UserError, did_you_mean
from deft.model.adapters import add_lora
from deft.model.attention import rows_apart
from deft.model.load import LoadedModel, find_folder, load_model, load_tokenizer, quiet_transformers
from deft.prompt.format import ChatFormat, EncodeResult, FormatKind, chat_format_for, encode_examples
from deft.prompt.role_tokens import add_role_tokens
from deft.prompt.store import load_chat_format
from deft.rundir import check_writable, fingerprint, new_run_folder, remove, versions, write_json, write_text
from deft.train.checkpoint import checkpoints, disk_faults_told, link_to, remove_leftovers
from deft.train.config import TrainConfig
from deft.train.figure import draw_losses
from deft.train.progress import Progress
from deft.train.record import RunRecord, mean_loss
from deft.train.trainer import SupervisedTrainer
from deft.types import Example, TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_PART_OF_A_RUN = ("resume_training", "output_dir")
"""Settings that may differ when a run is resumed."""
FILE_SETTINGS = ("deepspeed", "fsdp_config", "accelerator_config")
"""Settings of `TrainingArguments` that are the path of a file where they are text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """Where a run ended: `folder` of the run, `best` checkpoint, `finished` or stopped by the user."""

    folder: Path
    best: Path
    finished: bool
    valid_loss: float | None


def train(
    config: TrainConfig, train_examples: Sequence[Example], valid_examples: Sequence[Example], console: Console
) -> TrainResult:
    """Fine-tune a model as `config` says and return where the result lies.

    Raises:
        UserError: before anything is written, where the settings or the data make the run impossible.
    """
    arguments_of(config, Path("unused"))  # a wrong setting is told before a model loads
    check_writable(config.output_dir)
    if not train_examples:
        raise UserError("there are no rows to train on", fix="give --train FILE_OR_FOLDER")
    source, tokenizer = find_folder(config.model), load_tokenizer(config.model)
    chat_format, num_added_tokens = find_chat_format(tokenizer, source, config.chat_format)
    train_rows = encode(train_examples, chat_format, config, "training", console)
    valid_rows = encode(valid_examples, chat_format, config, "validation", console) if valid_examples else None
    identity = run_identity(config, source, train_rows, valid_rows)
    unfinished = find_unfinished(config.output_dir, identity) if config.resume_training else None
    loaded = dataclasses.replace(load_model(config.model, dtype=weights_dtype(config)), tokenizer=tokenizer)
    make_room(loaded)
    folder = open_run(config, identity, unfinished)
    checkpoint = next(reversed(checkpoints(folder)), None)
    write_dropped(folder, train_rows, valid_rows)
    if config.method == "lora":
        model = with_adapters(loaded.model, config, train_embeddings=num_added_tokens > 0)
        loaded = dataclasses.replace(loaded, model=model)

    record, progress = RunRecord(folder), Progress(console)
    trainer = SupervisedTrainer(
        model=loaded.model,
        args=arguments_of(config, folder),
        tokenizer=loaded.tokenizer,
        chat_format=chat_format,
        train_rows=train_rows.sequences,
        valid_rows=valid_rows.sequences if valid_rows else (),
        pack_capacity_tokens=config.pack_capacity_tokens,
        record=record,
        progress=progress,
    )
    if unfinished:
        record.resume(checkpoint)
        console.print(f"resuming {folder} at {checkpoint.name if checkpoint else 'its start'}", highlight=False)
    with quiet_transformers(), rows_apart(loaded.model), progress.shown(), disk_faults_told(folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finished = trainer.state.global_step >= trainer.state.max_steps
        write_json(folder / "run.json", identity | {"versions": versions(), "finished": finished})
        draw_losses(folder)
    last_valid = [row for row in record.rows if row.split == "valid" and row.epoch == config.num_epochs]
    return TrainResult(
        folder=folder,
        best=folder / "best",
        finished=finished,
        valid_loss=mean_loss(last_valid) if last_valid else None,
    )


def weights_dtype(config: TrainConfig) -> str:
    """Return the type the weights are held in: a fully trained model keeps fp32 masters, adapters need none."""
    if config.method == "full" and config.dtype in ("auto", "bfloat16"):
        return "float32"
    return config.dtype


def prepare_chat_format(loaded: LoadedModel, kind: FormatKind) -> tuple[ChatFormat, int]:
    """Return the format the checkpoint carries, or the one asked for, and how many tokens it added to the model."""
    found = find_chat_format(loaded.tokenizer, loaded.path, kind)
    make_room(loaded)
    return found


def find_chat_format(tokenizer: "PreTrainedTokenizerBase", folder: Path, kind: FormatKind) -> tuple[ChatFormat, int]:
    """Return the format stored in a model's folder, or the one asked for, and how many tokens it needed.

    A tokenizer without a chat template gets the role tokens; `make_room` gives the model rows for them.
    """
    stored = load_chat_format(folder, tokenizer) if kind == "auto" else None
    if stored is not None:
        return stored, 0
    num_added = 0
    if kind == "role_tokens" or (kind == "auto" and not tokenizer.chat_template):
        num_added = add_role_tokens(tokenizer)
    return chat_format_for(tokenizer, kind=kind), num_added


def make_room(loaded: LoadedModel) -> None:
    """Give a model an embedding for every token that its tokenizer has."""
    if len(loaded.tokenizer) > loaded.model.get_input_embeddings().weight.shape[0]:
        loaded.model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=False)


def encode(
    examples: Sequence[Example], chat_format: ChatFormat, config: TrainConfig, split: str, console: Console
) -> EncodeResult:
    """Turn examples into token sequences and say how many were cut or dropped.

    Raises:
        UserError: if no row is left.
    """
    result = encode_examples(examples, chat_format, max_length_tokens=config.max_length_tokens)
    if result.num_shortened:
        console.print(f"{split}: {result.num_shortened} rows lost their oldest turns to fit", highlight=False)
    if result.dropped:
        reasons: dict[str, int] = {}
        for row in result.dropped:
            reasons[row.reason] = reasons.get(row.reason, 0) + 1
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        console.print(f"{split}: dropped {len(result.dropped)} rows ({listed})", highlight=False)
    if not result.sequences:
        first = result.dropped[0]
        raise UserError(
            f"no {split} row can be used",
            got=f"{len(result.dropped)} rows dropped; the first: {first.reason}: {first.detail}",
            where=first.source or first.id,
            fix="see `deft data audit`",
        )
    return result


def with_adapters(model: PreTrainedModel, config: TrainConfig, *, train_embeddings: bool) -> Any:
    """Return the model wrapped with LoRA adapters, seeded; `train_embeddings` where the vocabulary has grown."""
    torch.manual_seed(config.seed)
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    return add_lora(
        model,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        train_embeddings=train_embeddings,
    )


def run_identity(
    config: TrainConfig, model: Path, train_rows: EncodeResult, valid_rows: EncodeResult | None
) -> dict[str, Any]:
    """Return what decides a run's result: its settings, fingerprints of its rows and of the weights in `model`."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_PART_OF_A_RUN}
    weights = sorted(model.glob("*.safetensors")) + sorted(model.glob("*.bin"))
    return {
        "settings": json.loads(json.dumps(settings, default=str)),
        "train_rows": rows_fingerprint(train_rows.sequences),
        "valid_rows": rows_fingerprint(valid_rows.sequences if valid_rows else ()),
        "num_train_rows": len(train_rows.sequences),
        "num_valid_rows": len(valid_rows.sequences) if valid_rows else 0,
        "model": fingerprint([f"{path.name}:{path.stat().st_size}" for path in weights]),
    }


def rows_fingerprint(rows: Sequence[TokenSequence]) -> str:
    """Return a fingerprint of token ids and labels: it changes with the data, the tokenizer, the format, the limit."""
    parts = [part for row in rows for part in (row.input_ids.tobytes(), row.labels.tobytes())]
    return fingerprint(parts)


def open_run(config: TrainConfig, identity: dict[str, Any], unfinished: Path | None) -> Path:
    """Make a new run folder, or make the `unfinished` one ready to go on; return it.

    Raises:
        UserError: if the folder cannot be written; a new one is then removed again.
    """
    folder = unfinished or new_run_folder(config.output_dir)
    try:
        if unfinished:
            remove_leftovers(folder)
        else:
            write_json(folder / "run.json", identity | {"versions": versions(), "finished": False})
            write_recipe(folder, config)
        link_to(config.output_dir / "latest", folder.name)
    except BaseException:
        if not unfinished:
            remove(folder)
        raise
    return folder


def find_unfinished(runs: Path, identity: dict[str, Any]) -> Path:
    """Return the newest unfinished run.

    Raises:
        UserError: if there is none, or it was started with other settings or data.
    """
    unfinished = []
    for file in sorted(runs.glob("*/run.json"), reverse=True):
        stored = read_identity_of_run(file)
        if not stored["finished"] and not file.parent.is_symlink():
            unfinished.append((file.parent, stored))
    if not unfinished:
        raise UserError("there is no unfinished run to resume", where=str(runs), fix="start without --resume-training")
    folder, stored = unfinished[0]
    changed = [name for name in identity if name != "settings" and stored.get(name) != identity[name]]
    changed += [
        f"{name} (was {stored['settings'].get(name)}, is {value})"
        for name, value in identity["settings"].items()
        if stored["settings"].get(name) != value
    ]
    if changed:
        raise UserError(
            "the unfinished run was started differently, so continuing it would mix two runs",
            where=str(folder),
            got="changed: " + ", ".join(changed),
            fix="use its settings and data again (recipe.yaml in its folder), or start without --resume-training",
        )
    return folder


def read_identity_of_run(file: Path) -> dict[str, Any]:
    """Return what a `run.json` holds.

    Raises:
        UserError: if it is damaged, or is no record of a run.
    """
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(stored["finished"], bool) and isinstance(stored["settings"], dict):
            return stored
        problem = "`finished` or `settings` is of the wrong type"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    fix = "move that run's folder out of the way"
    raise UserError("the record of a run is damaged", got=problem, where=str(file), fix=fix)


def write_recipe(folder: Path, config: TrainConfig) -> None:
    """Write the resolved settings as a recipe that repeats the run: `deft train runs/…/recipe.yaml`."""
    import yaml

    values = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    write_text(folder / "recipe.yaml", yaml.safe_dump({"train": values}, allow_unicode=True, sort_keys=False))


def write_dropped(folder: Path, *results: EncodeResult | None) -> None:
    """Write every row that was left out, with its reason, to `dropped.jsonl`."""
    rows = [row for result in results if result for row in result.dropped]
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in rows]
    write_text(folder / "dropped.jsonl", "".join(line + "\n" for line in lines))


def arguments_of(config: TrainConfig, folder: Path) -> TrainingArguments:
    """Translate the settings for transformers.

    Raises:
        UserError: if `config.trainer` holds a name that `TrainingArguments` does not know, or a value it refuses.
    """
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name, value in config.trainer.items():
        if name not in known:
            raise UserError("unknown setting under `trainer`", got=name, fix=did_you_mean(name, known))
        if name in FILE_SETTINGS and isinstance(value, str) and not Path(value).is_file():
            fix = "give the path of a JSON file, from the folder you start in"
            raise UserError(f"there is no such file under `trainer`: {name}", got=value, fix=fix)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    on_gpu = torch.cuda.is_available()
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": config.num_epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"lr_end": config.end_learning_rate, "power": config.lr_power},
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu),
        "fp16": config.dtype == "float16" and on_gpu,
        "activation_checkpointing": config.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if config.gradient_checkpointing else None,
        "seed": config.seed,
        "eval_strategy": "epoch" if config.valid else "no",
        "save_strategy": "epoch" if config.save_steps is None else "steps",
        "save_steps": config.save_steps or 500,
        "save_total_limit": config.save_total_limit,
        "metric_for_best_model": "loss" if config.valid else None,
        "greater_is_better": False if config.valid else None,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": ["tensorboard"],
        "use_cpu": not (on_gpu or torch.backends.mps.is_available()),
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    try:
        return TrainingArguments(**(values | config.trainer))
    except (TypeError, ValueError, ImportError) as error:
        given = ", ".join(f"{name}: {value}" for name, value in config.trainer.items())
        raise UserError(
            "transformers refuses these training settings",
            got=str(error),
            where=f"trainer: {given}" if given else None,
            fix="see transformers.TrainingArguments for what each may be, and install the packages it asks for",
        ) from error
