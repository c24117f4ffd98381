"""`deft data`: read, convert, look at and audit instruction data."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from deft.commands.flags import AT_LEAST_1
from deft.commands.rows import read
from deft.errors import UserError
from deft.language.catalogue import spoken, translated, worded
from deft.model.size import num_positions
from deft.screen import console, say
from deft.training.config import TrainReasoning, parsed_kwargs

app = App(
    name="data",
    help="Read, convert, look at and audit instruction data.",
    default_parameter=Parameter(negative="", consume_multiple=True),
)


@app.command
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
        raise UserError("convert needs input files and an output file", fix="deft data convert IN… OUT.jsonl")
    *inputs, output = paths
    if output.exists() and not overwrite:
        raise UserError("the output file already exists", got=str(output), fix="name another, or --overwrite")
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


@app.command
def show(
    file: Path,
    *,
    model: str = "smollm2-135m",
    template_kwargs: str | None = None,
    train_reasoning: TrainReasoning = "last",
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
    template_kwargs
        What the chat template is given beside the messages, as JSON such as {"enable_thinking": false}.
    train_reasoning
        In which replies of a row reasoning carries loss.
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
    from deft.model.start import start_from
    from deft.prompt.encode import encode_example
    from deft.prompt.paint import paint, painted_pieces

    found = read([file], skip_broken=skip_broken, ignore_fields=ignore_fields, fields=fields)
    examples = [row for row in found if id in (None, row.id)]
    if not examples:
        raise UserError("no row has this id", got=id, where=str(file), fix="leave --id out to see rows and their ids")
    start = start_from(model, template_kwargs=parsed_kwargs(template_kwargs))
    screen = console()
    for example in examples[:limit]:
        sequences = encode_example(
            example, start.chat_format, max_length_tokens=sys.maxsize, train_reasoning=train_reasoning
        )
        for sequence in sequences:
            pieces = painted_pieces(sequence, start.tokenizer)
            screen.print(paint(example, sequence, pieces, colour=screen.color_system is not None))


@app.command
def audit(
    folder: Path,
    *,
    model: str = "smollm2-135m",
    template_kwargs: str | None = None,
    train_reasoning: TrainReasoning = "last",
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
    template_kwargs
        What the chat template is given beside the messages, as JSON such as {"enable_thinking": false}.
    train_reasoning
        In which replies of a row reasoning carries loss.
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
    from deft.data.audit import leaks
    from deft.data.show import audit_table, names_of_some
    from deft.model.start import start_from
    from deft.prompt.advice import notes
    from deft.prompt.encode import encoded_rows

    reading: dict[str, Any] = {"skip_broken": skip_broken, "ignore_fields": ignore_fields, "fields": fields}
    examples = read([folder], **reading)
    start = start_from(model, template_kwargs=parsed_kwargs(template_kwargs))
    screen = console()

    positions = num_positions(start.found.folder)
    limit = min(positions or max_length_tokens, max_length_tokens)
    result = audit_examples(
        examples,
        encoded_rows(examples, start.chat_format, max_length_tokens=limit, train_reasoning=train_reasoning),
        max_length_tokens=limit,
        end_of_turn_ids=start.chat_format.end_of_turn_ids,
    )
    if result.longer and limit < max_length_tokens:  # training keeps within the positions as well
        what = (
            "[yellow]note:[/] the model has {positions:,} positions, and {number:,} of {rows:,} rows are longer: "
            "training leaves out their oldest turns, or all of them ({places})"
        )
        places, number = names_of_some(result.longer), len(result.longer)
        say(screen, what, positions=positions, number=number, rows=len(examples), places=places, fold=True)
    screen.print(audit_table(result, spoken()))
    for note in (*map(translated, result.warnings), *notes(start.chat_format, start.tokenizer, examples)):
        say(screen, "[yellow]note:[/] {note}", note=note, fold=True)
    reasons = [translated(reason) for reason in result.stop_reasons]
    if held_out is not None and (shared := leaks(examples, read([held_out], **reading))):
        what = "{number} rows of {held_out} also occur in {folder}; the first: {first}"
        reasons.append(worded(what, number=len(shared), held_out=held_out, folder=folder, first=shared[0].source))
    if reasons:
        fix = f"fix these rows or remove them; to look at some: deft data show {shlex.quote(str(folder))}"
        raise UserError(
            "training on this would be pointless or wrong", got=worded("; ").join(reasons), where=str(folder), fix=fix
        )
    say(screen, "[green]✓[/] nothing speaks against training on this")
