"""`deft init`: the name of a folder in; out, a starter in it: a recipe, a few rows, and a README with what to type."""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Literal

from deft.data.shipped import shipped_rows
from deft.errors import UserError
from deft.files import cannot_write, remove, written_whole
from deft.screen import console, say

STARTERS = Path(str(resources.files("deft.commands"))) / "starter"
"""Recipe and README by language."""
ABILITIES = ("math", "reasoning", "creative_writing")
NUM_ROWS = {"train": 8, "valid": 6}
"""Of each ability; six is the fewest whose change gets an interval."""


def init(folder: Path, *, lang: Literal["en", "zh"] = "en") -> None:
    """Write a starter folder: a recipe, a few rows, and a README with the next commands.

    Parameters
    ----------
    folder
        A new folder, or an empty one.
    lang
        Language of the rows and of the README.
    """
    with filled_whole(folder) as place:
        shutil.copyfile(STARTERS / lang / "recipe.yaml", place / "recipe.yaml")
        shutil.copyfile(STARTERS / lang / "README.md", place / "README.md")
        write_rows(place / "data", lang)
    screen = console()
    say(screen, "[green]✓[/] a recipe and a few rows are in {folder}", folder=folder)
    here = folder.resolve() == Path.cwd().resolve()
    for command in [] if here else [f"cd {shlex.quote(str(folder))}"]:
        say(screen, "    [cyan]{command}[/]", command=command)
    for command in ("deft pull smollm2-135m", "deft train recipe.yaml", "deft chat runs/latest/best"):
        say(screen, "    [cyan]{command}[/]", command=command)


def write_rows(folder: Path, lang: str) -> None:
    """Write the first example rows of a few abilities, those to train on and those to measure with."""
    from deft.data.read import read_examples
    from deft.data.write import write_examples

    for name, split in (("train", "full"), ("valid", "valid")):
        files = [shipped_rows(lang) / split / f"{ability}_{split}.json" for ability in ABILITIES]
        rows = [row for file in files for row in read_examples(file).examples[: NUM_ROWS[name]]]
        write_examples(folder / f"{name}.jsonl", rows)


@contextmanager
def filled_whole(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes `folder`, or is it where that is there, empty; all of it or nothing.

    A folder that is there stays the one it is, since a shell may be in it; what was begun in it goes if writing fails.

    Raises:
        UserError: if the folder has something in it, is a file, or cannot be written.
    """
    fix = "name a new folder, or an empty one"
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError("this is not a folder", got=str(folder), fix=fix)
    if not folder.exists():
        with written_whole(folder) as temporary:
            temporary.mkdir()
            yield temporary
        return
    try:
        if there := sorted(entry.name for entry in folder.iterdir()):
            got = f"{folder} has {', '.join(there[:3])}" + (" and more" if len(there) > 3 else "")
            raise UserError("the folder is not empty", got=got, fix=fix)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield folder
    except BaseException as error:
        for entry in folder.iterdir():
            remove(entry)
        if isinstance(error, OSError):
            raise cannot_write(folder, error) from error
        raise
