"""The stages of a quickstart: bring the model, read and audit the rows, measure, fine-tune, ask.

In: a plan. Out: what each stage makes, kept as it is made, so that a later start takes it up.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding

from deft.data.audit import audit, leaks
from deft.data.read import read_examples
from deft.data.shipped import shipped_rows
from deft.data.show import audit_table
from deft.errors import UserError
from deft.evaluation.loss import row_losses_kept
from deft.evaluation.measure import load_to_measure
from deft.files import read_object, write_json
from deft.hub.cache import is_present
from deft.hub.find import FoundModel
from deft.hub.known import find_known, format_parameters
from deft.hub.pull import pull
from deft.language.catalogue import translated, worded
from deft.language.choose import Lang
from deft.losses import RowLoss, by_row, mean_loss, read_rows_kept
from deft.model.start import Start, start_from
from deft.prompt.encode import encode_examples, encoded_rows
from deft.quickstart.narrator import Narrator, row_bar
from deft.quickstart.plan import CHINESE_MODEL, TUNED, Plan, find_run, knows_language, newest_unfinished
from deft.quickstart.prompts import PROMPTS
from deft.report.values import shown_value
from deft.screen import say
from deft.types import Example, Message

if TYPE_CHECKING:
    from deft.model.load import LoadedModel
    from deft.prompt.formats.kinds import ChatFormat


EXAMPLES = Path("examples/abilities")
"""Of the current folder; rows that lie there go before those that come with deft."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The examples of the three splits; of each ability a first part where the plan says so."""

    train: Sequence[Example]
    valid: Sequence[Example]
    test: Sequence[Example]


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """What is known when the training starts: the model's losses and replies, and what identifies the run."""

    rows: Sequence[RowLoss]
    replies: Sequence[str]
    identity: Mapping[str, Any]


def warn_of_language(plan: Plan, tell: Narrator) -> None:
    """Say, where the model hardly knows the language of the data, so and the command for one that does."""
    if not knows_language(plan):
        tell.say("weak_language", style="yellow", model=plan.config.model)
        command = f"deft quickstart --lang {plan.lang} --model {CHINESE_MODEL} --accept-license"
        say(tell.console, "    {command}", command=command, style="bold")


def bring_model(plan: Plan, tell: Narrator) -> None:
    """Fetch the model, if it is one that deft knows and not here yet."""
    known = find_known(plan.config.model)
    if known is not None and not is_present(known):
        tell.say("pulling", model=plan.config.model)

        def show(line: str) -> None:
            say(tell.console, "  {line}", line=line)

        pull(plan.config.model, accept_license=plan.accept_license, progress=show)


def load(model: FoundModel, plan: Plan, tell: Narrator) -> "tuple[Start, LoadedModel]":
    """Load the model to start from, and say what it is."""
    start = start_from(model)
    loaded = load_to_measure(start, dtype="float32")
    parameters = format_parameters(sum(weights.numel() for weights in loaded.model.parameters()))
    tell.say("model_ready", model=shown_value(plan.config.model), parameters=parameters)
    return start, loaded


def example_folder(lang: Lang) -> Path:
    """Return the folder of a language's example rows: of the current folder, else those that come with deft."""
    own = EXAMPLES / lang / "curated"
    return own if own.is_dir() else shipped_rows(lang)


def read_rows(plan: Plan) -> Rows:
    """Read the three splits."""
    return Rows(
        train=spread(read_examples(plan.config.train).examples, plan.max_train_rows),
        valid=spread(read_examples(plan.config.valid).examples, plan.num_valid_rows),
        test=spread(read_examples([plan.test]).examples, plan.max_test_rows),
    )


