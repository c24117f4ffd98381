"""The whole path in one command: audit, measure, fine-tune, measure again, and show what changed.

In: the example data of one language and a small model. Out: a run folder with a checkpoint to talk to, the picture of
what each ability gained, and a report. Everything is kept as it is made, so that the command takes up what exists.
"""

import gc
from pathlib import Path

from rich.console import Console
from rich.padding import Padding

from deft.errors import UserError
from deft.evaluation.measure import load_to_measure
from deft.files import check_writable
from deft.hub.cache import is_present
from deft.hub.find import FoundModel, find
from deft.hub.known import find_known
from deft.intervals import paired_changes
from deft.language.choose import Lang
from deft.locks import place_held
from deft.model.start import start_from
from deft.quickstart.narrator import Narrator
from deft.quickstart.outcome import collect_results, finish, show_finished, show_replies, verdicts
from deft.quickstart.plan import DEFAULT_MODEL, PART_FOLDER, TUNED, Plan, find_finished, repeating_flags, with_key
from deft.quickstart.prompts import PROMPTS
from deft.quickstart.stages import (
    bring_model,
    example_folder,
    load,
    losses,
    measure_before,
    read_rows,
    replies,
    show_data,
    trained_folder,
    warn_of_language,
)
from deft.report.results import ReplyPair
from deft.report.tables import changes_table
from deft.report.texts import QUICKSTART_TEXTS
from deft.screen import say
from deft.training.config import TrainConfig


def quickstart(
    *,
    model: str = DEFAULT_MODEL,
    lang: Lang = "en",
    runs: Path = Path("runs"),
    console: Console | None = None,
    again: bool = False,
    num_epochs: int = 1,
    batch_size: int = 8,
    learning_rate: float | None = None,
    max_length_tokens: int = 512,
    max_train_rows: int | None = None,
    num_valid_rows: int | None = 50,
    max_test_rows: int | None = None,
    max_new_tokens: int = 60,
    accept_license: bool = False,
) -> Path:
    """Run the whole path on the example data of `lang`, or take up what exists of it; return the run's folder.

    A finished quickstart with the same model, data and settings is shown, not repeated, unless `again` is set. The
    numbers of rows are upper limits, spread evenly over the abilities; None takes all. A `learning_rate` of None is the
    one that suits the model. `accept_license` accepts the terms of a model that has some.

    Raises:
        UserError: if a setting or the model is wrong, or held-out rows occur in the training rows.
        KeyboardInterrupt: after Ctrl-C, when what is done has been kept and the user told so.
    """
    if lang not in QUICKSTART_TEXTS:
        raise UserError("quickstart has no example data in this language", got=lang, fix="lang is en or zh")
    folder = example_folder(lang)
    if learning_rate is None:
        learning_rate = TUNED.get(model, {}).get("learning_rate", 1e-4)
    config = TrainConfig(
        show_rows=0,
        model=model,
        train=(folder / "full",),
        valid=(folder / "valid",),
        output_dir=runs,
        num_epochs=num_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        end_learning_rate=learning_rate / 10,
        max_length_tokens=max_length_tokens,
        save_total_limit=1,
    )
    plan = Plan(
        lang=lang,
        config=config,
        test=folder / "test",
        max_train_rows=max_train_rows,
        num_valid_rows=num_valid_rows,
        max_test_rows=max_test_rows,
        max_new_tokens=max_new_tokens,
        accept_license=accept_license,
    )
    tell = Narrator(console=console or Console(), lang=lang)
    try:
        return resume_or_run(plan, tell, again=again)
    except KeyboardInterrupt:
        tell.console.print()
        tell.say("interrupted", style="bold", flags=repeating_flags(plan))
        raise


def resume_or_run(plan: Plan, tell: Narrator, *, again: bool) -> Path:
    """Show a finished quickstart, or run one, with whatever exists of it."""
    known = find_known(plan.config.model)
    here = find(plan.config.model) if known is None or is_present(known) else None
    if here is not None and not again:
        keyed = with_key(plan, here.folder)
        if (folder := find_finished(keyed)) is not None:
            show_finished(folder, keyed, tell)
            return folder
    check_writable(plan.runs)
    with place_held(plan.runs / PART_FOLDER):
        return run(plan, here, tell, again=again)


def run(plan: Plan, here: FoundModel | None, tell: Narrator, *, again: bool) -> Path:
    """Go through all stages; what exists of them is used. `here` is the model, unless it has to be fetched first."""
    say(tell.console, "{welcome}", welcome=tell.text("welcome"), style="bold", fold=True)
    warn_of_language(plan, tell)
    with tell.stage("model"):
        bring_model(plan, tell)
        model = here or find(plan.config.model)
        plan = with_key(plan, model.folder)
        start, loaded = load(model, plan, tell)
    with tell.stage("data"):
        rows = read_rows(plan)
        show_data(rows, start.chat_format, plan, tell)
    with tell.stage("before"):
        before = measure_before(plan, loaded, start.chat_format, rows, tell)
    del loaded
    gc.collect()
    with tell.stage("training"):
        folder = trained_folder(plan, start, rows, before, tell, again=again)
    with tell.stage("after"):
        trained = start_from(find(folder / "best"))
        loaded = load_to_measure(trained, dtype="float32")
        after = losses(plan, loaded, trained.chat_format, rows.test, file=folder / "rows_after.jsonl", tell=tell)
        changes = paired_changes(before.rows, after)
        tell.console.print(Padding(changes_table(changes, plan.lang), (1, 0, 0, 2)))
    with tell.stage("replies"):
        answers = replies(plan, loaded, trained.chat_format)
        pairs = [
            ReplyPair(prompt=prompt, before=first, after=second, **verdicts(prompt, first, second, plan.lang))
            for prompt, first, second in zip(PROMPTS[plan.lang], before.replies, answers, strict=True)
        ]
        show_replies(pairs, tell)
    results = collect_results(plan, folder, changes, pairs, before=before, tell=tell)
    finish(plan, folder, results, before, tell)
    return folder
