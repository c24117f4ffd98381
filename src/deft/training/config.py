"""What a training run can be told: one dataclass, checked before any model loads."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from deft.errors import UserError

MAX_SEED = 2**32 - 1
"""The largest that numpy takes."""
MOST = {
    "lora_rank": 65_536,
    "max_length_tokens": 100_000_000,
    "pack_length_tokens": 100_000_000,
    "num_epochs": 10_000,
    "max_steps": 1_000_000_000,
    "batch_size": 10_000_000,
    "gradient_accumulation": 1_000_000,
    "save_steps": 1_000_000_000,
    "save_total_limit": 1_000_000,
    "show_rows": 1_000_000,
    "warmup_steps": 1_000_000_000,
}
"""The largest of whole numbers that make any sense; more is a slip of the hand, and would hang a run or a dry run."""
OF_THE_RENDERING = frozenset(
    """
    conversation messages tools documents chat_template add_generation_prompt continue_final_message tokenize padding
    truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs
    """.split()  # noqa: SIM905
)
"""What a chat template is given, or how it is rendered, for deft to decide."""
TrainReasoning = Literal["last", "all", "none"]
"""As in `deft.prompt.formats.kinds`, which takes numpy to import."""
NO_VALIDATION = Path("none")
"""What `valid` says where nothing is to be measured."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one fine-tuning run; the names are the flags of `deft train` and the keys of a recipe.

    `batch_size` counts rows, not packs: packing changes how rows are laid out for a forward pass, never how many of
    them share an optimizer step, so that a learning rate means the same with and without it.
    """

    model: str = "smollm2-135m"
    """Alias, local folder or hub id of the model to start from."""
    train: tuple[Path, ...] = ()
    """Files or folders with the rows to train on."""
    valid: tuple[Path, ...] = ()
    """Files or folders to measure the loss on, before training and after every epoch; left out, some of the training
    rows are kept for that (5 %, from 20 to 500); `none`: no rows, and nothing is measured."""
    output_dir: Path = Path("runs")
    """Where the run's folder is made."""
    method: Literal["full", "lora", "rslora", "dora", "qlora"] = "full"
    """Train every weight, or adapters only: plain, scaled for high ranks, with magnitudes, or on 4-bit weights."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 32.0
    """Scale of the adapters: their product is multiplied by alpha / rank (rslora: by alpha / square root of rank)."""
    lora_dropout: float = 0.0
    """Dropout in front of the adapters."""
    lora_targets: tuple[str, ...] = ("all",)
    """Layers that get adapters: all (every linear layer but the head), or names such as q_proj v_proj."""
    chat_format: Literal["auto", "template", "role_tokens", "baichuan_chat"] = "auto"
    """How messages become tokens: the checkpoint's stored format or chat template, role tokens, or Baichuan-Chat's."""
    template_kwargs: str | dict[str, Any] | None = None
    """What the chat template is given beside the messages, as JSON such as {"enable_thinking": false}; the checkpoint
    keeps it. By default what is stored with the model to start from."""
    train_reasoning: TrainReasoning = "last"
    """In which replies of a row reasoning carries loss; where it does not, it is context, if the template shows it."""
    max_length_tokens: int = 2048
    """Longer rows lose whole oldest turns, or are dropped with a reason."""
    pack_length_tokens: int | None = None
    """Most tokens in one forward pass; by default `max_length_tokens`."""
    num_epochs: int = 3
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, whatever the epochs."""
    batch_size: int = 8
    """Rows per device and accumulation step."""
    gradient_accumulation: int = 1
    """Batches per optimizer step; their loss is weighted by supervised tokens."""
    learning_rate: float | None = None
    """Learning rate at the first step (after the warm-up); by default one for the method and the size of the model."""
    end_learning_rate: float | None = None
    """Learning rate at the last step; by default a tenth of the first; that of a constant one."""
    lr_schedule: Literal["polynomial", "cosine", "constant"] = "polynomial"
    """How it goes from one to the other: a polynomial, half a cosine, or not at all."""
    lr_power: float = 1.0
    """Power of the polynomial; 1 is a straight line."""
    warmup_ratio: float = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    warmup_steps: int = 0
    """The same as a number of steps, in place of the share."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    adam_beta1: float = 0.9
    """AdamW's decay of the gradient average."""
    adam_beta2: float = 0.95
    """AdamW's decay of the squared-gradient average."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on a CPU, bfloat16 on a GPU."""
    fast: bool = False
    """Compute in bfloat16 on a CPU whose processor multiplies in it; elsewhere this changes nothing."""
    matmul: Literal["auto", "plain", "onednn"] = "auto"
    """Which library multiplies in fp32 on a CPU; auto: the fastest of those that are exact, as measured here."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more work."""
    checkpointing_keeps: Literal["nothing", "products"] = "nothing"
    """With gradient checkpointing: what is kept all the same; products cost memory and save most of that work."""
    compile: bool = False
    """Compile the layers (torch.compile): minutes at the start, faster steps on a GPU."""
    kernels: Literal["torch", "liger"] = "torch"
    """liger: fused norms, gates and rotations on CUDA, if they compute the same on some of the rows."""
    seed: int = 0
    """Decides the order of the rows and the initial adapters."""
    save_steps: int | None = None
    """Also save a checkpoint every so many steps (one is saved after every epoch)."""
    save_total_limit: int = 2
    """How many checkpoints to keep, besides the best one."""
    skip_broken: bool = False
    """Leave out rows that cannot be read, instead of stopping at the first."""
    ignore_fields: tuple[str, ...] = ()
    """Fields of the rows that count as absent, such as a,b."""
    fields: tuple[str, ...] = ()
    """Which column of the rows is what, such as prompt=question,response=answer."""
    resume_training: bool = False
    """Continue the newest unfinished run of `output_dir`; refused if it was started with other settings or data."""
    allow_changed: tuple[str, ...] = ()
    """What may differ from the unfinished run all the same, by the names that a refusal lists."""
    verify: Literal["all", "none"] = "all"
    """Compare the files of the model and of the checkpoint to resume with their digests; none: trust them."""
    show_rows: int = 1
    """Paint the loss mask of so many training rows before the first step."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further settings for `transformers.TrainingArguments` (deepspeed, report_to, …); refused where deft decides."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", Path(self.output_dir))  # whoever calls from Python may write a string
        for name in ("train", "valid"):
            given = getattr(self, name)
            paths = (given,) if isinstance(given, str | Path) else given
            object.__setattr__(self, name, tuple(Path(path) for path in paths))
        object.__setattr__(self, "template_kwargs", parsed_kwargs(self.template_kwargs))
        for name, kind in get_type_hints(TrainConfig).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal:
                require(value in get_args(kind), name, value, "one of " + ", ".join(get_args(kind)))
            if isinstance(value, str | Path):
                require(is_unicode(str(value)), name, value, "UTF-8 text")
            if isinstance(value, float):
                require(math.isfinite(value), name, value, "a finite number")
        for name, most in MOST.items():
            value = getattr(self, name)
            least = 0 if name in ("show_rows", "warmup_steps") else 1
            allowed = f"a whole number of at least {least} and at most {most:,}"
            require(value is None or least <= value <= most, name, value, allowed)
        require(
            not (self.warmup_steps and self.warmup_ratio),
            "warmup_steps",
            self.warmup_steps,
            f"left out beside warmup_ratio ({self.warmup_ratio:g}), or the other way round",
        )
        require(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"a whole number from 0 to {MAX_SEED}")
        self.check_rates()
        alone = NO_VALIDATION not in self.valid or len(self.valid) == 1
        require(alone, "valid", " ".join(map(str, self.valid)), "files or folders, or none alone")
        check_lora_targets(self.lora_targets)
        for name in ("warmup_ratio", "lora_dropout", "adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        require(self.lora_alpha is None or self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "a number above 0")
        for name in ("weight_decay", "max_grad_norm", "lr_power"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a number of at least 0")
        if self.pack_length_tokens is not None and self.pack_length_tokens < self.max_length_tokens:
            raise UserError(
                "pack_length_tokens is shorter than a row may be",
                got=self.pack_length_tokens,
                fix=f"at least max_length_tokens ({self.max_length_tokens})",
            )

    def check_rates(self) -> None:
        """Check the learning rates and how one goes to the other.

        Raises:
            UserError: naming the setting that is out of range, or that would change nothing.
        """
        rate = self.learning_rate
        require(rate is None or rate > 0, "learning_rate", rate, "a number above 0")
        if self.end_learning_rate is not None:
            first = math.inf if self.learning_rate is None else self.learning_rate
            allowed = f"between 0 and learning_rate ({first:g})" if self.learning_rate else "a number of at least 0"
            require(0 <= self.end_learning_rate <= first, "end_learning_rate", self.end_learning_rate, allowed)
        if self.lr_schedule == "constant":
            constant = self.end_learning_rate in (None, self.learning_rate)
            require(constant, "end_learning_rate", self.end_learning_rate, "left out where lr_schedule is constant")
        if self.lr_schedule != "polynomial":
            require(self.lr_power == 1, "lr_power", self.lr_power, f"left out where lr_schedule is {self.lr_schedule}")

    @property
    def validates(self) -> bool:
        """Whether losses are measured, on the files of `valid` or on rows held out of the training ones."""
        return self.valid != (NO_VALIDATION,)

    @property
    def pack_capacity_tokens(self) -> int:
        """Most tokens in one forward pass."""
        return self.pack_length_tokens or self.max_length_tokens


def parsed_kwargs(given: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a chat template is to be given beside the messages, from its JSON text or as it is; None for None.

    Raises:
        UserError: if it is no JSON object, or names what is not the user's to give.
    """
    if given is None:
        return None
    fix = 'write one JSON object, such as {"enable_thinking": false}, in single quotes on a command line'
    try:
        found = json.loads(given) if isinstance(given, str) else given
        found = json.loads(json.dumps(found, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"template_kwargs are not JSON ({error})", got=given, fix=fix) from error
    if not isinstance(found, dict):
        raise UserError("template_kwargs are no JSON object", got=given, fix=fix)
    if taken := sorted(OF_THE_RENDERING & found.keys()):
        what = "template_kwargs name what deft gives the chat template itself"
        raise UserError(what, got=taken[0], fix="take it out; give what the template itself asks for")
    return found


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a `UserError` about the setting `name` unless its value is allowed."""
    if not holds:
        raise UserError(f"{name} is out of range", got=value, fix=f"{name} must be {allowed}")


def check_device_for(config: TrainConfig) -> None:
    """Raise a `UserError` where a setting needs a package or a device that is not here; a dry run needs neither."""
    if config.method == "qlora":
        from deft.model.adapters import check_qlora

        check_qlora()
    if config.kernels == "liger":
        from deft.model.kernels import check_liger

        check_liger()


def check_lora_targets(targets: object) -> None:
    """Raise a `UserError` unless the targets are "all" alone, or names."""
    allowed = "all, or a list of layer names such as q_proj"
    require(isinstance(targets, tuple | list), "lora_targets", targets, allowed)
    named = [name for name in targets if isinstance(name, str) and name.strip() == name != ""]  # type: ignore[attr-defined]
    require(bool(named) and len(named) == len(targets), "lora_targets", targets, allowed)  # type: ignore[arg-type]
    require(named == ["all"] or "all" not in named, "lora_targets", targets, allowed)


def is_unicode(text: str) -> bool:
    """Say whether text can be written to a file; a path whose bytes are not UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
