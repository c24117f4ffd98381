"""Examples and what they are encoded to go in; counts come out, and what makes training on them pointless."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deft.errors import NotTrainable
from deft.types import IGNORED_LABEL, EncodedExample, Example, Message, TokenSequence

NO_ABILITY = "(none)"
TOTAL = "total"
TOO_LONG = "too_long"


@dataclass(frozen=True, kw_only=True, slots=True)
class AbilityAudit:
    """The counts of one ability, or of all rows.

    `dropped` counts the rows that cannot be trained, by reason; tokens and lengths are those of the other rows.
    `num_duplicates` counts rows whose id an earlier row has; `num_conflicting` rows whose prompt another row of the
    data has with another reply; `num_open_ended` rows whose last supervised token does not end the turn; `num_split`
    rows that become one sequence for each reply, which takes `num_repeated_tokens` more than one sequence would.
    Lengths are in tokens, of a split row that of its longest sequence; 0 where no row can be trained.
    """

    ability: str
    num_rows: int
    num_tokens: int
    num_supervised: int
    dropped: Mapping[str, int]
    num_duplicates: int
    num_conflicting: int
    num_open_ended: int
    num_split: int
    num_repeated_tokens: int
    length_p50: int
    length_p90: int
    length_max: int

    @property
    def num_dropped(self) -> int:
        """The number of rows that cannot be trained."""
        return sum(self.dropped.values())

    @property
    def num_trainable(self) -> int:
        """The number of rows that can be trained."""
        return self.num_rows - self.num_dropped


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What `audit` found: one entry for each ability, sorted by name, and one for all rows together.

    `longer` names the rows (`source`) that are longer than `max_length_tokens`: they lose their oldest exchanges, or
    are left out. `stop_reasons` say what makes training pointless or wrong, `warnings` what to look at, in sentences.
    """

    abilities: tuple[AbilityAudit, ...]
    total: AbilityAudit
    max_length_tokens: int
    longer: tuple[str, ...]
    stop_reasons: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class Tally:
    """The counts of one ability while rows are being looked at."""

    num_rows: int = 0
    num_supervised: int = 0
    num_duplicates: int = 0
    num_conflicting: int = 0
    num_open_ended: int = 0
    num_split: int = 0
    num_repeated_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)

    def count(self, sequences: Sequence[TokenSequence], end_of_turn_ids: Collection[int]) -> None:
        """Count the sequences of one row that can be trained."""
        lengths = [len(one) for one in sequences]
        self.lengths.append(max(lengths))
        self.num_split += len(sequences) > 1
        self.num_repeated_tokens += sum(lengths) - max(lengths)
        self.num_supervised += sum(one.num_supervised for one in sequences)
        last = sequences[-1].labels
        self.num_open_ended += int(last[last != IGNORED_LABEL][-1]) not in end_of_turn_ids

    def result(self, ability: str) -> AbilityAudit:
        """Return the counts as they stand."""
        p50, p90, longest = percentiles(self.lengths)
        return AbilityAudit(
            ability=ability,
            num_rows=self.num_rows,
            num_tokens=sum(self.lengths) + self.num_repeated_tokens,
            num_supervised=self.num_supervised,
            dropped=dict(sorted(self.dropped.items())),
            num_duplicates=self.num_duplicates,
            num_conflicting=self.num_conflicting,
            num_open_ended=self.num_open_ended,
            num_split=self.num_split,
            num_repeated_tokens=self.num_repeated_tokens,
            length_p50=p50,
            length_p90=p90,
            length_max=longest,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """A held-out example that training data gives away; `reason` is `same_id` or `same_prompt`."""

    train: Example
    held_out: Example
    reason: str

    @property
    def source(self) -> str:
        """Where the held-out example was read."""
        return self.held_out.source


def audit(
    examples: Sequence[Example],
    rows: Iterable[EncodedExample | NotTrainable],
    *,
    max_length_tokens: int,
    end_of_turn_ids: Collection[int],
) -> Audit:
    """Count what every example has been encoded to, for each ability and in all.

    `rows` are the examples as `deft.prompt.encode.encoded_rows` yields them, at most `max_length_tokens` long. A reply
    is open-ended where its last supervised token is not one of `end_of_turn_ids`.
    """
    tallies: dict[str, Tally] = defaultdict(Tally)
    total = Tally()
    conflicting = conflicting_prompts(examples)
    seen: set[str] = set()
    longer: list[str] = []
    for example, row in zip(examples, rows, strict=True):
        if row.reason == TOO_LONG if isinstance(row, NotTrainable) else row.num_exchanges_left_out > 0:
            longer.append(example.source)
        for tally in (tallies[example.ability or NO_ABILITY], total):
            tally.num_rows += 1
            tally.num_duplicates += example.id in seen
            tally.num_conflicting += prompt_key(example) in conflicting
            if isinstance(row, NotTrainable):
                tally.dropped[row.reason] += 1
            else:
                tally.count(row.sequences, end_of_turn_ids)
        seen.add(example.id)
    abilities = tuple(tallies[name].result(name) for name in sorted(tallies))
    whole = total.result(TOTAL)
    return Audit(
        abilities=abilities,
        total=whole,
        max_length_tokens=max_length_tokens,
        longer=tuple(longer),
        stop_reasons=find_stop_reasons(abilities, whole),
        warnings=find_warnings(abilities, whole),
    )


def find_stop_reasons(abilities: Sequence[AbilityAudit], total: AbilityAudit) -> tuple[str, ...]:
    """Say in sentences what makes training pointless or wrong."""
    if total.num_rows == 0:
        return ("there are no rows",)
    if total.num_trainable == 0:
        return (f"no row can be trained: {reasons(total)}",)
    found = []
    if 2 * total.num_dropped > total.num_rows:
        found.append(f"more than half of the rows cannot be trained: {reasons(total)}")
    if total.num_open_ended == total.num_trainable:
        found.append("no reply ends with an end-of-turn token that is trained, so the model would not learn to stop")
    if 2 * total.num_duplicates > total.num_rows:
        found.append(
            f"more than half of the rows are duplicates of others: {total.num_duplicates:,} of {total.num_rows:,}"
        )
    found += [
        f"no row of {one.ability} can be trained: {reasons(one)}"
        for one in abilities
        if one.num_trainable == 0 and len(abilities) > 1
    ]
    return tuple(found)


def find_warnings(abilities: Sequence[AbilityAudit], total: AbilityAudit) -> tuple[str, ...]:
    """Say in sentences what is worth a look before training."""
    found = []
    if total.num_dropped:
        found.append(f"{total.num_dropped:,} of {total.num_rows:,} rows cannot be trained: {reasons(total)}")
    if total.num_open_ended:
        open_ended, all_trainable = total.num_open_ended, total.num_trainable
        found.append(
            f"{open_ended:,} of {all_trainable:,} replies do not end with an end-of-turn token that is trained"
        )
    if total.num_split:
        num_split, num_repeated = total.num_split, total.num_repeated_tokens
        percent = 100 * num_repeated / max(total.num_tokens - num_repeated, 1)
        found.append(
            f"{num_split:,} rows become one sequence for each reply, because the chat template writes earlier turns in "
            f"another way than it served them: {num_repeated:,} tokens more ({percent:.0f} %)"
        )
    if total.num_duplicates:
        found.append(f"{total.num_duplicates:,} of {total.num_rows:,} rows are duplicates of others")
    if total.num_conflicting:
        found.append(f"{total.num_conflicting:,} rows share their prompt with a row that has another reply")
    unnamed = sum(one.num_rows for one in abilities if one.ability == NO_ABILITY)
    if unnamed and len(abilities) > 1:
        found.append(f"{unnamed:,} of {total.num_rows:,} rows name no ability")
    return tuple(found)


def reasons(counts: AbilityAudit) -> str:
    """Return the reasons of dropped rows with their counts, the most frequent first."""
    ordered = sorted(counts.dropped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {reason}" for reason, number in ordered)


def percentiles(lengths: Sequence[int]) -> tuple[int, int, int]:
    """Return the 50th, 90th and 100th percentile: the smallest length that so many of the rows do not exceed."""
    if not lengths:
        return 0, 0, 0
    p50, p90, longest = np.percentile(lengths, [50, 90, 100], method="inverted_cdf")
    return int(p50), int(p90), int(longest)


def conflicting_prompts(examples: Iterable[Example]) -> set[str]:
    """Return the keys of the prompts that occur with more than one reply."""
    replies: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        replies[prompt_key(example)].add(normalised(said_by(example.messages[-1])))
    return {key for key, known in replies.items() if len(known) > 1}


def prompt_key(example: Example) -> str:
    """Return all messages but the last reply, normalised, as one key."""
    return conversation_key(example.messages[:-1])


def conversation_key(messages: Iterable[Message]) -> str:
    """Return roles and normalised contents as one text; equal for what a reader would call the same conversation."""
    return "\n".join(f"{message.role}:{normalised(said_by(message))}" for message in messages)


def said_by(message: Message) -> str:
    """Return what a message says: its content and its calls, without the reasoning that led to them."""
    return "\n".join([message.content, *(f"{call.name} {call.arguments}" for call in message.tool_calls)])


def normalised(text: str) -> str:
    """Return text in Unicode NFKC and lower case, without white space."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def leaks(train: Iterable[Example], held_out: Iterable[Example]) -> tuple[Leak, ...]:
    """Return every held-out example that has the id, or else the normalised prompt, of an example of `train`."""
    by_id: dict[str, Example] = {}
    by_prompt: dict[str, Example] = {}
    for example in train:
        by_id.setdefault(example.id, example)
        by_prompt.setdefault(prompt_key(example), example)
    found = []
    for example in held_out:
        key = prompt_key(example)
        if example.id in by_id:
            found.append(Leak(train=by_id[example.id], held_out=example, reason="same_id"))
        elif key in by_prompt:
            found.append(Leak(train=by_prompt[key], held_out=example, reason="same_prompt"))
    return tuple(found)
