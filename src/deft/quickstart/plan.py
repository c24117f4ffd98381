"""What a quickstart is to do, and what earlier starts left of it.

In: settings, and the folder of runs. Out: a plan whose key changes with anything that could change its result, and the
runs of that plan that are there, finished or not.
"""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deft.data.files import find_files
from deft.files import read_object
from deft.fingerprint import fingerprint, folder_fingerprint
from deft.hub.known import find_known
from deft.language.choose import Lang
from deft.quickstart.prompts import PROMPTS
from deft.training.config import TrainConfig

FILE_NAME = "quickstart.json"
"""In the folder of a finished quickstart: what it found."""
FORMAT = 2
"""Raised when what a quickstart does or stores changes, so that older runs are not taken for finished ones."""
DEFAULT_MODEL = "smollm2-135m"
CHINESE_MODEL = "gemma3-270m"
"""The smallest that knows some Chinese and comes without a hub."""
TUNED: dict[str, dict[str, Any]] = {CHINESE_MODEL: {"learning_rate": 5e-5, "repetition_penalty": 1.2}}
"""Settings of a model that differ from the defaults; without the penalty Gemma 3 270M repeats itself to the limit."""
PART_FOLDER = ".quickstart"
"""In the folder of runs: what was measured before a run folder exists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a quickstart is to do; `key` changes with anything that could change its result."""

    lang: Lang
    config: TrainConfig
    test: Path
    max_train_rows: int | None
    num_valid_rows: int | None
    max_test_rows: int | None
    max_new_tokens: int
    accept_license: bool = False
    key: str = ""

    @property
    def runs(self) -> Path:
        """The folder in which runs are made."""
        return self.config.output_dir

    @property
    def parts(self) -> Path:
        """Where measurements are kept until there is a run folder."""
        return self.runs / PART_FOLDER / self.key


def repeating_flags(plan: Plan) -> str:
    """Return the flags, each after a space, with which `deft quickstart` does the same again."""
    given = {"--lang": plan.lang, "--model": plan.config.model, "--runs": str(plan.runs)}
    defaults = {"--lang": "en", "--model": DEFAULT_MODEL, "--runs": "runs"}
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in given.items() if value != defaults[flag])


def knows_language(plan: Plan) -> bool:
    """Say whether the model is known to know the language of the data; of one that deft does not know, it is taken."""
    known = find_known(plan.config.model)
    return known is None or plan.lang in known.languages


def with_key(plan: Plan, model: Path) -> Plan:
    """Return the plan with its key filled in; `model` is the folder of its model."""
    return dataclasses.replace(plan, key=plan_key(plan, model))


def plan_key(plan: Plan, model: Path) -> str:
    """Return a fingerprint of the folder `model`, the data, the settings and the prompts; nothing here loads torch."""
    settings = dataclasses.asdict(plan)
    del settings["accept_license"]
    for name in ("output_dir", "resume_training", "allow_changed", "show_rows"):
        del settings["config"][name]
    files = find_files([*plan.config.train, *plan.config.valid, plan.test])
    data = [part for file in files for part in (file.as_posix(), file.read_bytes())]
    text = json.dumps([FORMAT, settings | {"key": ""}, PROMPTS[plan.lang]], default=str, sort_keys=True)
    return fingerprint([text, *data, folder_fingerprint(model)])


# --- what earlier starts left ---------------------------------------------------------------------------------------


def find_finished(plan: Plan) -> Path | None:
    """Return the newest run folder that holds a finished quickstart of this plan, with its checkpoint."""
    for file in sorted(plan.runs.glob(f"*/{FILE_NAME}"), reverse=True):
        if (
            not file.parent.is_symlink()
            and read_object(file).get("key") == plan.key
            and (file.parent / "best").exists()
        ):
            return file.parent
    return None


def find_run(plan: Plan, identity: Mapping[str, Any], *, finished: bool) -> Path | None:
    """Return the newest training run with this identity that is finished, or not finished."""
    for file in sorted(plan.runs.glob("*/run.json"), reverse=True):
        stored = read_object(file)
        same = all(stored.get(name) == value for name, value in identity.items())
        if same and not file.parent.is_symlink() and stored.get("finished") is finished:
            return file.parent
    return None


def newest_unfinished(runs: Path) -> Path | None:
    """Return the run that `resume_training` would take up: the newest unfinished one, whatever it is."""
    files = sorted(runs.glob("*/run.json"), reverse=True)
    found = (
        file.parent for file in files if not file.parent.is_symlink() and read_object(file).get("finished") is False
    )
    return next(found, None)
