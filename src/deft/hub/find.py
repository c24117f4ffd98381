"""Find a model by name, once: an alias, a folder or a hub id in; a `FoundModel` out, fetched from the hub if need be.

A name is first located, for which only this computer is asked, and what it stands for is then fetched if it is a hub's.
Nothing here imports torch: what is wrong with a name or a folder is said before anything heavy is loaded.
"""

import difflib
import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deft.errors import UserError, visible
from deft.hub.cache import find_in_cache
from deft.hub.embedded import find_damage
from deft.hub.files import ADAPTER_CONFIG, check_regular, holds_adapter, incomplete, missing_files, read_json
from deft.hub.known import KNOWN_MODELS, find_known, models_folder
from deft.hub.pull import pull_hub
from deft.language.catalogue import translated, worded

LONGEST_NAME = 1_000
LONGEST_PART_BYTES = 255
"""Of a path, between its slashes; what file systems allow."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
OWN_FOLDERS = {Path("models"), Path("runs")}
"""Where deft itself puts models: a name that begins with one of them is no hub's, also before there is any."""


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model whose files are on this computer and have been looked at: the value to pass on in place of its name.

    `name` is what it was asked for by. `has_weights` is False where its weights were not asked for: they may be absent.
    It has no slots because it keeps the base of an adapter once that was asked for, and not before: a tokenizer saved
    with an adapter loads without the base, and a base that is not here is an error only for whoever needs it.
    """

    name: str
    folder: Path
    is_adapter: bool
    has_weights: bool

    @cached_property
    def base_place(self) -> Path | str:
        """Of an adapter: the folder of the model it goes on, or its id at the hub, which is not asked."""
        return locate_base(self.folder)

    @cached_property
    def base(self) -> "FoundModel":
        """Of an adapter: the model it goes on, with its weights if the adapter was found with its own.

        Raises:
            UserError: if it is not named, not found, or an adapter itself.
        """
        base = fetch(self.base_place, weights=self.has_weights)
        if base.is_adapter:
            fix = "merge that adapter into its own base model first, and name the result"
            raise UserError(f"the base model of {self.folder} is itself an adapter", got=str(base.folder), fix=fix)
        return base


def find(model: str | Path | FoundModel, *, weights: bool = True) -> FoundModel:
    """Return a model by its name, downloading a hub model that is not in the cache; one found already is itself.

    `weights` False takes a model without them, as a dry run does.

    Raises:
        UserError: if there is no such model, it has not been pulled, or its folder lacks files or holds what is none.
    """
    if not isinstance(model, FoundModel):
        return fetch(locate(model, weights=weights), name=str(model), weights=weights)
    return model if model.has_weights or not weights else find(model.name)


# --- where a name leads -------------------------------------------------------------------------------------------


def locate(name: str | Path, *, weights: bool = True) -> Path | str:
    """Return where a model is: the folder of an alias or of a local path, or the id of a hub model.

    An alias goes before a folder of the same name (write `./name` for the folder). No network is asked.

    Raises:
        UserError: if there is no such model, it has not been pulled, or its folder lacks files.
    """
    if is_no_path(str(name)):
        raise UserError("there is no such model", got=str(name), fix="give a folder, a hub id (org/name), or an alias")
    known = find_known(str(name))
    if known is not None:
        if known.hub_id is not None:
            return known.hub_id
        folder = models_folder() / known.alias
        if (damage := find_damage(folder, known)) is not None:
            what = f"{folder} is damaged: {damage}" if folder.exists() else f"{known.alias} is not in {folder.parent}"
            accept = " --accept-license" if known.terms is not None else ""
            raise UserError(what, fix=f"deft pull {known.alias}{accept}")
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        if missing := missing_files(folder, weights=weights, tokenizer=False):
            raise incomplete(folder, missing)
        return folder
    if folder.exists():
        raise UserError(
            "a model is a folder, and this is a file", got=str(name), fix="give the folder that holds the model"
        )
    if HUB_ID.fullmatch(str(name)) and not folder.parent.is_dir() and folder.parent not in OWN_FOLDERS:
        return str(name)
    raise unknown_model(str(name), folder)


def is_no_path(name: str) -> bool:
    """Say whether a name is empty, or too long for any file system: looking it up would be an error of its own."""
    longest = max((len(os.fsencode(part)) for part in Path(name).parts), default=0)
    return not name or len(name) > LONGEST_NAME or longest > LONGEST_PART_BYTES


def unknown_model(name: str, folder: Path) -> UserError:
    """Return the error for a name that is neither an alias nor a folder, with the folders and aliases near it."""
    if name == folder.name or folder.parent in OWN_FOLDERS:
        near = difflib.get_close_matches(folder.name, KNOWN_MODELS, n=1)
        if near:
            return UserError("there is no such model", got=name, fix=f"did you mean {near[0]!r}?")
    if (latest := next((each for each in (folder, *folder.parents) if each.name == "latest"), None)) is not None:
        if not latest.exists():
            fix = "deft quickstart, or deft train --train FILE, makes the first"
            return UserError(f"there is no run in {latest.parent} yet", got=name, fix=fix)
        if folder == latest / "best":
            fix = "wait for its first validation, or take one of its checkpoints"
            return UserError("the latest run has no best checkpoint yet", got=name, fix=fix)
    beside = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
    if near := difflib.get_close_matches(folder.name, beside, n=3):
        fix = "did you mean " + " or ".join(str(folder.parent / each) for each in near) + "?"
    elif HUB_ID.fullmatch(name):
        fix = f"the folder {folder.parent} holds no {folder.name}; for the hub's: deft pull {name}, then give its path"
    else:
        fix = "give a folder, a hub id (org/name), or one of: " + ", ".join(KNOWN_MODELS)
    return UserError("there is no such model", got=name, fix=fix)


def locate_base(folder: Path) -> Path | str:
    """Return where the base model is that the adapter in a folder names, as `locate` does.

    deft writes down the whole path the base was loaded from. If that is not here, a relative one is looked up from the
    adapter's folder, and one that ends with an alias means the alias. A hub is asked for what looks like a hub's id
    only, and it is said.

    Raises:
        UserError: naming the adapter's config, if it names no model, or none that can be located.
    """
    config = folder / ADAPTER_CONFIG
    base = read_json(config).get("base_model_name_or_path")
    if not isinstance(base, str) or is_no_path(base):
        raise UserError(f"{config} names no base model", got=base, fix="set base_model_name_or_path in it")
    if not Path(base).exists():
        if not Path(base).is_absolute() and (folder / base).is_dir():
            base = str(folder / base)
        elif Path(base).name in KNOWN_MODELS:
            base = Path(base).name
    try:
        place = locate(base)
    except UserError as error:
        raise error.at(f"{config}: base_model_name_or_path") from error
    if isinstance(place, str) and find_in_cache(place) is None:
        said = worded("{config} names {model} as its base model", config=visible(str(config)), model=place)
        print(said, file=sys.stderr, flush=True)
    return place


# --- what is there ------------------------------------------------------------------------------------------------


def fetch(place: Path | str, *, name: str | None = None, weights: bool = True) -> FoundModel:
    """Return the model in a folder, or the hub's with that id: from the cache, or else downloaded.

    Raises:
        UserError: if the hub has it not or gives no answer, or something in the folder is not what it is called.
    """
    folder = place if isinstance(place, Path) else find_in_cache(place, weights=weights)
    if folder is None:
        folder = pull_hub(
            str(place), weights=weights, tell=lambda line: print(translated(line), file=sys.stderr, flush=True)
        )
    check_regular(folder)
    adapter = holds_adapter(folder)
    return FoundModel(name=name or str(place), folder=folder, is_adapter=adapter, has_weights=weights)
