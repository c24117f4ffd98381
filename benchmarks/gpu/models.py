"""Random models of real sizes, made on the device without a download or a disk, and the rows they train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from benchmarks.memory_estimate import NO_MATTER
from deft.estimate.estimate import LIBRARY_BYTES, Numbers, estimate, numbers_of
from deft.model.baichuan2.configuration import Baichuan2Config
from deft.model.device import choose_device
from deft.prompt.encode import EncodeResult
from deft.training.config import TrainConfig
from deft.types import IGNORED_LABEL, TokenSequence

LLAMA = {
    "7B": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "3B": {
        "vocab_size": 128_256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}
"""The shapes of Llama 2 7B and Llama 3.2 3B."""
SMALL_LLAMA = {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
SMALL_BAICHUAN = {"hidden_size": 640, "intermediate_size": 1712, "num_hidden_layers": 8, "num_attention_heads": 10}
SUPERVISED_RATIO = 0.3
NUM_WARM_UP_STEPS = 2

ModelName = Literal["Llama 7B", "Llama 3B", "Baichuan2 13B"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured of one model: rows that make one pack and one step, trained by one method."""

    model: ModelName
    method: Literal["full", "lora"] = "lora"
    small: bool

    @property
    def name(self) -> str:
        """The model's name; at small size it is only of that architecture."""
        return f"{self.model.split()[0]}, small" if self.small else self.model

    @cached_property
    def model_config(self) -> PreTrainedConfig:
        """The configuration of the model."""
        if self.model == "Baichuan2 13B":
            return Baichuan2Config(**(SMALL_BAICHUAN if self.small else {}))
        return LlamaConfig(**(SMALL_LLAMA if self.small else LLAMA[self.model.split()[1]]))  # type: ignore[arg-type]

    @property
    def row_lengths(self) -> Sequence[int]:
        """Tokens of each row of the pack."""
        return (256, 128, 80, 48) if self.small else (2048, 1024, 640, 384)

    @property
    def num_steps(self) -> int:
        """Timed steps."""
        return 2 if self.small else 8

    def settings(self, *, checkpointing: bool = False) -> TrainConfig:
        """Return the settings of training, as a run would have them."""
        return TrainConfig(
            method=self.method,
            gradient_checkpointing=checkpointing,
            batch_size=len(self.row_lengths),
            max_length_tokens=sum(self.row_lengths),
            max_steps=NUM_WARM_UP_STEPS,
        )

    def numbers(self) -> Numbers:
        """Return the number formats of training."""
        return numbers_of(self.settings(), self.method)

    def rows(self) -> list[TokenSequence]:
        """Return the rows of the pack: random tokens, the last of each row supervised."""
        random = np.random.default_rng(0)
        made = []
        for number, length in enumerate(self.row_lengths):
            ids = random.integers(1000, 32_000, length, dtype=np.int32)
            labels = np.where(np.arange(length) < round(length * (1 - SUPERVISED_RATIO)), IGNORED_LABEL, ids)
            made.append(TokenSequence(id=f"行{number}", input_ids=ids, labels=labels.astype(np.int32)))
        return made

    def predicted(self, *, checkpointing: bool) -> tuple[int, bool]:
        """Return the bytes that a dry run says, and whether they are those of a step, not of saving a checkpoint.

        They are without what is not there to be measured: a GPU's libraries are no allocations of PyTorch's, and there
        is no tokenizer.
        """
        sequences = tuple(self.rows())
        rows = EncodeResult(sequences=sequences, places=tuple(range(len(sequences))), dropped=(), num_shortened=0)
        config = self.settings(checkpointing=checkpointing)
        chosen = estimate(config, self.model_config, rows, speed=NO_MATTER, methods=()).chosen
        libraries = 0 if torch.cuda.is_available() else LIBRARY_BYTES["cpu"]
        return chosen.total_bytes - chosen.library_bytes + libraries, chosen.activations_bytes > 0

    def make_model(self) -> Any:
        """Return the model with random weights, made on the device, in the type that training holds it in."""
        torch.manual_seed(0)
        with torch.device(choose_device(None)):
            return AutoModelForCausalLM.from_config(self.model_config, dtype=self.numbers().held).eval()


def fits(num_bytes: int) -> bool:
    """Say whether this device can hold so much beside CUDA's libraries; of a CPU it is believed."""
    if not torch.cuda.is_available():
        return True
    return num_bytes + LIBRARY_BYTES["cuda"] < torch.cuda.get_device_properties(choose_device(None)).total_memory
