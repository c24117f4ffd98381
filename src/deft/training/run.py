"""One fine-tuning run from start to finish: examples and settings in, a run folder with checkpoints out."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from deft.errors import UserError
from deft.files import check_writable, write_json
from deft.fingerprint import versions
from deft.hub.find import FoundModel, find
from deft.hub.known import format_parameters
from deft.hub.manifest import check_manifest
from deft.hub.quiet import quiet_transformers
from deft.language.catalogue import worded
from deft.losses import mean_loss
from deft.model.likelihood import takes_packs
from deft.model.load import LoadedModel
from deft.model.matmul import Kernel
from deft.model.size import num_parameters, num_positions
from deft.model.start import Start, start_from
from deft.model.vocabulary import check_rows
from deft.prompt.advice import notes
from deft.prompt.cache import FEWEST_ROWS, encode_once, keeps_rows
from deft.prompt.encode import EncodeResult
from deft.prompt.formats.kinds import ChatFormat
from deft.prompt.paint import paint, painted_pieces
from deft.screen import say
from deft.training.arguments import arguments_of
from deft.training.checkpoint import explaining_disk_errors
from deft.training.config import NO_VALIDATION, TrainConfig, check_device_for, parsed_kwargs
from deft.training.kernel import chosen_kernel, with_fast_dtype
from deft.training.lock import run_held
from deft.training.order import Position
from deft.training.out_of_memory import explaining_memory_errors
from deft.training.prepare import check_whole, load_to_train, prepare_device
from deft.training.processes import agreed, first_of_machine, joined
from deft.training.progress import Progress
from deft.training.rates import with_rates
from deft.training.record import RunRecord, draw_losses
from deft.training.runfolder import (
    Resumption,
    choose_checkpoint,
    find_unfinished,
    open_run,
    run_identity,
    write_dropped,
)
from deft.training.schedule import Schedule
from deft.training.sharding import check_layer_names, check_sharding, divide_by_zero3, reads_once
from deft.training.trainer import SupervisedTrainer
from deft.training.utilisation import Utilisation
from deft.types import Example

SHOWN_CHARACTERS = 120
"""Of a painted stretch of text, at its beginning and at its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """Where a run ended: `folder` of the run, `best` checkpoint, `finished` or stopped by the user.

    `config` are its settings with nothing left open.
    """

    config: TrainConfig
    folder: Path
    best: Path
    finished: bool
    valid_loss: float | None


