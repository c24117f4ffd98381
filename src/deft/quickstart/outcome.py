"""What a quickstart found: put together, judged, written into the run's folder, and shown with what to do next."""

import dataclasses
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deft.errors import visible
from deft.files import read_object, remove, write_json
from deft.fingerprint import fingerprint
from deft.intervals import Change
from deft.language.choose import Lang
from deft.losses import write_rows
from deft.quickstart.narrator import Narrator
from deft.quickstart.plan import FILE_NAME, Plan, repeating_flags
from deft.quickstart.prompts import PROMPTS, RIGHT_OPTION
from deft.quickstart.stages import Before, warn_of_language
from deft.report.page import write_report
from deft.report.results import ReplyPair, Results, from_json, to_json
from deft.report.tables import changes_table
from deft.report.texts import ENDING_TEXTS, QUICKSTART_TEXTS
from deft.report.values import readable_time, shown_value
from deft.screen import say
from deft.training.outcome import CHAT_PAGE, best_of, collect, say_files, say_next, say_result, write_outcome

ACTIVATE = Path(".venv/bin/activate")
"""What `make install` leaves for a shell to enter the project's environment."""
MARKED = re.compile(r"(?:[Aa]nswer(?: is)?|答案(?:是|为)?)\s*[:：]?\s*([A-D])(?![A-Za-z])")
"""As the example rows end."""
LISTED = re.compile(r"(?<![A-Za-z])([A-D])(?=[.．、:：)）]|\s*$|\s*[。,，])")


def collect_results(
    plan: Plan,
    folder: Path,
    changes: Mapping[str, Change],
    pairs: Sequence[ReplyPair],
    *,
    before: Before,
    tell: Narrator,
) -> Results:
    """Put together what the report shows; rows that come with deft go by their place in it, not in this computer."""
    results = collect(
        folder,
        plan.config,
        changes,
        replies=pairs,
        fingerprints={
            "train": before.identity["train_rows"],
            "valid": before.identity["valid_rows"],
            "test": fingerprint(sorted(row.id for row in before.rows)),
            "model": before.identity["model"],
            "quickstart": plan.key,
        },
        stage_times_s=tell.named_times_s(),
        next_commands=next_commands(plan, folder, shown=shown_value),
    )
    places = {"train": shown_rows(plan.config.train), "valid": shown_rows(plan.config.valid)}
    return dataclasses.replace(results, settings={**results.settings, **places})


def shown_rows(paths: Sequence[Path]) -> str:
    """Return the folders of rows as a report shows them: `deft/data/abilities/…` for those that come with deft."""
    package = Path(str(resources.files("deft"))).parent
    return shown_value([str(path.relative_to(package)) if path.is_relative_to(package) else path for path in paths])


def finish(plan: Plan, folder: Path, results: Results, before: Before, tell: Narrator) -> None:
    """Write picture, report and `quickstart.json` (last, as the sign that all is there), and print where to go."""
    write_outcome(folder, results, plan.lang)
    write_rows(folder / "rows_before.jsonl", before.rows)
    for state in folder.glob("checkpoint-*/optimizer.pt"):  # twice the weights, and of use only to go on training
        remove(state)
    stored = {
        "key": plan.key,
        "lang": plan.lang,
        "total_time_s": tell.total_s(),
        "resumed": bool(tell.resumed_stages),
        "results": to_json(results),
    }
    write_json(folder / FILE_NAME, stored)
    remove(plan.parts)
    say_where_to_go(plan, folder, results, tell, stored=stored)


def show_finished(folder: Path, plan: Plan, tell: Narrator) -> None:
    """Show a finished quickstart again; its report is written again where it is missing."""
    stored = read_object(folder / FILE_NAME)
    results = from_json(stored["results"])
    if not (folder / "report.html").exists():
        write_report(folder, results, plan.lang)
    say(tell.console, "[bold]{heading}[/]", heading=tell.text("stored", folder=folder))
    tell.console.print(Padding(changes_table(results.changes, plan.lang), (1, 0, 0, 2)))
    show_replies(results.replies, tell)
    say_where_to_go(plan, folder, results, tell, stored=stored)
    tell.say("again", style="dim", flags=repeating_flags(plan))


