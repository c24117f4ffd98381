"""The first judge: every reply as it is served, built by brute force from the definition alone.

A row is right if each reply that is to be trained stands in it once, behind exactly the ids that are fed for it
(`apply_chat_template(history, add_generation_prompt=True)`, tokenized), followed by all that ends the turn, and nothing
else carries loss. In: a template's tokenizer, a conversation, and the sequences that deft made of it. Out: what is
wrong with them, or why no exact row can be built. Nothing of `deft.prompt` is used.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from benchmarks.templates.conversations import Case
from benchmarks.templates.render import MARK, TAGS, THOUGHT, Renders, Unbuildable
from deft.types import Message


def any_of(texts: Iterable[str]) -> str:
    """Return a pattern that matches any of the texts."""
    return "(?:" + "|".join(map(re.escape, texts)) + ")"


OPEN, CLOSE = (any_of(pair[place] for pair in TAGS) for place in (0, 1))
THINKING_END = re.compile(rf"\s*(?P<opened>{OPEN}\s*)?(?P<closed>{CLOSE}\s*)?\Z")
EMPTY_BLOCK = re.compile(rf"\s*(?:{OPEN}\s*)?{CLOSE}\s*")
LATER = "Zqlater"


class Sequenced(Protocol):
    """A sequence as deft returns it."""

    @property
    def ids(self) -> list[int]:
        """The tokens."""

    @property
    def weights(self) -> list[float]:
        """The weight of each token's loss; 0 where it carries none."""


class Expected(NamedTuple):
    """A reply that is to be trained: the text and ids of its prompt, and a pattern of what has to follow.

    `thought` is a group of the pattern, as is `said`: what may be without loss if the reasoning is masked, and the
    rest, which never may.
    """

    place: int
    prompt: str
    prompt_ids: list[int]
    pattern: re.Pattern[str]
    weight: float
    masked: bool


