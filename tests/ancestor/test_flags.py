"""The ancestor's flags, translated."""

from pathlib import Path

import pytest

from deft.ancestor.flags import config_from_flags
from deft.errors import UserError

NEEDED = ["--train_dir", "数据/train", "--valid_dir", "数据/valid", "--model_name_or_path", "models/smollm2-135m"]


def test_the_published_command() -> None:
    config = config_from_flags([*NEEDED, "--batch_size", "8", "--gradient_accumulation", "1"])
    assert config.train == (Path("数据/train"),)
    assert config.valid == (Path("数据/valid"),)
    assert config.model == "models/smollm2-135m"
    assert (config.batch_size, config.gradient_accumulation) == (8, 1)
    assert (config.num_epochs, config.learning_rate, config.end_learning_rate) == (15, 1e-5, 1e-6)
    assert (config.adam_beta1, config.adam_beta2, config.weight_decay) == (0.9, 0.95, 0.1)
    assert config.save_total_limit == 15


def test_names_of_transformers_and_of_the_ancestor() -> None:
    config = config_from_flags(
        [*NEEDED, "--num_train_epochs", "2", "--per_device_train_batch_size=4", "--torch_dtype", "bf16"]
        + ["--max_seq_len", "512", "--gradient_checkpointing", "--end_learning_rate", "2e-6", "--logging_steps", "5"]
        + ["--use_data_cache", "--resume_training"]
    )
    assert (config.num_epochs, config.batch_size, config.dtype) == (2, 4, "bfloat16")
    assert (config.max_length_tokens, config.gradient_checkpointing, config.end_learning_rate) == (512, True, 2e-6)
    assert config.resume_training is True
    assert config.trainer == {"logging_steps": 5}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lerning_rate", "1e-5"], ["unknown flag", "did you mean 'learning_rate'"]),
        (["--batch_size", "eight"], ["--batch_size wants a int", "eight"]),
        (["stray"], ["belongs to no flag"]),
        (["--batch_size", "2.5"], ["--batch_size wants a int"]),
    ],
)
def test_wrong_flags_are_told(flags: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config_from_flags([*NEEDED, *flags])
    for word in words:
        assert word in str(caught.value)


def test_a_missing_flag_is_told() -> None:
    with pytest.raises(UserError, match="--train_dir"):
        config_from_flags(["--model_name_or_path", "x"])
