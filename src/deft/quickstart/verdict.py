"""Whether a showcased reply is right: a question with options and a reply in; out, the verdict in words."""

import re

from deft.quickstart.prompts import PROMPTS, RIGHT_OPTION
from deft.report.texts import QUICKSTART_TEXTS, Lang

MARKED = re.compile(r"(?:[Aa]nswer(?: is)?|答案(?:是|为)?)\s*[:：]?\s*([A-D])(?![A-Za-z])")
"""As the example rows end."""
LISTED = re.compile(r"(?<![A-Za-z])([A-D])(?=[.．、:：)）]|\s*$|\s*[。,，])")


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
