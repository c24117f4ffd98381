"""Checkpoints as a trainer writes and restores them: whole or absent, and nothing damaged goes by without a word.

What stays transformers' is the state of optimizer, schedule and random numbers, in all its ways of sharing a model.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer

from deft.errors import UserError, first_line
from deft.files import remove, sync, sync_folder, write_json
from deft.hub.manifest import write_manifest
from deft.model.memory import is_out_of_memory
from deft.model.stops import name_stops
from deft.prompt.formats.kinds import ChatFormat
from deft.prompt.store import save_chat_format
from deft.training.checkpoint import POSITION_FILE, mark_best, prune_checkpoints
from deft.training.order import Position
from deft.training.record import RunRecord


class CheckpointingTrainer(Trainer):
    """Saves checkpoints under temporary names, with deft's own files in them, and deletes those that are too many."""

    model: Any
    processing_class: Any
    """Both are always given; transformers declares them optional."""
    chat_format: ChatFormat
    keep_checkpoints: int
    record: RunRecord
    position: Position

    def gather_met_rows(self) -> None:
        """Bring the training losses that all processes met since the last time into the record."""
        raise NotImplementedError

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint under a temporary name and rename it when it is whole; then delete what is too many."""
        self.gather_met_rows()
        run = Path(str(self.args.output_dir))
        final = run / f"checkpoint-{self.state.global_step}"
        mine = None
        if self.is_world_process_zero() and not final.exists():
            mine = tempfile.mkdtemp(prefix=".", suffix=".partial", dir=run)
        [staging] = broadcast_object_list([mine])
        if staging is None:
            return
        self.args.output_dir = staging
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.finish_checkpoint(Path(staging) / final.name, final)
        finally:
            self.args.output_dir = str(run)
            if self.is_world_process_zero():
                remove(Path(staging))
        self.accelerator.wait_for_everyone()

    def finish_checkpoint(self, staged: Path, final: Path) -> None:
        """Add deft's own files to a checkpoint that all processes have written, and let it take its place."""
        run = final.parent
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
        self.state.save_to_json(str(staged / "trainer_state.json"))
        self.record.save_rows(staged)
        write_json(staged / POSITION_FILE, asdict(self.position))
        write_manifest(staged)
        sync(staged)
        staged.rename(final)
        sync_folder(run)
        self.record.save_rows(run)
        best_step = self.state.best_global_step or self.state.global_step
        mark_best(run, best_step)
        prune_checkpoints(run, keep=self.keep_checkpoints, best_step=best_step)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save weights (safetensors), tokenizer, generation config and chat format; no pickled arguments beside them.

        Where a model is sharded, every process comes here, but only the one that writes was given the weights.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.record.folder)
        folder.mkdir(parents=True, exist_ok=True)
        is_adapter = hasattr(self.model, "peft_config")
        whole_modules: dict[str, Any] = (
            {"save_embedding_layers": False} if is_adapter else {}
        )  # they are in the adapter
        if state_dict is not None and not is_adapter:  # collected from several processes, tied weights are there twice
            tied = self.model.all_tied_weights_keys
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
        if is_adapter:
            name_base_wholly(self.model)
        name_stops(self.model, self.processing_class, self.chat_format)
        self.model.save_pretrained(folder, state_dict=state_dict, **whole_modules)
        if is_adapter:
            self.model.generation_config.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)
        save_chat_format(self.chat_format, folder)

    # -- restoring ----------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with restoring(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with restoring(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with restoring(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with restoring(checkpoint):
            super()._load_rng_state(checkpoint)


@contextmanager
def restoring(checkpoint: str | None) -> Iterator[None]:
    """Tell a checkpoint that cannot be restored; verified ones can, so it is of an earlier version or was trusted.

    Raises:
        UserError: in place of what transformers, torch and safetensors raise, which is of every kind.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        fix = "leave out --verify none, so that an older whole one is taken; or move this one out of the run's folder"
        got = f"{type(error).__name__}: {first_line(error)}"
        raise UserError("the checkpoint cannot be restored", got=got, where=checkpoint, fix=fix) from error


def name_base_wholly(model: Any) -> None:
    """Have an adapter name a folder as its base model by the whole path: a relative one means nothing elsewhere."""
    for config in model.peft_config.values():
        base = config.base_model_name_or_path
        if base and Path(base).is_dir():
            config.base_model_name_or_path = str(Path(base).resolve())
