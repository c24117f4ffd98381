"""The example rows that come with deft: a language in; the folder of its rows, wherever deft is installed, out.

In the repository `examples/abilities` is a link to the same rows.
"""

from importlib import resources
from pathlib import Path

from deft.language.choose import LANGUAGES

SPLITS = ("full", "valid", "test")


def shipped_rows(lang: str) -> Path:
    """Return the folder of a language's example rows, with a subfolder for each of `SPLITS`."""
    assert lang in LANGUAGES
    return Path(str(resources.files("deft.data"))) / "abilities" / lang / "curated"