def show_replies(pairs: Sequence[ReplyPair], tell: Narrator) -> None:
    """Print each prompt with its two replies."""

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for pair in pairs:
        table.add_row(tell.text("asked"), Text(pair.prompt), style="bold")
        for when, reply, verdict in (
            ("was", pair.before, pair.before_verdict),
            ("now", pair.after, pair.after_verdict),
        ):
            table.add_row(tell.text(when), Text(visible(reply, keep="\n") or "–"))
            if verdict:
                table.add_row("", Text(f"← {verdict}", style="yellow"))
        table.add_row("", "")
    tell.console.print(Padding(table, (1, 0, 0, 2)))
    tell.say("worth", style="dim")


def say_where_to_go(plan: Plan, folder: Path, results: Results, tell: Narrator, *, stored: Mapping[str, Any]) -> None:
    """Print report, next commands, and the result."""
    console, texts = tell.console, ENDING_TEXTS[plan.lang]
    say_files(console, folder, plan.lang)
    activate = [(f"source {ACTIVATE}", texts["activate"])] if needs_activation() else []
    say_next(console, [*activate, *next_commands(plan, folder)], plan.lang)
    say_result(console, results.changes, plan.lang)
    time = readable_time(stored["total_time_s"])
    cost = texts["cost_resumed" if stored["resumed"] else "cost"].format(rows=results.num_train_rows, time=time)
    say(console, "  {cost}", cost=cost)
    warn_of_language(plan, tell)


def needs_activation() -> bool:
    """Say whether `deft` is installed in the project's environment only, which this shell has not entered."""
    return shutil.which("deft") is None and ACTIVATE.exists()


def next_commands(plan: Plan, folder: Path, *, shown: Callable[[Any], str] = str) -> list[tuple[str, str]]:
    """Return what to type next, and what each does.

    `shown` turns a path or a model's name into text: as it is for the terminal, without the machine's folders for a
    report.
    """
    texts = ENDING_TEXTS[plan.lang]
    run, model = (shlex.quote(shown(value)) for value in (best_of(folder, plan.runs), plan.config.model))
    page = [(f"python {CHAT_PAGE} --model_name_or_path {run}", texts["page"])] if CHAT_PAGE.is_file() else []
    return [
        (f"deft chat {run}", texts["chat"]),
        *page,
        (f"deft data audit my_data.jsonl --model {model}", texts["audit"]),
        (f"deft train --model {model} --train my_data.jsonl", texts["train"]),
    ]


# --- whether a reply is right ---------------------------------------------------------------------------------------


def verdicts(prompt: str, before: str, after: str, lang: Lang) -> dict[str, str]:
    """Return the verdicts on two replies as `ReplyPair` takes them; none on a prompt that has no one right answer."""
    if prompt != PROMPTS[lang][0]:
        return {}
    return {"before_verdict": verdict(prompt, before, lang), "after_verdict": verdict(prompt, after, lang)}


def verdict(prompt: str, reply: str, lang: Lang) -> str:
    """Say whether a reply chooses the right option; the right one is named where it does not."""
    chosen = chosen_option(reply)
    if chosen == RIGHT_OPTION:
        return QUICKSTART_TEXTS[lang]["right"]
    [right] = [line for line in prompt.splitlines() if line.startswith(f"{RIGHT_OPTION}.")]
    return QUICKSTART_TEXTS[lang]["undecided" if chosen is None else "wrong"].format(right=right)


def chosen_option(reply: str) -> str | None:
    """Return the letter that a reply gives as its answer, or the only one it names as an option; None if it is open."""
    if marked := MARKED.findall(reply):
        return str(marked[-1])
    named = set(LISTED.findall(reply))
    return str(named.pop()) if len(named) == 1 else None
