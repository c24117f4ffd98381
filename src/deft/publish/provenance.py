"""Where a model's weights came from, as others may read it.

In: a checkpoint, beside whose folder its run may lie. Out: base model, licence, languages and the facts of the run,
which `merge` and `export` write to `source.json` and the model card tells. No path of this computer is in them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deft.errors import UserError
from deft.files import read_object, read_regular
from deft.fingerprint import folder_fingerprint
from deft.hub.cache import find_in_cache
from deft.hub.files import ADAPTER_CONFIG
from deft.hub.find import HUB_ID, FoundModel
from deft.hub.known import KNOWN_MODELS, SOURCE_FILE, find_known

HUB_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")
NOT_TOLD = ("model", "train", "valid", "output_dir", "resume_training", "skip_broken", "trainer")
"""Settings of a run that are paths of this computer, or say nothing about the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where a model's weights came from, as others may read it: no path of this computer is in it.

    `base_model` is an alias or hub id, `license` the base model's, `languages` those it was made for; None or empty is
    not known. `run` holds what `run_facts` found.
    """

    base_model: str | None = None
    license: str | None = None
    languages: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)


def provenance_of(model: FoundModel) -> Provenance:
    """Return what is recorded about a checkpoint: in its `source.json`, its adapter's config, and its run's folder."""
    return recorded(model.folder, adapter=model if model.is_adapter else None)


def recorded(folder: Path, *, adapter: FoundModel | None = None) -> Provenance:
    """Return what is recorded about the checkpoint in a folder, which need not be whole; `adapter` is what it holds."""
    folder = folder.resolve()
    stored, run = read_object(folder / SOURCE_FILE), read_object(folder.parent / "run.json")
    if "base_model" in stored:
        return Provenance(**{name: stored[name] for name in Provenance.__dataclass_fields__ if name in stored})
    if (name := public_name(str(folder))) is not None:
        return of_public(name)
    facts = run_facts(folder, run) if run else {}
    base: str | Path | None = run.get("settings", {}).get("model")
    if adapter is not None:
        try:
            base = adapter.base_place
        except UserError:  # it is not on this computer; its name may still say which it is
            base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if base is None:
        return Provenance(license=stored.get("license") or license_in(folder), run=facts)
    if (name := public_name(str(base))) is not None:
        found = of_public(name)
    elif Path(base).is_dir() and Path(base).resolve() != folder and is_base_of(Path(base), run):
        found = recorded(Path(base))
    else:
        found = Provenance()
    return Provenance(base_model=found.base_model, license=found.license, languages=found.languages, run=facts)


def is_base_of(folder: Path, run: Mapping[str, Any]) -> bool:
    """Say whether a folder is still the model that a run started from; `runs/latest/best` soon is another.

    A run of an earlier version, whose fingerprint read a part of each file only, tells nothing.
    """
    recorded = str(run.get("model", ""))
    return not recorded.startswith("sha256:") or folder_fingerprint(folder) == recorded


def of_public(name: str) -> Provenance:
    """Return what is known about a model by its alias or hub id."""
    known = find_known(name)
    if known is not None:
        languages = tuple(language for language in known.languages if len(language) == 2)
        return Provenance(base_model=name, license=known.license, languages=languages)
    cached = find_in_cache(name, weights=False)
    return Provenance(base_model=name, license=license_in(cached) if cached else None)


def public_name(model: str) -> str | None:
    """Return the alias or hub id by which others know a model, given that or a path; None if there is none.

    The path of a hub model is that of its snapshot in the hub's cache; a pulled model's folder says so in its
    `source.json`.
    """
    known = find_known(model)
    if known is not None:
        return known.hub_id or known.alias
    if cached := HUB_SNAPSHOT.search(model):
        return f"{cached[1]}/{cached[2]}"
    alias = read_object(Path(model) / SOURCE_FILE).get("name")
    if alias in KNOWN_MODELS or (Path(model).name in KNOWN_MODELS and not Path(model).exists()):
        return alias or Path(model).name
    return model if HUB_ID.fullmatch(model) and not Path(model).parent.is_dir() else None


def license_in(folder: Path) -> str | None:
    """Return the licence that a model's own card names in the head of its `README.md`, if it does."""
    import yaml

    try:
        head = re.match(r"---\n(.*?)\n---", read_regular(folder / "README.md").decode("utf-8"), re.DOTALL)
        values = yaml.safe_load(head[1]) if head else None
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError):
        return None
    found = values.get("license_name") or values.get("license") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def run_facts(checkpoint: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's folder says about one of its checkpoints: rows, settings, versions, losses by ability.

    `valid_loss` is that of the checkpoint's own step; `changes`, with intervals, are the quickstart's, which measures
    the best checkpoint.
    """
    folder, settings = checkpoint.parent, run.get("settings", {})
    step = int(checkpoint.name.rpartition("-")[2]) if re.fullmatch(r"checkpoint-\d+", checkpoint.name) else None
    left_out = NOT_TOLD + (("lora_",) if settings.get("method") == "full" else ())
    kept = ("num_train_rows", "num_train_sequences", "num_valid_rows", "train_rows", "valid_rows", "versions")
    facts: dict[str, Any] = {name: run[name] for name in kept if run.get(name)}
    facts["settings"] = {
        name: value
        for name, value in {**settings, "rows_per_step": run.get("rows_per_step")}.items()
        if not (value is None or name.startswith(left_out) or "/" in str(value) or "\\" in str(value))
    }
    facts["step"] = step
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line.get("step") == step]
    losses = {name: value for line in lines for name, value in line.items() if name.startswith("eval_loss")}
    facts["valid_loss"] = {name.removeprefix("eval_loss").removeprefix("_"): value for name, value in losses.items()}
    quickstart = read_object(folder / "quickstart.json")
    if quickstart and (folder / "best").resolve() == checkpoint:
        facts["changes"] = quickstart.get("results", {}).get("changes", {})
    return facts


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of lines, up to the first that is damaged."""
    found: list[dict[str, Any]] = []
    try:
        for line in read_regular(file).decode("utf-8").splitlines():
            found.append(json.loads(line))
    except (OSError, ValueError, RecursionError):
        pass
    return found
