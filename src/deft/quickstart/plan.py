"""What a quickstart is to do, and the key that changes with anything that could change its result."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from deft.quickstart.texts import PROMPTS
from deft.report.texts import Lang
from deft.rundir import fingerprint, folder_fingerprint
from deft.train.config import TrainConfig

FORMAT = 1
"""Raised when what a quickstart does or stores changes, so that older runs are not taken for finished ones."""
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
    key: str = ""

    @property
    def runs(self) -> Path:
        """The folder in which runs are made."""
        return self.config.output_dir

    @property
    def parts(self) -> Path:
        """Where measurements are kept until there is a run folder."""
        return self.runs / PART_FOLDER / self.key


def with_key(plan: Plan) -> Plan:
    """Return the plan with its key filled in; the model must be here."""
    return dataclasses.replace(plan, key=plan_key(plan))


def plan_key(plan: Plan) -> str:
    """Return a fingerprint of the model, the data, the settings and the prompts; nothing here loads torch."""
    from deft.data.files import find_files
    from deft.model.load import find_folder

    settings = dataclasses.asdict(plan)
    for name in ("output_dir", "resume_training", "allow_changed", "show_rows"):
        del settings["config"][name]
    files = find_files([*plan.config.train, *plan.config.valid, plan.test])
    data = [part for file in files for part in (file.as_posix(), file.read_bytes())]
    text = json.dumps([FORMAT, settings | {"key": ""}, PROMPTS[plan.lang]], default=str, sort_keys=True)
    return fingerprint([text, *data, folder_fingerprint(find_folder(plan.config.model))])
