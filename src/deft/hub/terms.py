"""Terms of use that go with some models: shown and accepted once before a model is fetched, passed on with its notice.

In: a known model. Out: an entry in `accepted-terms.json` beside the pulled models, and the `NOTICE` of what is made
from it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from deft.errors import UserError
from deft.files import read_object, write_json, write_text
from deft.hub.known import KnownModel, Terms, find_known

ACCEPTED_FILE = "accepted-terms.json"
NOTICE_FILE = "NOTICE"


def check_accepted(model: KnownModel, models_dir: Path, *, accept: bool, tell: Callable[[str], None]) -> None:
    """Check that the terms of a model that deft fetches are accepted; with `accept` they are, and it is remembered.

    Raises:
        UserError: if they are not, with what they come to, where they are, and how to accept them.
    """
    terms, file = model.terms, models_dir / ACCEPTED_FILE
    if terms is None or terms.url in (accepted := read_object(file)):
        return
    if not accept:
        raise UserError(
            f"{model.alias} is licensed under the {terms.name}, which you have not accepted yet: {terms.gist}",
            got=terms.url,
            fix=f"read them; to accept: deft pull {model.alias} --accept-license",
        )
    tell(f"{terms.name} accepted ({terms.url}): {terms.gist}")
    models_dir.mkdir(parents=True, exist_ok=True)
    write_json(file, accepted | {terms.url: {"name": terms.name, "accepted_at": f"{datetime.now(UTC):%Y-%m-%d}"}})


def write_notice(folder: Path, terms: Terms) -> None:
    """Write the notice that the terms ask for beside what stands under them, unless a notice is there already."""
    if not (folder / NOTICE_FILE).exists():
        write_text(folder / NOTICE_FILE, f"{terms.notice}\n\n{terms.name}: {terms.url}\n")


def pass_on_notice(folder: Path, base_model: str | None) -> None:
    """Write the notice of a base model, named by alias or hub id, into the folder of what was made from it."""
    known = find_known(base_model) if base_model is not None else None
    if known is not None and known.terms is not None:
        write_notice(folder, known.terms)
