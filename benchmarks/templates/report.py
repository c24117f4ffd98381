"""What was found, as a table, as JSON, and as the table of model families in `docs/chat-format.md`.

In: `Tried` templates. Out: text.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from benchmarks.templates.verdict import Outcome, Tried, Verdict

COLUMNS = ("plain", "loss flags", "reasoning", "tools", "typed")
LETTERS: dict[Outcome, str] = {"exact": "", "refused": "r", "needless": "n", "wrong": "W"}
STYLES: dict[Outcome, str] = {"exact": "green", "refused": "dim", "needless": "yellow", "wrong": "bold red"}


def table_of(found: Sequence[Tried]) -> Table:
    """Return how many conversations of each kind were exact, template by template."""
    table = Table(title="exact conversations; r: refused rightly, n: needlessly, W: wrong", title_justify="left")
    table.add_column("template", overflow="fold")
    table.add_column("tokens")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(escape(one.title), one.tokenizer, *(cell(one, column) for column in COLUMNS))
    return table


def cell(one: Tried, kind: str) -> str:
    """Return the counts of one kind of conversation."""
    total = sum(verdict.kind == kind for verdict in one.verdicts)
    counts = {outcome: one.count(outcome, kind) for outcome in LETTERS}
    further = [
        f"[{STYLES[outcome]}]{count}{LETTERS[outcome]}[/]"
        for outcome, count in counts.items()
        if count and outcome != "exact"
    ]
    style = STYLES["exact"] if counts["exact"] == total else "default"
    return " ".join([*further, f"[{style}]{counts['exact']}/{total}[/]"]) if total else ""


def reasons_of(found: Sequence[Tried], outcome: Outcome) -> list[str]:
    """Return each reason or fault once, with how often it came and with which template first."""
    times: Counter[tuple[str, ...]] = Counter()
    first: dict[tuple[str, ...], tuple[Tried, Verdict]] = {}
    for one in found:
        for verdict in one.verdicts:
            if verdict.outcome == outcome:
                key = key_of(one, verdict)
                times[key] += 1
                first.setdefault(key, (one, verdict))
    lines = []
    for key, count in times.most_common():
        one, verdict = first[key]
        lines.append(f"{count:5}  {verdict.reason or outcome}: {verdict.detail}")
        lines.append(f"       in {one.title}, {verdict.case} ({one.tokenizer})")
        if verdict.remedy:
            lines.append(f"       remedy: {verdict.remedy}")
    return lines


def key_of(one: Tried, verdict: Verdict) -> tuple[str, ...]:
    """Return what makes verdicts one line: rightful refusals by their reason, all others by template, too."""
    if verdict.outcome == "refused":
        return (verdict.reason, verdict.detail.partition(" (")[0].partition(":")[0])
    return (verdict.reason, one.title) if verdict.reason else (one.title, verdict.case)


def marks_of(found: Sequence[Tried]) -> list[str]:
    """Return each difference from templates' own marks, with the templates that have it."""
    by_difference: dict[str, list[str]] = {}
    for one in found:
        for difference in one.marks:
            by_difference.setdefault(difference, []).append(one.title)
    return [f"{len(titles):5}  {difference}: {', '.join(titles)}" for difference, titles in by_difference.items()]


def totals_of(found: Sequence[Tried]) -> list[str]:
    """Return the counts of all conversations, and of templates that are exact in all plain ones."""
    counts = Counter(verdict.outcome for one in found for verdict in one.verdicts)
    buildable = [one for one in found if one.count("refused", "plain") < one.count_of("plain")]
    exact = [one for one in buildable if one.count("needless", "plain") + one.count("wrong", "plain") == 0]
    share = 100 * len(exact) / len(buildable) if buildable else 100.0
    return [
        f"{len(found)} templates: " + ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in LETTERS),
        f"{len(exact)} of {len(buildable)} templates that can be built ({share:.1f} %) are exact "
        "in all plain conversations that can be built",
    ]


def markdown_of(found: Sequence[Tried]) -> str:
    """Return the table of templates for the documentation: those that are alike share a line."""
    names: dict[tuple[str, ...], list[str]] = {}
    for one in found:
        if one.tokenizer == "bytes" and one.count("exact", "plain"):
            ends = " or ".join(f"`{end}`" for end in one.ends)
            cells = (worded(one, "plain"), several_turns(one), reasoning_of(one), worded(one, "tools"), ends)
            names.setdefault(cells, []).append(
                one.name.rpartition(".")[2] if one.name.endswith("_template") else one.name
            )
    lines = [
        "| chat template | plain | five exchanges | reasoning | tools | a reply ends with |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for alike, titles in sorted(names.items(), key=lambda item: item[1][0].casefold()):
        shown: list[str] = [", ".join(dict.fromkeys(titles)), *alike]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |")
    return "\n".join(lines) + "\n"


def reasoning_of(one: Tried) -> str:
    """Say how the template takes reasoning, and how many conversations with it are exact."""
    ways = {"inside": "`<think>` in the reply's text", "hidden": "written by deft, in the template's tags"}
    way = ways.get(one.reasoning, "written by the template")
    said = worded(one, "reasoning")
    return said if said == "refused" else f"{said}, {way}"


def worded(one: Tried, kind: str) -> str:
    """Say how many conversations of a kind are exact."""
    total, exact = one.count_of(kind), one.count("exact", kind)
    return "exact" if exact == total else f"{exact} of {total}" if exact else "refused"


def several_turns(one: Tried) -> str:
    """Say whether the replies of a conversation share one sequence."""
    made = {verdict.case: verdict.num_sequences for verdict in one.verdicts if verdict.outcome == "exact"}
    if "five" not in made:
        return "refused"
    return "one sequence" if made["five"] == 1 else "one per reply"


def json_of(found: Sequence[Tried]) -> list[dict[str, Any]]:
    """Return everything as JSON values."""
    return [asdict(one) for one in found]
