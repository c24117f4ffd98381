"""Assistants over tiny models, and scripted replies, so that what is said can be told in advance."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deft.model.generate import Batch
from deft.prompt.formats.role_tokens import add_role_tokens
from deft.serve.assistant import Assistant
from deft.testing.tiny import byte_tokenizer, save_tiny, tiny_model

Script = Callable[..., list[list[int]]]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatML model (it has a system role)."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "小模型")


@pytest.fixture(scope="session")
def role_token_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with role tokens and no chat template, so without a system role."""
    folder = tmp_path_factory.mktemp("roles")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    add_role_tokens(tokenizer)
    tiny_model("qwen3", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def assistant(tiny_folder: Path) -> Assistant:
    return Assistant(tiny_folder, identity_file=None, max_new_tokens=64)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return a function that makes every model say `text` and end its turn; it gives the list of the prompts met."""

    def use(text: str, *, delay_s: float = 0.0, at_step: Callable[[int], None] = lambda _: None) -> list[list[int]]:
        prompts: list[list[int]] = []

        def forward(batch: Batch) -> torch.Tensor:
            stop = 259 if batch.model.config.vocab_size == 260 else 262  # <|im_end|>, <eot>
            reply = [*text.encode(), stop]
            logits = torch.zeros(len(batch.rows), batch.model.config.vocab_size)
            for place, row in enumerate(batch.rows):
                step = len(row.ids) - row.prompt_length
                if step == 0:
                    prompts.append(list(row.ids))
                at_step(step)
                logits[place, reply[step]] = 100.0
            time.sleep(delay_s)
            return logits

        monkeypatch.setattr(Batch, "forward", forward)
        return prompts

    return use
