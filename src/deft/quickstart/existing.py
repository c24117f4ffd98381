"""The folder of runs goes in; what earlier starts left there, finished or not, comes out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deft.files import read_object
from deft.quickstart.plan import Plan

FILE_NAME = "quickstart.json"


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