class Judge:
    """Judges the sequences of one template's tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.renders = Renders(tokenizer, template_kwargs or {})
        self.special = {
            token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._specials = re.compile("|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) or "(?!)")

    # --- what is expected ---------------------------------------------------------------------------------------------

    def expected(self, case: Case) -> list[Expected]:
        """Return all replies that are to be trained.

        Raises:
            Unbuildable: if one cannot be built.
        """
        messages = self.renders.prepared(case.messages)
        trained = [place for place, one in enumerate(messages) if one.role == "assistant" and one.weight]
        return [self._reply(messages[: place + 1], case, is_last=place == trained[-1]) for place in trained]

    def _reply(self, messages: list[Message], case: Case, *, is_last: bool) -> Expected:
        *history, reply = messages
        prompt = self.renders.text(history, case.tools, prompt=True)
        self._check_shown(history, case.tools)
        masked = bool(reply.reasoning) and not (
            case.train_reasoning == "all" or (case.train_reasoning == "last" and is_last)
        )
        marked = with_mark(reply)
        whole = self.renders.text(messages, case.tools, prompt=False)
        with_marks = self.renders.text([*history, marked], case.tools, prompt=False)
        body_ends = with_marks.find(MARK)
        behind = with_marks[body_ends + len(MARK) :]
        value = whole[body_ends : len(whole) - len(behind)]
        if with_marks.count(MARK) != 1 or with_marks.replace(MARK, value) != whole:
            raise Unbuildable("the reply is not written once" if not reply.tool_calls else "a call is not written once")
        self._check_calls_shown(history, reply, case.tools)
        if not reply.tool_calls and value != reply.content:  # arguments may be written with escapes
            raise Unbuildable("the reply is not written as it is")
        end = self._end(history, marked, case.tools, behind)
        before = self._before(history, case.tools, prompt, with_marks[:body_ends], reply)
        said = re.escape(value + end)
        if set(self._specials.findall(before.replace("\\", "") + value + end)[:-1]) & {*self._stops}:
            raise Unbuildable("the template writes the token that ends replies within one")
        pattern = rf"(?P<thought>{before})(?P<said>{said})"
        ids = self.ids(prompt)
        return Expected(len(history), prompt, ids, re.compile(pattern, re.DOTALL), reply.weight, masked)

    def _check_shown(self, history: Sequence[Message], tools: Sequence[Any]) -> None:
        """Check that the prompt holds every text of the history, and the name of every tool and call, at all."""
        for place, message in enumerate(history):
            changed = []
            if message.content:
                changed.append(replace(message, content=MARK))
            if message.tool_calls:
                changed.append(with_mark(message))
            for one in changed:
                if MARK not in self.renders.text([*history[:place], one, *history[place + 1 :]], tools, prompt=True):
                    what = "a call" if one.tool_calls and one.content != MARK else f"the text of a {one.role} message"
                    raise Unbuildable(f"the prompt hides {what}")
        text = self.renders.text(history, tools, prompt=True) if tools else ""
        if not all(tool["function"]["name"] in text.replace(MARK, "") for tool in tools):
            raise Unbuildable("the prompt hides the tools")

    def _check_calls_shown(self, history: list[Message], reply: Message, tools: Sequence[Any]) -> None:
        """Check that a reply with calls shows each of them, and the text beside them."""
        changed = [replace(reply, content=MARK)] if reply.content else []
        for place in range(len(reply.tool_calls)):
            changed.append(with_mark(reply, place))
        for one in changed:
            if MARK not in self.renders.text([*history, one], tools, prompt=False):
                raise Unbuildable("the reply hides " + ("its text" if one.content == MARK else "one of its calls"))

    def _before(self, history: list[Message], tools: Sequence[Any], prompt: str, whole: str, reply: Message) -> str:
        """Return a pattern of what the model writes between the prompt and its reply; `whole` ends before the reply."""
        thought = re.escape(reply.reasoning)
        closed = THINKING_END.search(prompt)
        if reply.reasoning and self.renders.way.inside and closed and closed["closed"]:
            raise Unbuildable("the prompt closes the thinking, and the row has reasoning")
        if whole.startswith(prompt):
            written = whole[len(prompt) :]
            if not reply.reasoning or reply.reasoning in written:
                return re.escape(written)
            return self._thinking(prompt, EMPTY_BLOCK.sub("", written, count=1), thought)
        asks, turn = self._behind_last(history, tools, prompt, whole, reply)
        ends = THINKING_END.search(asks)
        assert ends is not None  # it matches nothing as well
        base = asks[: ends.start()]
        place = behind_words(turn, base)
        if place is None:
            return self._behind_longer_prompt(asks, turn, reply)
        written = turn[place:]
        spaces = ""
        if turn[:place] != asks:
            written, spaces = written.lstrip(), r"\s*"
        if not reply.reasoning:
            if ends["closed"] or not ends["opened"]:
                left = written if not EMPTY_BLOCK.match(written) else EMPTY_BLOCK.sub("", written, count=1)
                return r"\s*" if not left.strip() else spaces + re.escape(left)
            return self._thinking(prompt, written, thought)
        if ends["closed"]:
            raise Unbuildable("the prompt closes the thinking, and the row has reasoning")
        body = written.partition(reply.reasoning)[2] if reply.reasoning in written else written
        rest = re.sub(rf"^\s*{CLOSE}\s*", "", re.sub(rf"^\s*{OPEN}\s*", "", body))
        return self._thinking(prompt, rest, thought)

    def _behind_longer_prompt(self, asks: str, turn: str, reply: Message) -> str:
        """Return a pattern of what the model writes behind a prompt that ends with words that no turn begins with."""
        if reply.reasoning and reply.reasoning not in turn:
            common = common_prefix(asks, turn)
            return self._thinking(asks, turn[len(common) :], re.escape(reply.reasoning))
        anchor = reply.reasoning or (reply.content if reply.tool_calls else "")
        lead = turn.partition(anchor)[0] if anchor else turn
        written = turn[len(lead) :]
        if not asks.startswith(lead) or not (written == "" or written.startswith(anchor or "\0")):
            raise Unbuildable("the turn begins in another way than the prompt for it")
        return re.escape(written)

    def _thinking(self, prompt: str, rest: str, thought: str) -> str:
        """Return a pattern of a thinking block behind the prompt, and of the rest, which the template writes."""
        ends = THINKING_END.search(prompt)
        assert ends is not None
        if ends["closed"] and thought:
            raise Unbuildable("the prompt closes the thinking, and the row has reasoning")
        rest = re.sub(rf"^\s*(?:{OPEN}\s*)?(?:{CLOSE}\s*)?", "", rest)
        if self._layout and thought and not ends["opened"]:
            opens, closes = self._layout
            closes = closes.removesuffix(rest)
            learned = re.escape(opens) + thought + re.escape(closes) + re.escape(rest)
        else:
            learned = r"(?!)"
        own = [pair for pair in TAGS if pair[1] in self.renders.template] or TAGS[:1]
        opening = "" if ends["opened"] else any_of(opens for opens, _ in own)
        closing = any_of(closes for _, closes in own)
        return rf"(?:{learned}|\s*{opening}\s*{thought}\s*{closing}\s*{re.escape(rest)})"

    @cached_property
    def _layout(self) -> tuple[str, str] | None:
        """What the template itself writes around the reasoning of a lone reply, where it shows it behind the prompt."""
        history = [Message(role="user", content=LATER)]
        reply = Message(role="assistant", content=MARK, reasoning=THOUGHT)
        try:
            asks = self.renders.text(history, (), prompt=True).rpartition(LATER)[2]
            turn = self.renders.text([*history, reply], (), prompt=False).rpartition(LATER)[2]
        except Unbuildable:
            return None
        if not turn.startswith(asks) or THOUGHT not in turn:
            return None
        opens, _, rest = turn[len(asks) :].partition(THOUGHT)
        return opens, rest.partition(MARK)[0]

    def _behind_last(
        self, history: list[Message], tools: Sequence[Any], prompt: str, whole: str, reply: Message
    ) -> tuple[str, str]:
        """Return what stands behind the history's last text: in the prompt, and before the reply."""
        last = replace(history[-1], content=LATER)
        asks = self.renders.text([*history[:-1], last], tools, prompt=True).rpartition(LATER)[2]
        marked = self.renders.text([*history[:-1], last, with_mark(reply)], tools, prompt=False)
        turn = marked[: marked.rindex(MARK)].rpartition(LATER)[2]
        if not (prompt.endswith(asks) and whole.endswith(turn)):
            raise Unbuildable("the turn begins in another way than the prompt for it")
        return asks, turn

    @cached_property
    def _stops(self) -> tuple[str, ...]:
        """The tokens that end a reply of text."""
        history = [Message(role="user", content="?")]
        reply = Message(role="assistant", content=MARK)
        as_last = self.renders.text([*history, reply], (), prompt=False).rpartition(MARK)[2]
        end = self._specials.findall(self._end(history, reply, (), as_last))[-1]
        return (end, *filter(None, (self.tokenizer.eos_token, self.tokenizer.bos_token)))

    # --- the end of a turn --------------------------------------------------------------------------------------------

    def _end(self, history: list[Message], reply: Message, tools: Sequence[Any], as_last: str) -> str:
        """Return all that ends the turn behind the reply's last text, up to the token that generation stops at."""
        if reply.tool_calls:
            later = [Message(role="tool", content=LATER, name=call.name, call_id=call.id) for call in reply.tool_calls]
        else:
            later = [Message(role="user", content=LATER)]
        try:
            text = self.renders.text([*history, reply, *later], tools, prompt=False)
        except Unbuildable:
            text = ""
        behind = text.rpartition(MARK)[2] if MARK in text else ""
        between = behind.partition(LATER)[0] if LATER in behind else ""
        opening = self._opening()
        common = common_prefix(as_last, between)
        opens = next(iter(self._specials.findall(opening)), None)
        ends = [match.end() for match in self._specials.finditer(common)]
        if len(ends) > 1 and common[: ends[-1]].endswith(opens or "\0") and common.rstrip() != as_last.rstrip():
            ends.pop()  # the template opens a turn of the assistant by itself
        eos = self.tokenizer.eos_token or "\0"
        own_end = bool(ends) and (not reply.tool_calls or common[: ends[-1]].endswith(self._stops))
        if ends and not (eos in as_last and (eos in between or not own_end)):
            return common[: ends[-1]]
        if ends:
            return self._up_to_eos(as_last)
        if self._specials.search(as_last):
            return self._up_to_eos(self._first_run(as_last))
        own = between[: len(between) - len(common_suffix(between, opening))]
        if opens and self._specials.search(own.partition(opens)[0]):
            own = own.partition(opens)[0]
        if ends := [match.end() for match in self._specials.finditer(own)]:
            return self._up_to_eos(own[: ends[-1]])
        if found := self._specials.search(between):
            return between[: found.end()]
        raise Unbuildable("no special token follows a reply")

    def _opening(self) -> str:
        """Return how the first turn of a user opens, without bos."""
        text = self.renders.text([Message(role="user", content=LATER)], prompt=True)
        return text.partition(LATER)[0].removeprefix(self.tokenizer.bos_token or "")

    def _first_run(self, text: str) -> str:
        """Return the text up to where the first special tokens end that stand side by side."""
        end = 0
        for match in self._specials.finditer(text):
            if end and match.start() != end:
                break
            end = match.end()
        return text[:end]

    def _up_to_eos(self, text: str) -> str:
        before, eos, _ = text.partition(self.tokenizer.eos_token or "\0")
        return before + eos

    # --- ids ----------------------------------------------------------------------------------------------------------

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text that a template wrote."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[int]:
        """Return the ids of the prompt for a reply to messages."""
        return self.ids(self.renders.text(self.renders.prepared(messages), tools, prompt=True))

    def written_specials(self) -> list[str]:
        """Return the special tokens that the template writes around one exchange, in their order; not bos."""
        history = [Message(role="user", content="?")]
        try:
            text = self.renders.text([*history, Message(role="assistant", content=MARK)], prompt=False)
        except Unbuildable:
            return []
        found = dict.fromkeys(self._specials.findall(text))
        return [name for name in found if name != self.tokenizer.bos_token]

    def decoded(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens shown."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def read(self, ids: Sequence[int], words: Mapping[str, str]) -> str:
        """Return the text of ids, with words in place of control strings that are no special tokens."""
        numbers = set(self.special.values())
        found = []
        for is_special, group in groupby(ids, key=lambda number: number in numbers):
            text = self.decoded(list(group))
            found.append(text if is_special else replaced(text, words))
        return "".join(found)

    def follows(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text of ids behind those of a prompt."""
        before = self.decoded(prompt_ids)
        whole = self.decoded([*prompt_ids, *ids])
        return whole[len(before) :] if whole.startswith(before) else self.decoded(ids)


# --- the verdict ------------------------------------------------------------------------------------------------------


def faults_of(judge: Judge, case: Case, sequences: Sequence[Sequenced], stop_ids: Sequence[int]) -> list[str]:
    """Return what is wrong with the sequences that were made of a conversation; nothing if they are exact.

    Raises:
        Unbuildable: if no exact row can be built, whatever they are.
    """
    if case.typed:
        return faults_of_typed(judge, case, sequences)
    expected = judge.expected(case)
    times = dict.fromkeys((one.place for one in expected), 0)
    faults = []
    for sequence in sequences:
        for start, end in runs(sequence.weights):
            found = [
                one
                for one in expected
                if len(one.prompt_ids) <= start and sequence.ids[: len(one.prompt_ids)] == one.prompt_ids
            ]
            if not found:
                shown = judge.decoded(sequence.ids[max(0, start - 30) : start])
                faults.append(
                    f"trained behind no served prompt: …{shown!r} ⟦{judge.decoded(sequence.ids[start:end])!r}⟧"
                )
                continue
            one = max(found, key=lambda each: len(each.prompt_ids))
            times[one.place] += 1
            faults += faults_of_run(judge, one, sequence, (start, end), stop_ids)
    faults += [f"reply {place} is trained {count} times" for place, count in times.items() if count != 1]
    return faults


def faults_of_run(
    judge: Judge, one: Expected, sequence: Sequenced, run: tuple[int, int], stop_ids: Sequence[int]
) -> list[str]:
    """Return what is wrong with the tokens of a run, which carry loss behind the prompt of `one`."""
    start, end = run
    num_prompt = len(one.prompt_ids)
    ids = sequence.ids[num_prompt:end]
    text = judge.follows(one.prompt_ids, ids)
    found = one.pattern.fullmatch(text)
    if not found:
        return [f"reply {one.place}: trained {text!r}, expected {one.pattern.pattern!r}"]
    faults = []
    silent = judge.follows(one.prompt_ids, sequence.ids[num_prompt:start])
    if start > num_prompt and not one.masked:
        faults.append(f"reply {one.place}: {silent!r} is not trained")
    if one.masked and not (found["thought"].strip().startswith(silent.strip()) and start > num_prompt):
        faults.append(f"reply {one.place}: {silent!r} is without loss, {found['thought']!r} should be")
    if {*sequence.weights[start:end]} != {one.weight}:
        faults.append(f"reply {one.place}: weights {sorted({*sequence.weights[start:end]})}, not {one.weight}")
    if ids[-1] not in stop_ids:
        faults.append(f"reply {one.place}: ends with {judge.decoded(ids[-1:])!r}, which stops no generation")
    if early := [token for token in ids[:-1] if token in stop_ids]:
        faults.append(f"reply {one.place}: holds the stop token {judge.decoded(early[:1])!r}")
    together = judge.ids(one.prompt + text)
    if together[:num_prompt] == one.prompt_ids and together[num_prompt:] != ids:
        faults.append(f"reply {one.place}: other tokens than its text has")
    return faults


def faults_of_typed(judge: Judge, case: Case, sequences: Sequence[Sequenced]) -> list[str]:
    """Return what is wrong where somebody typed control strings, which must not become control tokens.

    The rows must read as those with words in place of the strings do, the template's own tokens being whole.
    """
    words = {control: f"Zqtyped{number}" for number, control in enumerate(case.typed)}
    harmless = [replace(message, content=replaced(message.content, words)) for message in case.messages]
    left = judge.expected(case._replace(messages=tuple(harmless)))
    faults = []
    for sequence in sequences:
        for start, end in runs(sequence.weights):
            prompt, said = judge.read(sequence.ids[:start], words), judge.read(sequence.ids[start:end], words)
            fits = [one for one in left if judge.read(one.prompt_ids, {}) == prompt and one.pattern.fullmatch(said)]
            if not fits:
                faults.append(f"…{prompt[-60:]!r} ⟦{said!r}⟧ is no served reply")
            left = [one for one in left if one not in fits]
    return faults + [f"reply {one.place} is not trained" for one in left]


def replaced(text: str, words: Mapping[str, str]) -> str:
    """Return a text with words in place of control strings."""
    for control, word in words.items():
        text = text.replace(control, word)
    return text


def runs(weights: Sequence[float]) -> list[tuple[int, int]]:
    """Return where tokens that carry loss stand side by side: beginnings and ends."""
    found, place = [], 0
    for carries_loss, group in groupby(weights, key=lambda weight: weight > 0):
        length = len(list(group))
        if carries_loss:
            found.append((place, place + length))
        place += length
    return found


def with_mark(reply: Message, place: int = -1) -> Message:
    """Return a reply with a mark in place of its last text: its content, or the argument of the call at `place`."""
    if not reply.tool_calls:
        return replace(reply, content=MARK)
    calls = [*reply.tool_calls]
    calls[place] = replace(calls[place], arguments=f'{{"city": "{MARK}"}}')
    return replace(reply, tool_calls=tuple(calls))


def behind_words(text: str, words: str) -> int | None:
    """Return the place in a text behind some words that it begins with, white space aside; None if it does not."""
    if text.startswith(words):
        return len(words)
    place = 0
    for character in "".join(words.split()):
        place += len(text[place:]) - len(text[place:].lstrip())
        if text[place : place + 1] != character:
            return None
        place += 1
    return place


def common_suffix(left: str, right: str) -> str:
    """Return what two texts end with alike."""
    return common_prefix(left[::-1], right[::-1])[::-1]


def common_prefix(left: str, right: str) -> str:
    """Return what two texts begin with alike."""
    pairs = zip(left, right, strict=False)
    return left[: next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))]