def train(
    config: TrainConfig,
    train_examples: Sequence[Example],
    valid_examples: Sequence[Example],
    console: Console,
    *,
    measure_first: bool = True,
    start: Start | None = None,
) -> TrainResult:
    """Fine-tune a model as `config` says and return where the result lies.

    The loss of the validation rows is also measured before the training, unless `measure_first` is switched off.
    `start` is the model that `config` names, where the caller has it already.

    Raises:
        UserError: before anything is written, where the settings or the data make the run impossible.
    """
    if not valid_examples:
        config = dataclasses.replace(config, valid=(NO_VALIDATION,))
    check_device_for(config)
    config = with_fast_dtype(config)
    with joined() as processes:
        arguments = arguments_of(config, Path("unused"))  # a wrong setting is told before a model loads
        check_sharding(config, arguments, processes.num_processes)
        unset_hf_deepspeed_config()  # or transformers divides weights as it loads them, and none could be checked
        if processes.is_main_process:
            check_writable(config.output_dir)
        else:
            console = Console(quiet=True)
        tell_idle_devices(processes, console)
        prepare_device(config)
        ready = make_ready(config, arguments, train_examples, valid_examples, console, start=start)
        config = ready.config
        with ExitStack() as held:
            folder, resumption = begin(config, ready, held, console)
            record, progress = RunRecord(folder), Progress(console)
            if processes.is_main_process:
                write_dropped(folder, ready.train_rows, ready.valid_rows)
                if ready.unfinished:
                    go_on(record, resumption, console)
                else:
                    show_first_rows(train_examples, ready, num_rows=config.show_rows, console=console)
            trainer = make_trainer(config, ready, record=record, progress=progress, position=resumption.position)
            checkpoint = str(resumption.checkpoint) if resumption.checkpoint else None
            # A resumed run has measured the loss before training already.
            trainer.args.eval_on_start = measure_first and config.validates and checkpoint is None
            with (
                quiet_transformers(),
                takes_packs(ready.loaded.model),
                progress.shown(),
                explaining_disk_errors(folder),
            ):
                with explaining_memory_errors():
                    trainer.train(resume_from_checkpoint=checkpoint)
                finished = trainer.state.global_step >= trainer.state.max_steps
                if processes.is_main_process:
                    write_json(folder / "run.json", ready.identity | {"versions": versions(), "finished": finished})
                    draw_losses(folder)
    last_step = max((row.step for row in record.rows if row.split == "valid"), default=0)
    last_valid = [row for row in record.rows if row.split == "valid" and row.step == last_step]
    return TrainResult(
        config=config,
        folder=folder,
        best=folder / "best",
        finished=finished,
        valid_loss=mean_loss(last_valid) if last_valid else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """All that a run needs before its folder is made: a model that can be trained, encoded rows, what identifies it.

    `config` are the settings with nothing left open.
    """

    config: TrainConfig
    loaded: LoadedModel
    chat_format: ChatFormat
    train_rows: EncodeResult
    valid_rows: EncodeResult | None
    identity: dict[str, Any]
    kernel: Kernel
    unfinished: Path | None


def make_ready(
    config: TrainConfig,
    arguments: TrainingArguments,
    train_examples: Sequence[Example],
    valid_examples: Sequence[Example],
    console: Console,
    *,
    start: Start | None = None,
) -> Ready:
    """Encode the rows, find the run to resume if one is, and load the model.

    Raises:
        UserError: if one of these cannot be done.
    """
    if not train_examples:
        raise UserError("there are no rows to train on", fix="give --train FILE_OR_FOLDER")
    found = find(config.model) if start is None else start.found
    start = start or start_of(config, found)
    check_whole(found)
    if config.verify == "all" and PartialState().is_main_process:
        check_manifest(found.folder)
    config = settled(config, found.folder, console)
    train_rows = encode(train_examples, start, config, split="training", console=console)
    for note in notes(start.chat_format, start.tokenizer, train_examples):
        say(console, "[yellow]note:[/] {note}", note=note, fold=True)
    valid_rows = None
    if valid_examples:
        valid_rows = encode(valid_examples, start, config, split="validation", console=console)
    identity = run_identity(config, found.folder, train_rows, valid_rows)
    unfinished = find_unfinished(config.output_dir, identity, config.allow_changed) if config.resume_training else None
    with explaining_memory_errors():
        loaded = load_to_train(config, arguments, start, train_rows)
    if valid_rows is not None:
        check_rows(loaded.model, valid_rows.sequences)
    kernel = agreed(lambda: chosen_kernel(config, loaded.model, train_rows.sequences, unfinished, console))
    return Ready(
        config=config,
        loaded=loaded,
        chat_format=start.chat_format,
        train_rows=train_rows,
        valid_rows=valid_rows,
        identity=identity | {"products": kernel},
        kernel=kernel,
        unfinished=unfinished,
    )


def start_of(config: TrainConfig, model: FoundModel) -> Start:
    """Return the tokenizer and the chat format that a run begins with.

    Raises:
        UserError: as `start_from` does.
    """
    return start_from(model, config.chat_format, template_kwargs=parsed_kwargs(config.template_kwargs))


def tell_idle_devices(processes: PartialState, console: Console) -> None:
    """Say that further GPUs do nothing, where there are any and torchrun did not start a process for each."""
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if processes.num_processes == 1 and num_devices > 1:
        how = f"torchrun --standalone --nproc_per_node {num_devices} -m deft train …"
        say(console, "[yellow]note:[/] one of {n} GPUs is used; for all of them: {how}", n=num_devices, how=how)


def settled(config: TrainConfig, model: Path, console: Console) -> TrainConfig:
    """Return the settings with those that depend on the model: its learning rates, and rows within its positions.

    Raises:
        UserError: if the last learning rate is above the first, or no model can be made from the configuration.
    """
    size = num_parameters(model)
    chosen = with_rates(config, size)
    if config.learning_rate is None:
        rates = "{first:g}" if config.lr_schedule == "constant" else "{first:g} to {last:g}"
        what = f"learning rate {rates}, the default for {{method}} training of {{size}} parameters"
        first, last = chosen.learning_rate, chosen.end_learning_rate
        say(console, what, method=config.method, size=format_parameters(size), first=first, last=last)
    return within_positions(chosen, model, console)


def within_positions(config: TrainConfig, model: Path, console: Console) -> TrainConfig:
    """Return the settings with rows no longer than the positions that the model has."""
    positions = num_positions(model)
    if positions is None or positions >= config.max_length_tokens:
        return config
    what = "rows are limited to {positions:,} tokens, the positions that the model has, and not to {asked:,}"
    say(console, what, positions=positions, asked=config.max_length_tokens, fold=True)
    return dataclasses.replace(config, max_length_tokens=positions)


def begin(config: TrainConfig, ready: Ready, held: ExitStack, console: Console) -> tuple[Path, Resumption]:
    """Return the folder of the run, whose lock is `held` from now on, and where in it to go on.

    The first process opens it for all, and all raise the error if it cannot.

    Raises:
        UserError: if the folder cannot be written, another process is training in it, or no checkpoint in it is whole.
    """
    return agreed(lambda: opened(config, ready, held, console))


def opened(config: TrainConfig, ready: Ready, held: ExitStack, console: Console) -> tuple[Path, Resumption]:
    """Lock the unfinished run and find where it goes on, or make the folder of a new run and lock that."""
    if ready.unfinished is None:
        folder = open_run(config, ready.identity, None)
        held.enter_context(run_held(folder))
        return folder, Resumption()
    held.enter_context(run_held(ready.unfinished))
    resumption = choose_checkpoint(
        ready.unfinished,
        num_rows=len(ready.train_rows.sequences),
        verify=config.verify == "all",
        tell=lambda text: say(console, "[yellow]note:[/] {text}", text=text, fold=True),
    )
    return open_run(config, ready.identity, ready.unfinished), resumption


def go_on(record: RunRecord, resumption: Resumption, console: Console) -> None:
    """Bring the record of a resumed run to where it goes on, and say where that is."""
    record.resume(resumption.checkpoint)
    place = resumption.checkpoint.name if resumption.checkpoint else worded("its start")
    say(console, "resuming {folder} at {place}", folder=record.folder, place=place)


def make_trainer(
    config: TrainConfig, ready: Ready, *, record: RunRecord, progress: Progress, position: Position
) -> SupervisedTrainer:
    """Put together what trains; a run that had to shorten its packs keeps to them when it is resumed."""
    loaded, train_rows, valid_rows = ready.loaded, ready.train_rows, ready.valid_rows
    arguments = arguments_of(config, record.folder)
    check_layer_names(loaded.model, arguments)
    kind = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else loaded.model.dtype
    progress.utilisation = Utilisation.of(loaded.model, config.method, arguments.device, kind)
    trainer = SupervisedTrainer(
        model=loaded.model,
        args=arguments,
        tokenizer=loaded.tokenizer,
        chat_format=ready.chat_format,
        train_rows=train_rows.sequences,
        valid_rows=valid_rows.sequences if valid_rows else (),
        pack_capacity_tokens=record.pack_capacity_tokens() or config.pack_capacity_tokens,
        save_steps=config.save_steps,
        keep_checkpoints=config.save_total_limit,
        schedule=Schedule(
            warmup_ratio=config.warmup_ratio,
            end_ratio=(config.end_learning_rate or 0.0) / (config.learning_rate or 1.0),
            power=config.lr_power,
            warmup_steps=config.warmup_steps,
            shape=config.lr_schedule,
        ),
        record=record,
        progress=progress,
        kernel=ready.kernel,
        position=position,
    )
    if reads_once(config, arguments):
        divide_by_zero3(loaded.model, arguments)
    return trainer


def show_first_rows(examples: Sequence[Example], ready: Ready, *, num_rows: int, console: Console) -> None:
    """Paint the first rows as they are trained, long stretches shortened, so that a wrong mask meets the eye."""
    example_of = {example.id: example for example in examples}
    for row in ready.train_rows.sequences[:num_rows]:
        pieces = [(shortened(text), trained) for text, trained in painted_pieces(row, ready.loaded.tokenizer)]
        console.print(paint(example_of[row.id], row, pieces, colour=console.color_system is not None), "\n")


def shortened(text: str) -> str:
    """Return a text whose middle is left out if it is long."""
    if len(text) <= 2 * SHOWN_CHARACTERS:
        return text
    left_out = worded("…({number} characters)…", number=len(text) - 2 * SHOWN_CHARACTERS)
    return f"{text[:SHOWN_CHARACTERS]} {left_out} {text[-SHOWN_CHARACTERS:]}"


def encode(
    examples: Sequence[Example], start: Start, config: TrainConfig, *, split: str, console: Console
) -> EncodeResult:
    """Turn examples into token sequences and say how many were cut, divided or dropped.

    Of many rows, one process of each machine makes the sequences, and the others read what it kept.

    Raises:
        UserError: if no row is left.
    """

    def encoded() -> EncodeResult:
        return encode_once(
            examples,
            start.chat_format,
            start.tokenizer,
            max_length_tokens=config.max_length_tokens,
            train_reasoning=config.train_reasoning,
        )

    result = first_of_machine(encoded, waits=keeps_rows()) if len(examples) >= FEWEST_ROWS else encoded()
    if len(result.sequences) > result.num_rows:
        what = (
            "{split!t}: {rows:,} rows make {sequences:,} sequences, because the chat template rewrites earlier turns; "
            "batches and steps count sequences"
        )
        say(console, what, split=split, rows=result.num_rows, sequences=len(result.sequences), fold=True)
    if result.num_shortened:
        say(console, "{split!t}: {rows} rows lost their oldest turns to fit", split=split, rows=result.num_shortened)
    if result.dropped:
        reasons: dict[str, int] = {}
        for row in result.dropped:
            reasons[row.reason] = reasons.get(row.reason, 0) + 1
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        say(console, "{split!t}: dropped {rows} rows ({listed})", split=split, rows=len(result.dropped), listed=listed)
    if not result.sequences:
        first = result.dropped[0]
        raise UserError(
            f"no {split} row is usable",
            got=f"{len(result.dropped)} rows dropped; the first: {first.reason}: {first.detail}",
            where=first.source or first.id,
            fix="see `deft data audit`",
        )
    return result
