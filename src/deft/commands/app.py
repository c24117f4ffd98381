"""The command line: arguments in, an exit code out; every command is imported only when it is asked for."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection, CycloptsPanel, Parameter
from cyclopts.config import Dict
from cyclopts.exceptions import CycloptsError

from deft import __version__
from deft.commands.exits import run_or_explain
from deft.errors import visible
from deft.language.catalogue import speak, translated
from deft.language.choose import choose_language
from deft.registry import resolve
from deft.screen import console

COMMANDS = {
    "quickstart": (
        "deft.commands.quickstart:quickstart",
        "Fine-tune the embedded model on the example data and show, per ability, what it learned.",
    ),
    "init": (
        "deft.commands.init:init",
        "Write a starter folder: a recipe, a few rows, and a README with the next commands.",
    ),
    "models": ("deft.commands.models:models", "List the models deft knows by name, and where each comes from."),
    "pull": ("deft.commands.models:pull", "Fetch a model, check it, and make it ready for use."),
    "data": ("deft.commands.data:app", "Read, convert, look at and audit instruction data."),
    "train": ("deft.commands.train:train", "Fine-tune a model; flags win over the recipe."),
    "runs": ("deft.commands.runs:app", "List, show, compare and remove runs."),
    "chat": ("deft.commands.chat:chat", "Talk to a model in the terminal."),
    "merge": (
        "deft.commands.publish:merge",
        "Merge an adapter into its base model, and check that the result computes the same.",
    ),
    "export": (
        "deft.commands.publish:export",
        "Write a checkpoint as a folder to publish: weights, tokenizer, chat format and model card.",
    ),
}
"""Every command: where it is, and the first line of its help, so that `deft --help` imports none of them."""
SECTIONS = {"train": "deft.training.config:TrainConfig"}
"""The commands that take a recipe, and what their section of it may hold."""
NO_HUB = "--no-hub"


def fill_from_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give every flag the user left out the value of the recipe named as first argument, if there is one."""
    section = commands[-1] if commands else ""
    for argument in arguments:
        if argument.name == "--recipe" and argument.tokens and section in SECTIONS:
            from deft.commands.recipe import read_section

            path = Path(argument.tokens[0].value)
            values = read_section(path, section, resolve(SECTIONS, section, kind="section"))
            if isinstance(values.get("trainer"), dict):  # nested values travel as JSON, as they would in a flag
                values["trainer"] = {name: json.dumps(value) for name, value in values["trainer"].items()}
            if "template_kwargs" in values and not isinstance(values["template_kwargs"], str):
                values["template_kwargs"] = json.dumps(values["template_kwargs"], default=str)
            if isinstance(values.get("fields"), dict):
                values["fields"] = [f"{target}={column}" for target, column in values["fields"].items()]
            Dict({section: values}, source=str(path))(app, commands, arguments)


def shown_error(error: CycloptsError) -> Any:
    """Return a wrong flag or value as cyclopts words it; those of a recipe come from a file, and so from others."""
    return CycloptsPanel(visible(translated(str(error)), keep="\n"), title=translated("Error"))


app = App(
    name="deft",
    help="Find how little data each ability needs, train on exactly that, and prove it.\n\n"
    "With any command, --no-hub keeps deft from asking a model hub for anything, and --lang en or --lang zh lets it "
    "speak English or Chinese; without the flag, DEFT_LANG decides, or else the locale.",
    version=__version__,
    suppress_keyboard_interrupt=False,
    config=fill_from_recipe,
    error_formatter=shown_error,
    default_parameter=Parameter(negative="", consume_multiple=True),
)
for name, (place, help_line) in COMMANDS.items():
    app.command(place, name=name, help=help_line)


def without_hub(tokens: Sequence[str]) -> list[str]:
    """Return a command line without `--no-hub`; where it was there, no hub is asked in this process."""
    if NO_HUB not in tokens:
        return list(tokens)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which nothing has done yet
    return [token for token in tokens if token != NO_HUB]


def run(tokens: Sequence[str]) -> None:
    """Run a command line in the language that it, the environment or the locale asks for.

    Raises:
        UserError: if it asks for a language that deft does not speak, and whatever the command raises.
    """
    language, rest = choose_language(without_hub(tokens), os.environ)
    speak(language)
    if language == "en":
        app.help_formatter = None
    else:
        from deft.commands.help import TranslatedHelp

        app.help_formatter = TranslatedHelp()
    app(rest, console=console(), exit_on_error=False, result_action="return_value")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        sys.exit(run_or_explain(lambda: run(sys.argv[1:] if arguments is None else arguments)))
    finally:
        speak("en")  # as it was for whoever called from Python
