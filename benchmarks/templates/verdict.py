"""What becomes of one template: every conversation is exact, refused rightly or needlessly, or wrong.

In: a template. Out: a `Verdict` on each conversation, plain values that a process can hand back.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.templates import marks
from benchmarks.templates.conversations import KINDS, Case, typed
from benchmarks.templates.fetch import Template
from benchmarks.templates.render import Unbuildable
from benchmarks.templates.served import Judge, faults_of
from benchmarks.templates.tokenizers import tokenizer_for
from deft.errors import NotTrainable, UserError
from deft.prompt.formats.template import TemplateFormat

Outcome = Literal["exact", "refused", "needless", "wrong"]
"""`refused`: no exact row can be built; `needless`: refused, though the judge can build one."""
FORBIDDEN_REMEDY = "role_tokens"
"""New role tokens on an instruct model are no remedy."""


@dataclass(frozen=True)
class Verdict:
    """What became of one conversation: `reason` and `remedy` of a refusal, `detail` of a fault or of the judge."""

    kind: str
    case: str
    outcome: Outcome
    reason: str = ""
    remedy: str = ""
    detail: str = ""
    num_sequences: int = 0


@dataclass
class Tried:
    """All verdicts on a template with one kind of tokenizer, and what it is like."""

    source: str
    name: str
    tokenizer: str
    verdicts: list[Verdict] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    reasoning: str = ""
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """The template's source and name."""
        return f"{self.source}/{self.name}"

    def count(self, outcome: Outcome, kind: str | None = None) -> int:
        """Return how many conversations of a kind had an outcome."""
        return sum(one.outcome == outcome and kind in (None, one.kind) for one in self.verdicts)

    def count_of(self, kind: str) -> int:
        """Return how many conversations of a kind there are."""
        return sum(one.kind == kind for one in self.verdicts)


def tried(template: Template, tokenizer_kind: str) -> Tried:
    """Try a template on every conversation."""
    logging.disable(logging.WARNING)
    began_at = time.monotonic()
    found = Tried(template.source, template.name, tokenizer_kind)
    tokenizer = tokenizer_for(template.text, tokenizer_kind)
    judge = Judge(tokenizer)
    chat_format: TemplateFormat | UserError
    try:
        made = chat_format = TemplateFormat(tokenizer)
    except UserError as error:
        chat_format = error
    else:
        found.ends = [str(name) for name in tokenizer.convert_ids_to_tokens(list(made.end_of_turn_ids))]
        found.reasoning = judge.renders.takes_reasoning
        if tokenizer_kind == "bytes":
            found.marks = marks.differences(tokenizer, judge.renders, made)
    for kind, cases in cases_for(judge, tokenizer_kind).items():
        found.verdicts += [judged(judge, chat_format, kind, case) for case in cases]
    found.seconds = time.monotonic() - began_at
    return found


def cases_for(judge: Judge, tokenizer_kind: str) -> dict[str, tuple[Case, ...]]:
    """Return all conversations, by kind; one of them types the control strings of the template's own first turn.

    Where a space is put before texts, that one cannot be read back piece by piece, and is left out.
    """
    written = judge.written_specials()[:3] if tokenizer_kind != "space" else []
    return {**KINDS, "typed": (typed(tuple(written)),)} if written else dict(KINDS)


def judged(judge: Judge, chat_format: TemplateFormat | UserError, kind: str, case: Case) -> Verdict:
    """Encode a conversation, and judge what comes out."""
    try:
        if isinstance(chat_format, UserError):
            raise chat_format
        made = chat_format.encode_conversation(case.messages, case.tools, train_reasoning=case.train_reasoning)
    except UserError as error:
        return refusal(judge, kind, case, error)
    try:
        faults = faults_of(judge, case, made, chat_format.stop_token_ids)
        history = case.messages[:-1]
        if not case.typed and chat_format.encode_prompt(history, case.tools) != judge.prompt_ids(history, case.tools):
            faults.append("the prompt that deft feeds is another than the one that the template writes")
    except Unbuildable as why:
        faults = [f"made, though it cannot be: {why}"]
    outcome: Outcome = "wrong" if faults else "exact"
    return Verdict(kind, case.name, outcome, detail=" | ".join(faults)[:2000], num_sequences=len(made))


def refusal(judge: Judge, kind: str, case: Case, error: UserError) -> Verdict:
    """Return the verdict on a refusal: whether an exact row can be built all the same."""
    reason = error.reason if isinstance(error, NotTrainable) else f"whole template: {error.what}"
    detail, outcome = "", "needless"
    try:
        judge.expected(case)  # control strings that were typed can always be encoded with these tokenizers
    except Unbuildable as why:
        detail, outcome = str(why), "refused"
    if not error.fix or FORBIDDEN_REMEDY in error.fix:
        detail, outcome = f"the remedy is {error.fix!r}", "wrong"
    got = f" ({error.got})" if error.got else ""
    return Verdict(kind, case.name, outcome, reason[:300], error.fix or "", f"{detail}{got}"[:600])  # type: ignore[arg-type]
