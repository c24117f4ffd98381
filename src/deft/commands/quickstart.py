"""`deft quickstart`: the whole path on the example data."""

from pathlib import Path

from deft.language.catalogue import spoken
from deft.screen import console


def quickstart(
    *,
    model: str = "smollm2-135m",
    again: bool = False,
    runs: Path = Path("runs"),
    accept_license: bool = False,
) -> None:
    """Fine-tune the embedded model on the example data and show, per ability, what it learned.

    Parameters
    ----------
    model
        The model to start from.
    again
        Train again although a finished quickstart is there.
    runs
        Where the run's folder is made.
    accept_license
        Accept the terms of use of the model, where it has some; asked once.
    """
    from deft.quickstart import quickstart as run_quickstart

    run_quickstart(model=model, lang=spoken(), again=again, runs=runs, console=console(), accept_license=accept_license)
