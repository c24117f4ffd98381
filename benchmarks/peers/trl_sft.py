"""TRL's `SFTTrainer` with packing, in three settings.

`trl`: its packing (best-fit decreasing, the default strategy), padding-free collator and fused chunked loss, the rows
of an optimizer step packed together so that its steps are the plan's, gradient checkpointing off as in deft.
`trl_onednn`: the same, with PyTorch told, once training has begun, that fp32 products may go to oneDNN and be rounded.
`trl_defaults`: what `packing=True` gives a user who sets nothing else: all rows packed into full packs, one pack a step
in TRL's own order, gradient checkpointing on.

Rows are given as ids and labels, which TRL takes as they are; the labels hold the assistants' tokens only. Its own
masking needs a template that it knows, and it knows neither SmolLM2's nor the tiny models'.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset, concatenate_datasets
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.peers.plan import ADAM_BETAS, MAX_GRAD_NORM, NUM_WARM_UP_STEPS, WEIGHT_DECAY, Clock, Plan, start, tell
from deft.model.load import load_model
from deft.types import IGNORED_LABEL


class PlannedTrainer(SFTTrainer):
    """`SFTTrainer` that packs the rows of each step of a plan apart from those of the others."""

    plan: Plan

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
        prepared = []
        start_of_step = 0
        for step in self.plan.steps:
            part = dataset.select(range(start_of_step, start_of_step + len(step)))
            prepared.append(super()._prepare_dataset(part, *arguments, **options))
            start_of_step += len(step)
        if any(len(part) != 1 for part in prepared):
            raise SystemExit("TRL laid the rows of a step into more than one pack")
        return concatenate_datasets(prepared)


def arguments_of(plan: Plan, *, as_shipped: bool) -> SFTConfig:
    """Return TRL's settings; what is not named here is left at TRL's default."""
    return SFTConfig(
        output_dir=str(Path(plan.folder) / "trl"),
        packing=True,
        max_length=plan.pack_length_tokens,
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"lr_end": plan.end_learning_rate, "power": 1.0},
        weight_decay=WEIGHT_DECAY,
        adam_beta1=ADAM_BETAS[0],
        adam_beta2=ADAM_BETAS[1],
        max_grad_norm=MAX_GRAD_NORM,
        gradient_checkpointing=as_shipped,
        train_sampling_strategy="random" if as_shipped else "sequential",
        bf16=False,
        use_cpu=True,
        seed=plan.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


class ByOneDNN(TrainerCallback):
    """Sends fp32 products to oneDNN once transformers has set its own precision."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Set the switch."""
        torch.set_float32_matmul_precision("medium")


def main() -> None:
    """Train as the plan says and print a report."""
    plan = start(sys.argv[1:])
    name = sys.argv[2]
    as_shipped = name == "trl_defaults"
    datasets.disable_progress_bars()
    tempfile.tempdir = plan.folder
    clock = Clock(plan)
    loaded = load_model(plan.model, dtype="float32", device="cpu")
    PlannedTrainer.plan = plan
    rows = [plan.rows[number] for step in plan.steps for number in step]
    values = [{"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()} for row in rows]
    trainer = (SFTTrainer if as_shipped else PlannedTrainer)(
        model=loaded.model,
        args=arguments_of(plan, as_shipped=as_shipped),
        train_dataset=Dataset.from_list(values),
        processing_class=loaded.tokenizer,
    )
    trainer.add_callback(clock)
    if name == "trl_onednn":
        trainer.add_callback(ByOneDNN())
    given = sum(label != IGNORED_LABEL for labels in trainer.train_dataset["labels"] for label in labels)
    if given != plan.num_supervised():
        raise SystemExit(f"TRL has {given} supervised tokens, the plan {plan.num_supervised()}")
    clock.watch(trainer.model)
    trainer.train()
    checkpoint = Path(plan.folder) / name
    trainer.model.save_pretrained(checkpoint)
    loaded.tokenizer.save_pretrained(checkpoint)
    changes: dict[str, Any] = {}
    if as_shipped:  # its steps are others, so what they held is counted, not planned
        share = 1 - NUM_WARM_UP_STEPS / len(clock.ended_at)
        changes = {"tokens": clock.positions, "supervised": round(plan.num_supervised() * share)}
    # Without Triton, that is on a CPU, TRL runs its head over all positions but the last (`add_fused_lm_head`).
    tell(clock.report(name, checkpoint, head_positions=clock.positions, **changes))


if __name__ == "__main__":
    main()
