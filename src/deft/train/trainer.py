"""The training loop: transformers' Trainer, with deft's batches, loss, validation and checkpoints in place of its own.

What stays transformers' is what it does well: the optimizer and its schedule, devices, clipping, restoring a state.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from deft.errors import UserError
from deft.model.likelihood import PackedRows, supervised_nll
from deft.prompt.format import ChatFormat
from deft.prompt.store import save_chat_format
from deft.rundir import remove
from deft.train.checkpoint import mark_best, prune_checkpoints
from deft.train.order import BatchLoader, RowOrder, lay_in_packs
from deft.train.progress import Progress
from deft.train.record import RowLoss, RunRecord, loss_by_ability, mean_loss
from deft.types import TokenSequence


class SupervisedTrainer(Trainer):
    """Trains on packs of whole rows; the head runs on supervised positions only; every row's loss is recorded.

    The gradient of a step is that of the mean loss over all its supervised tokens, however its rows fall into packs
    and accumulation batches.
    """

    model: Any
    processing_class: Any
    """Both are always given; transformers declares them optional."""

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
        record: RunRecord,
        progress: Progress,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=train_rows,
            eval_dataset=valid_rows or None,
            callbacks=[StopWhenAsked(progress)],
        )
        self.remove_callback(PrinterCallback)  # the progress display says it better
        self.chat_format = chat_format
        self.train_rows = train_rows
        self.valid_rows = valid_rows
        self.pack_capacity_tokens = pack_capacity_tokens
        self.record = record
        self.progress = progress
        self.ability_of = {row.id: row.ability for row in train_rows}

    # -- batches and loss ---------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> BatchLoader:
        """Return batches of rows in the order that (seed, epoch, step) gives."""
        order = RowOrder(len(self.train_rows), self.args.per_device_train_batch_size, self.args.seed)
        return BatchLoader(self.train_rows, order, self.pack_capacity_tokens)

    def _get_num_items_in_batch(self, batch_samples: list[list[PackedRows]], device: torch.device) -> int:
        """Count the supervised tokens of one optimizer step."""
        return sum(pack.num_supervised for pack in itertools.chain.from_iterable(batch_samples))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward over the packs of one batch; return its share of the step's mean loss."""
        model.train()
        share = torch.zeros((), device=self.args.device)
        for pack in inputs:
            with self.compute_loss_context_manager():
                nll = supervised_nll(model, pack)
            loss = nll.total / num_items_in_batch
            self.check_finite(loss, pack)
            self.accelerator.backward(loss)
            share += loss.detach()
            epoch = int(self.state.epoch or 0) + 1
            self.record.rows += row_losses(pack, nll.per_row(pack).tolist(), "train", epoch, self.ability_of)
            self.progress.trained(pack)
        return share

    def check_finite(self, loss: torch.Tensor, pack: PackedRows) -> None:
        """Stop at a loss that is not a number, before it reaches the weights."""
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}",
                got="rows " + ", ".join(pack.row_ids[:8]),
                fix="lower learning_rate; look at these rows with `deft data show FILE --id ID`",
            )

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: transformers' estimate assumes its own batches; progress counts tokens instead."""
        return 0

    # -- validation ---------------------------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the loss of every validation row; log it per ability, in nats per supervised token."""
        rows: list[RowLoss] = []
        abilities = {row.id: row.ability for row in self.valid_rows}
        epoch = round(self.state.epoch or 0)
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for pack in lay_in_packs(self.valid_rows, self.pack_capacity_tokens):
                sums = supervised_nll(self.model, pack).per_row(pack).tolist()
                rows += row_losses(pack, sums, "valid", epoch, abilities)
        self.record.rows += rows
        metrics = {"eval_loss": mean_loss(rows)}
        metrics |= {f"eval_loss_{ability}": loss for ability, loss in loss_by_ability(rows).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write a line to `metrics.jsonl` and the progress display, and hand it to the trackers."""
        super().log(logs, start_time)
        values = {"step": self.state.global_step, **logs}
        if "loss" in logs:
            values |= self.progress.speeds()
        self.record.log(values)
        self.progress.logged(values)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint under a temporary name and rename it when it is whole; then delete what is too many."""
        run = self.record.folder
        final = run / f"checkpoint-{self.state.global_step}"
        if final.exists():
            return
        staging = run / ".partial"
        self.args.output_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)
            staged = staging / final.name
            if self.state.best_global_step:
                self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
            self.state.save_to_json(str(staged / "trainer_state.json"))
            self.record.save_rows(staged)
            staged.rename(final)
        finally:
            self.args.output_dir = str(run)
            remove(staging)
        self.record.save_rows(run)
        best_step = self.state.best_global_step or self.state.global_step
        mark_best(run, best_step)
        prune_checkpoints(run, keep=self.keep_checkpoints, best_step=best_step)

    @property
    def keep_checkpoints(self) -> int:
        """How many checkpoints stay, besides the best."""
        return self.args.save_total_limit or 1

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save weights (safetensors), tokenizer and chat format; no pickled arguments beside them."""
        folder = Path(output_dir or self.record.folder)
        folder.mkdir(parents=True, exist_ok=True)
        is_adapter = hasattr(self.model, "peft_config")
        whole_modules: dict[str, Any] = (
            {"save_embedding_layers": False} if is_adapter else {}
        )  # they are in the adapter
        self.model.save_pretrained(folder, state_dict=state_dict, **whole_modules)
        self.processing_class.save_pretrained(folder)
        save_chat_format(self.chat_format, folder)


class StopWhenAsked(TrainerCallback):
    """Feeds the progress display, and ends the run after the current step, with a checkpoint, on the first Ctrl-C."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the display at the step the run stands at."""
        self.progress.begin(step=state.global_step, num_steps=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advance the display; save and stop where the user asked for it, at the end of an epoch after validation."""
        self.progress.stepped(state.global_step)
        if self.progress.stop_asked:
            control.should_save |= not ends_epoch(state)
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave validation out where the user stopped within an epoch: the resumed run does it at its end."""
        if self.progress.stop_asked:
            control.should_evaluate &= ends_epoch(state)
            control.should_save = ends_epoch(state)


def ends_epoch(state: TrainerState) -> bool:
    """Say whether the last step was the last of an epoch."""
    return float(state.epoch or 0).is_integer()


def row_losses(
    pack: PackedRows, sums: Sequence[float], split: str, epoch: int, abilities: dict[str, str | None]
) -> list[RowLoss]:
    """Return the losses of a pack's rows; `sums` are their NLL in nats."""
    counts = torch.bincount(pack.row_of, minlength=len(pack.row_ids)).tolist()
    return [
        RowLoss(id=row, split=split, epoch=epoch, ability=abilities[row], nll=nll, num_supervised=count)
        for row, nll, count in zip(pack.row_ids, sums, counts, strict=True)
    ]
