"""Settings handed to transformers: each is decided by deft, passed on, or refused; none does nothing."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from deft.ancestor.flags import config_from_flags
from deft.errors import UserError
from deft.files import write_json
from deft.model.size import num_parameters, num_positions
from deft.testing.tiny import save_tiny
from deft.training.arguments import arguments_of
from deft.training.config import TrainConfig
from deft.training.passed import OWNED, PASSED, WITHOUT_EFFECT, check_no_secrets
from deft.training.rates import default_rate, with_rates


def test_every_name_that_transformers_knows_is_in_the_table_once() -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    parts = [OWNED.keys(), WITHOUT_EFFECT.keys(), PASSED]
    assert names <= set().union(*parts)
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_deft_settings_that_are_named_instead_are_there() -> None:
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    named = [use.split(" ")[0].rstrip(":,") for use in OWNED.values()]
    assert {name for name in named if name not in known} <= {"nothing", "the", "deft", "deepspeed"}


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("num_train_epochs", "deft decides this itself", "use num_epochs"),
        ("output_dir", "deft decides this itself", "use output_dir"),
        ("lr_scheduler_type", "deft decides this itself", "use lr_schedule"),
        (
            "save_strategy",
            "deft decides this itself",
            "use save_steps (a checkpoint is saved after every epoch as well)",
        ),
        ("label_smoothing_factor", "this setting would have no effect", "take it out: the loss is deft's own"),
        ("dataloader_num_workers", "this setting would have no effect", "take it out: rows are already in memory"),
        ("per_device_batch", "unknown setting under `trainer`", None),
    ],
)
def test_what_contradicts_or_does_nothing_is_refused_by_name(name: str, what: str, fix: str | None) -> None:
    with pytest.raises(UserError) as caught:
        arguments_of(TrainConfig(trainer={name: 1}), Path("unused"))
    assert caught.value.what == what and caught.value.got == name
    assert fix is None or caught.value.fix == fix


def test_the_old_flags_go_through_the_same_table() -> None:
    needed = ["--train_dir", "数据", "--model_name_or_path", "模型"]
    config = config_from_flags(
        [*needed, "--lr_scheduler_type", "linear", "--warmup_steps", "5", "--optim", "adafactor"]
    )
    assert (config.lr_schedule, config.warmup_steps, config.trainer) == ("polynomial", 5, {"optim": "adafactor"})
    assert (config.learning_rate, config.end_learning_rate) == (1e-5, 1e-6)
    for flag, words in (
        ("--eval_steps", "deft decides this itself"),
        ("--label_names", "this setting would have no effect"),
    ):
        with pytest.raises(UserError, match=words):
            config_from_flags([*needed, flag, "5"])


SECRETS = [
    {"hub_token": "hf_秘密"},
    {"accelerator_config": {"api_key": "秘密"}},
    {"debug": [{"PASSWORD": "秘密"}]},
    {"fsdp_config": '{"aws": {"secret-key": "秘密"}}'},  # JSON as text, as a flag gives it
    {"deepspeed": {"env": {"accessToken": "秘密"}}},
    {"deepspeed": {"env": ["PATH=/bin", "WANDB_API_KEY=秘密"]}},
    {"project": "https://我:秘密@主机.cn/项目"},
    {"run_name": "https://host/?token=秘密"},
    {"run_name": "hf_abcdefghijklmnop秘密"},
    {"debug": "Bearer 秘密"},
]


@pytest.mark.parametrize("trainer", SECRETS)
def test_a_secret_is_refused_and_never_shown(trainer: dict[str, object]) -> None:
    with pytest.raises(UserError, match="secrets do not belong in settings") as caught:
        arguments_of(TrainConfig(trainer=trainer), Path("unused"))
    assert "秘密" not in str(caught.value) and "HF_TOKEN" in str(caught.value)


def test_names_that_only_look_like_secrets_are_none() -> None:
    check_no_secrets({"pack_length_tokens": 5, "tokenizer": "甲", "hub_token": None, "use_auth": False})
    check_no_secrets(
        {"run_name": "学习率=1e-5, tokens=9", "project": "https://主机.cn:8080/@我", "deepspeed": "a/sk-1.json"}
    )


def test_a_secret_in_a_settings_file_is_refused_as_well(tmp_path: Path) -> None:
    write_json(tmp_path / "设置.json", {"train_batch_size": "auto", "hub": {"token": "秘密"}})
    with pytest.raises(UserError, match="secrets do not belong in settings") as caught:
        arguments_of(TrainConfig(trainer={"deepspeed": str(tmp_path / "设置.json")}), Path("unused"))
    assert caught.value.where == "trainer: deepspeed: hub: token"


@pytest.mark.parametrize(
    "changes",
    [{"num_epochs": 99_999_999_999}, {"batch_size": 0}, {"max_length_tokens": 10**12}, {"show_rows": -1}],
)
def test_numbers_beyond_sense_are_refused(changes: dict[str, int]) -> None:
    [name] = changes
    with pytest.raises(UserError, match=f"{name} is out of range"):
        TrainConfig(**changes)  # type: ignore[arg-type]


def test_of_several_gpus_without_torchrun_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: getattr(self, "_n_gpu", 2) or 2))
    monkeypatch.delattr(TrainingArguments, "_n_gpu", raising=False)
    arguments = arguments_of(TrainConfig(), Path("unused"))
    assert arguments._n_gpu == 1, "transformers wraps the model in DataParallel where n_gpu is above 1"


def test_default_learning_rates() -> None:
    assert [default_rate("full", n) for n in (1e8, 7e9, 13e9)] == [5e-5, 2e-5, 1e-5]
    assert [default_rate("lora", n) for n in (1e8, 7e9, 70e9)] == [5e-4, 2e-4, 1e-4]
    found = with_rates(TrainConfig(method="qlora"), 7e9)
    assert (found.learning_rate, found.end_learning_rate) == (2e-4, pytest.approx(2e-5))
    assert with_rates(TrainConfig(learning_rate=1e-3), 7e9).end_learning_rate == pytest.approx(1e-4)
    with pytest.raises(UserError, match="end_learning_rate is out of range"):
        with_rates(TrainConfig(end_learning_rate=1e-3), 7e9)
    constant = with_rates(TrainConfig(lr_schedule="constant"), 7e9)
    assert (constant.learning_rate, constant.end_learning_rate) == (2e-5, 2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_schedule": "constant", "learning_rate": 1e-4, "end_learning_rate": 1e-5},
        {"lr_schedule": "constant", "end_learning_rate": 1e-5},
        {"lr_schedule": "constant", "lr_power": 2.0},
        {"lr_schedule": "cosine", "lr_power": 2.0},
    ],
)
def test_settings_that_a_schedule_does_not_have_are_refused(settings: dict[str, Any]) -> None:
    *_, name = settings
    with pytest.raises(UserError, match=f"{name} is out of range") as caught:
        TrainConfig(**settings)
    assert "left out where lr_schedule is" in caught.value.fix


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])  # the second has one matrix for embedding and head
def test_parameters_and_positions_are_read_from_the_configuration(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path / "模型", architecture, seed=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert num_parameters(folder) == sum(weight.numel() for weight in model.parameters())
    assert num_positions(folder) == model.config.max_position_embeddings


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"n_ctx": 512, "rope_scaling": {"factor": float("inf")}}, 512),
        ({"alibi": True}, None),
    ],
)
def test_how_far_a_model_reaches(tmp_path: Path, config: dict[str, object], positions: int | None) -> None:
    write_json(tmp_path / "config.json", config)
    assert num_positions(tmp_path) == positions
