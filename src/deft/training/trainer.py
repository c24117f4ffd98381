"""The training loop: transformers' Trainer, with deft's batches, loss, validation and checkpoints in place of its own.

What stays transformers' is what it does well: the optimizer and its schedule, devices, clipping, restoring a state.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from deft.losses import grouped, mean_loss
from deft.model.likelihood import PackedRows, SupervisedNLL
from deft.model.matmul import Kernel, products_by
from deft.model.memory import is_out_of_memory
from deft.prompt.formats.kinds import ChatFormat
from deft.screen import say
from deft.training.divergence import DivergenceWatch
from deft.training.order import Batch, BatchLoader, Position, RowOrder, Share
from deft.training.out_of_memory import free_memory, shorter_capacity
from deft.training.processes import any_of_them
from deft.training.progress import Progress
from deft.training.record import RecordedRow, RunRecord
from deft.training.saving import CheckpointingTrainer
from deft.training.schedule import Schedule
from deft.training.sharding import keep_losses_exact, shard_on_cpu
from deft.types import TokenSequence


class SupervisedTrainer(CheckpointingTrainer):
    """Trains on packs of whole rows; the head runs on supervised positions only; every row's loss is recorded.

    The gradient of a step is that of the mean loss over all its supervised tokens, however its rows fall into packs
    and accumulation batches.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        tokenizer: Any,
        chat_format: ChatFormat,
        train_rows: Sequence[TokenSequence],
        valid_rows: Sequence[TokenSequence],
        pack_capacity_tokens: int,
        save_steps: int | None,
        keep_checkpoints: int,
        schedule: Schedule,
        record: RunRecord,
        progress: Progress,
        kernel: Kernel = "plain",
        position: Position | None = None,
    ) -> None:
        train_rows, valid_rows = numbered(train_rows), numbered(valid_rows)
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=train_rows,
            eval_dataset=valid_rows or None,
            callbacks=[Steps(progress, save_steps)],
        )
        self.remove_callback(PrinterCallback)  # the progress display says it better
        self.chat_format = chat_format
        self.train_rows = train_rows
        self.valid_rows = valid_rows
        self.pack_capacity_tokens = pack_capacity_tokens
        self.keep_checkpoints = keep_checkpoints
        self.schedule = schedule
        self.record = record
        self.progress = progress
        self.kernel = kernel
        self.began_at = self.position = position or Position()
        embeddings: Any = model.get_input_embeddings()
        self.watch = DivergenceWatch(embeddings.weight.shape[0])
        self.met_rows: list[RecordedRow] = []
        self.step_batches: list[Batch] = []
        self.pack_now: PackedRows

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator; asked to shard, it does so on CPUs as well, and exactly."""
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self.accelerator, self.args)
        keep_losses_exact(self.accelerator)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    # -- batches and loss ---------------------------------------------------------------------------------------------

    @property
    def share(self) -> Share:
        """Which of the processes that train together this one is."""
        return Share(rank=self.args.process_index, world_size=self.args.world_size)

    def get_train_dataloader(self) -> BatchLoader:
        """Return this process's batches of rows, in the order that (seed, epoch, step) gives."""
        return BatchLoader(self.train_rows, self.row_order(), self.share)

    def row_order(self) -> RowOrder:
        """Return the order in which all processes together meet the rows."""
        return RowOrder(
            len(self.train_rows),
            self.args.per_device_train_batch_size * self.share.world_size,
            self.args.seed,
            accumulation=self.args.gradient_accumulation_steps,
            position=self.began_at,
        )

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
        """Return transformers' numbers of epochs and steps; in a resumed run, those taken and those still to be taken.

        They add up by rows, not by steps, because a resumed run may put other numbers of rows in a step.
        """
        values = super().set_initial_training_values(args, dataloader)
        order, begun = self.row_order(), self.began_at
        if not begun.step:
            return values
        left_in_epoch = order.steps_left
        if args.max_steps > 0:
            further = max(args.max_steps - begun.step - left_in_epoch, 0)
            num_epochs = begun.epoch + 1 + math.ceil(further / order.steps_per_epoch)
            num_steps = args.max_steps
        else:
            num_epochs = math.ceil(args.num_train_epochs)
            num_steps = begun.step + left_in_epoch + (num_epochs - begun.epoch - 1) * order.steps_per_epoch
        return (num_epochs, *values[1:-1], num_steps)

    def _init_training_state(self, *args: Any, **options: Any) -> tuple[int, int]:
        """Restore the state; return the epoch to go on with, and how many of its batches are to be skipped."""
        found = super()._init_training_state(*args, **options)
        if not self.began_at.step:
            return found
        order = self.row_order()
        return self.began_at.epoch, (order.steps_per_epoch - order.steps_left) * order.accumulation

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """Begin an optimizer step: note its batches and add up their loss weights, over all processes."""
        self.step_batches = batch_samples
        epoch = int(self.state.epoch or 0)
        met_before = self.position.num_met if self.position.epoch == epoch else 0
        met = met_before + sum(len(batch.rows) for batch in batch_samples)
        self.position = Position(step=self.state.global_step + 1, epoch=epoch, num_met=met)
        return sum(batch.total_weight for batch in batch_samples)

    def training_step(  # type: ignore[override]  # transformers' batches are dicts
        self, model: Any, inputs: Batch, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run forward and backward over the packs of one batch; return this process's part of the step's loss.

        Where memory runs out, the packs are made shorter and the step's gradient is begun again: the same rows, the
        same weights of their losses.
        """
        model.train()
        batches = [inputs]
        while True:
            try:
                done = [self.run_batch(model, batch, num_items_in_batch) for batch in batches]
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.shorten_packs()  # outside of the handler, whose error holds on to the memory
            model.zero_grad()
            batches = self.step_batches[: 1 + next(n for n, one in enumerate(self.step_batches) if one is inputs)]
        part, rows, packs = done[-1]  # those before it were counted when they ran first
        self.met_rows += rows
        for pack in packs:
            self.progress.trained(pack)
        return part

    def run_batch(
        self, model: Any, batch: Batch, total_weight: Any
    ) -> tuple[torch.Tensor, list[RecordedRow], list[PackedRows]]:
        """Add the gradient of a batch; return its part of the step's loss, its rows' losses, and its packs.

        Gradients are averaged over the processes afterwards, so each loss is multiplied by their number: what comes
        out is the gradient of the mean over all supervised tokens of the step, wherever they were, each by its weight.
        """
        scale = self.share.world_size / total_weight
        part = torch.zeros((), device=self.args.device)
        rows: list[RecordedRow] = []
        packs: list[PackedRows] = []
        syncs_at_last = self.accelerator.gradient_state.sync_gradients
        passes = batch.passes(self.pack_capacity_tokens)
        try:
            for number, (pack, counts) in enumerate(passes, start=1):
                is_last = number == len(passes)
                self.accelerator.gradient_state._set_sync_gradients(syncs_at_last and is_last)
                with nullcontext() if is_last else self.accelerator.no_sync(model=model):
                    nll = self.run_pack(model, pack, scale * counts)
                if counts:
                    part += nll.total.detach() * scale
                    epoch, step = int(self.state.epoch or 0) + 1, self.state.global_step + 1
                    rows += row_losses(pack, nll.per_row(pack).tolist(), split="train", epoch=epoch, step=step)
                    packs.append(pack)
        finally:
            self.accelerator.gradient_state._set_sync_gradients(syncs_at_last)
        return part, rows, packs

    def run_pack(self, model: Any, pack: PackedRows, weight: float) -> SupervisedNLL:
        """Add the gradient of a pack's loss times `weight`; stop before a loss that is not sane reaches it."""
        self.pack_now = pack
        with products_by(self.kernel):
            with self.compute_loss_context_manager():
                nll = SupervisedNLL(*model(packed=pack))
            self.watch.check_loss(
                nll.total.item() / pack.total_weight,
                num_tokens=pack.num_supervised,
                step=self.state.global_step + 1,
                row_ids=pack.row_ids,
            )
            self.accelerator.backward(nll.total * weight, **self.backward_options)
        return nll

    def shorten_packs(self) -> None:
        """Halve the packs after one did not fit; the log says so, and a resumed run keeps to it.

        Raises:
            UserError: if that cannot help.
        """
        is_alone = self.share.world_size == 1 and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
        self.pack_capacity_tokens = shorter_capacity(self.pack_now, alone=is_alone)
        free_memory()
        self.record.log({"step": self.state.global_step, "pack_capacity_tokens": self.pack_capacity_tokens})
        say(
            self.progress.console,
            "[yellow]out of memory[/] with a pack of {num_tokens:,} tokens: from now on packs have at most {most:,}; "
            "the rows of a step and its gradient stay the same",
            num_tokens=self.pack_now.num_tokens,
            most=self.pack_capacity_tokens,
            fold=True,
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the norm of the step's gradient; stop before one that is not a number reaches the weights."""
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and self.accelerator.scaler is None:  # fp16's scaler leaves such steps out itself
            ids = [row.id for batch in self.step_batches for row in batch.rows]
            self.watch.check_gradient(float(norm), step=self.state.global_step + 1, row_ids=ids)
        return norm

    @property
    def backward_options(self) -> dict[str, Any]:
        """Keep DeepSpeed from dividing by the accumulation steps: the loss is weighted by tokens already."""
        return {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the learning rate what the run's `Schedule` says.

        transformers' own needs an attribute that DeepSpeed's optimizer lacks, and refuses a rate that stays constant.
        """
        if self.lr_scheduler is None:
            factor = partial(self.schedule.factor, num_steps=num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]  # made by now
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: transformers' estimate assumes its own batches; progress counts tokens instead."""
        return 0

    # -- validation ---------------------------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the loss of every validation row; log it per ability, in nats per supervised token."""
        while True:
            try:
                mine = self.valid_losses()
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.shorten_packs()
        self.gather_met_rows()
        rows = gather_object(mine)
        self.record.rows += rows
        metrics = {"eval_loss": mean_loss(rows)}
        metrics |= {f"eval_loss_{ability}": mean_loss(group) for ability, group in grouped(rows).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def valid_losses(self) -> list[RecordedRow]:
        """Return the losses of this process's share of the validation rows."""
        mine: list[RecordedRow] = []
        epoch = math.ceil(round(self.state.epoch or 0, 9))
        self.model_wrapped.eval()
        with torch.no_grad(), products_by(self.kernel), self.compute_loss_context_manager():
            for pack, counts in Batch(rows=tuple(self.valid_rows), share=self.share).passes(self.pack_capacity_tokens):
                self.pack_now = pack
                nll = SupervisedNLL(*self.model_wrapped(packed=pack))
                if counts:
                    sums, step = nll.per_row(pack).tolist(), self.state.global_step
                    mine += row_losses(pack, sums, split="valid", epoch=epoch, step=step)
        return mine

    def gather_met_rows(self) -> None:
        """Bring the training losses that all processes met since the last time into the record."""
        self.record.rows += gather_object(self.met_rows)
        self.met_rows = []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line to `metrics.jsonl` and the progress display, and hand it to the trackers."""
        super().log(logs, start_time)
        values = {"step": self.state.global_step, **logs}
        if "loss" in logs:
            values |= self.progress.speeds()
        if self.is_world_process_zero():
            self.record.log(values)
        self.progress.logged(values)


class Steps(TrainerCallback):
    """What happens around steps: the display advances, checkpoints fall due, and the first Ctrl-C ends the run.

    Whichever process was asked to stop, all stop after the same step.

    At the end of an epoch nothing is saved here: the validation comes first, and the checkpoint after it.
    """

    def __init__(self, progress: Progress, save_steps: int | None) -> None:
        self.progress = progress
        self.save_steps = save_steps
        self.stops = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the display at the step the run stands at."""
        self.progress.begin(step=state.global_step, num_steps=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advance the display; save where a checkpoint is due, and stop where the user asked for it."""
        self.progress.stepped(state.global_step)
        is_due = self.save_steps is not None and state.global_step % self.save_steps == 0
        self.stops = any_of_them(self.progress.stop_asked, args.device)
        if self.stops:
            control.should_training_stop = True
        if (is_due or self.stops) and not ends_epoch(state):
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave validation out where the user stopped within an epoch: the resumed run does it at its end."""
        if self.stops:
            control.should_evaluate &= ends_epoch(state)
            control.should_save = ends_epoch(state)


def ends_epoch(state: TrainerState) -> bool:
    """Say whether the last step was the last of an epoch."""
    return float(state.epoch or 0).is_integer()


def row_losses(pack: PackedRows, sums: Sequence[float], *, split: str, epoch: int, step: int) -> list[RecordedRow]:
    """Return the losses of a pack's rows; `sums` are their NLL in nats."""
    counts = torch.bincount(pack.row_of, minlength=len(pack.rows)).tolist()
    return [
        RecordedRow(
            id=row.id,
            split=split,
            epoch=epoch,
            ability=row.ability,
            nll=nll,
            num_supervised=count,
            step=step,
            row=row.place,
            weight=None if row.weights is None else row.total_weight,
            part=row.part,
        )
        for row, nll, count in zip(pack.rows, sums, counts, strict=True)
    ]


def numbered(rows: Sequence[TokenSequence]) -> tuple[TokenSequence, ...]:
    """Return rows that know their places among each other."""
    return tuple(replace(row, place=place) for place, row in enumerate(rows))