def spread(examples: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """Return at most `limit` examples, the first of every ability in turn, in their order."""
    if limit is None or limit >= len(examples):
        return examples
    place_in_ability: dict[str | None, int] = {}
    ranked = []
    for index, example in enumerate(examples):
        place = place_in_ability.setdefault(example.ability, 0)
        place_in_ability[example.ability] += 1
        ranked.append((place, index))
    return [examples[index] for index in sorted(index for _, index in sorted(ranked)[:limit])]


def show_data(rows: Rows, chat_format: "ChatFormat", plan: Plan, tell: Narrator) -> None:
    """Print the audit of the training rows, and check that nothing held out is among them.

    Raises:
        UserError: if a held-out row is, or if training would be pointless.
    """
    limit = plan.config.max_length_tokens
    result = audit(
        rows.train,
        encoded_rows(rows.train, chat_format, max_length_tokens=limit),
        max_length_tokens=limit,
        end_of_turn_ids=chat_format.end_of_turn_ids,
    )
    tell.console.print(Padding(audit_table(result, plan.lang), (1, 0, 1, 2)))
    held_out = [*rows.valid, *rows.test]
    if shared := leaks(rows.train, held_out):
        raise UserError(
            f"{len(shared)} held-out rows occur in the training rows, so their loss would prove nothing",
            where=shared[0].held_out.source,
            got=shared[0].held_out.messages[-2].content,
            fix=f"take them out of one of the two; the first is also {shared[0].train.source}",
        )
    if result.stop_reasons:
        fault = "training on this would be pointless or wrong"
        reasons = [translated(reason) for reason in result.stop_reasons]
        raise UserError(fault, got=worded("; ").join(reasons), fix=f"deft data audit {plan.config.train[0]}")
    tell.say("no_leak", style="green", held_out=len(held_out))


def measure_before(plan: Plan, loaded: "LoadedModel", chat_format: "ChatFormat", rows: Rows, tell: Narrator) -> Before:
    """Measure the untrained model: losses of the test rows and two replies; both are kept as they are made."""
    from deft.training.run import run_identity

    limit = plan.config.max_length_tokens
    train, valid = (
        encode_examples(split, chat_format, max_length_tokens=limit, train_reasoning=plan.config.train_reasoning)
        for split in (rows.train, rows.valid)
    )
    identity = run_identity(plan.config, loaded.path, train, valid)
    evaluated = losses(plan, loaded, chat_format, rows.test, file=plan.parts / "rows_before.jsonl", tell=tell)
    loss = mean_loss(evaluated)
    kept = plan.parts / "replies_before.json"
    answers = read_object(kept).get("replies")
    if answers is None:
        answers = replies(plan, loaded, chat_format)
        write_json(kept, {"replies": answers})
    tell.say("loss_before", rows=len(evaluated), loss=loss)
    return Before(rows=evaluated, replies=answers, identity=identity)


def losses(
    plan: Plan,
    loaded: "LoadedModel",
    chat_format: "ChatFormat",
    examples: Sequence[Example],
    *,
    file: Path,
    tell: Narrator,
) -> list[RowLoss]:
    """Return the losses of examples; each pack is kept in `file` at once, and what is there is not computed again."""
    limit = plan.config.max_length_tokens
    sequences = encode_examples(examples, chat_format, max_length_tokens=limit).sequences
    kept = {(row.id, row.part) for row in read_rows_kept(file)}
    num_missing = sum((row.id, row.part) not in kept for row in sequences)
    if kept:
        tell.resumed_stages.add("before" if file.parent == plan.parts else "after")
        tell.say("kept", rows=len(sequences) - num_missing, all=len(sequences))
    with row_bar(tell, num_missing) as advance:
        found = row_losses_kept(
            loaded.model, sequences, file=file, pack_length_tokens=limit, on_progress=lambda rows: advance(len(rows))
        )
    return by_row(found)


def replies(plan: Plan, loaded: "LoadedModel", chat_format: "ChatFormat") -> list[str]:
    """Return the model's greedy replies to the two prompts."""
    from deft.model.generate import generate
    from deft.model.sampling import Sampling

    prompts = [chat_format.encode_prompt([Message(role="user", content=text)]) for text in PROMPTS[plan.lang]]
    penalty = TUNED.get(plan.config.model, {}).get("repetition_penalty", 1.0)
    found = generate(
        loaded.model,
        prompts,
        stop_token_ids=chat_format.stop_token_ids,
        settings=Sampling(max_new_tokens=plan.max_new_tokens, repetition_penalty=penalty),
    )
    decode = loaded.tokenizer.decode
    return [str(decode(list(reply.token_ids), skip_special_tokens=True)).strip() for reply in found]


def trained_folder(plan: Plan, start: Start, rows: Rows, before: Before, tell: Narrator, *, again: bool) -> Path:
    """Train, or go on with a training that was interrupted, or return the folder of one that ended."""
    from deft.training.run import train

    done = None if again else find_run(plan, before.identity, finished=True)
    if done is not None and (done / "best").exists():
        tell.say("trained_already", folder=done)
        tell.resumed_stages.add("training")
        return done
    config = plan.config
    unfinished = find_run(plan, before.identity, finished=False)
    if unfinished is not None and unfinished == newest_unfinished(plan.runs):
        tell.say("resuming")
        tell.resumed_stages.add("training")
        config = dataclasses.replace(config, resume_training=True)
    else:
        num_sequences = before.identity.get("num_train_sequences", before.identity["num_train_rows"])
        steps = config.num_epochs * math.ceil(num_sequences / config.batch_size)
        rate = config.learning_rate
        tell.say("plan", rows=before.identity["num_train_rows"], steps=steps, batch=config.batch_size, rate=rate)
    result = train(config, rows.train, rows.valid, tell.console, measure_first=False, start=start)
    if not result.finished:
        raise KeyboardInterrupt
    return result.folder
