"""Many plain conversations at once: rendered and tokenized once each, on all cores.

In: conversations of turns. Out: what `TemplateFormat.encode_conversation` returns for them, the same ids and weights.
How conversations of one pattern (who speaks when) come out is learned once from marks, as a `Plan`. A row follows it
only where that is proven: its text is the plan's with its own texts put in, it holds none of the words by which the
template decides anything, its control tokens are exactly the plan's, and each prompt ends in the tokens that it has
alone. All other rows are left to the slow way.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import TemplateError, nodes
from numpy.typing import NDArray

from deft.errors import NotTrainable
from deft.prompt.formats.endings import Ending
from deft.prompt.formats.kinds import Encoded
from deft.prompt.formats.probe_template import environment
from deft.prompt.formats.rendering import Renderer, Skeleton, mark, marked, skeleton_of, slots_of
from deft.prompt.formats.replies import served
from deft.prompt.formats.turns import PROBE, Turn, turns_of
from deft.prompt.guard import Guard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_METHODS = frozenset(
    (
        "split",
        "rsplit",
        "startswith",
        "endswith",
        "replace",
        "find",
        "rfind",
        "index",
        "count",
        "partition",
        "rpartition",
    )
)


class PlannedReply(NamedTuple):
    """Where a reply stands among the control tokens of its sequence.

    It begins `tail` tokens after control token number `opens` (counted from 0), and ends with number `ends`.
    """

    turn: int
    opens: int
    tail: list[int]
    ends: int


class PlannedSequence(NamedTuple):
    """A sequence of `num_turns` turns: what the template writes for them less `num_cut` characters, and `added`.

    `words` are those by which the template decides, with the number of times that it writes each itself.
    """

    num_turns: int
    skeleton: Skeleton
    num_cut: int
    added: str
    controls: list[int]
    replies: tuple[PlannedReply, ...]
    words: tuple[tuple[str, int], ...]

    def text(self, rendered: str, turns: Sequence[Turn]) -> str | None:
        """Return the text of a sequence, or None where the template made something else of the turns."""
        text = rendered[: len(rendered) - self.num_cut] + self.added
        if text != self.skeleton.filled_text(turns):
            return None
        return text if all(text.count(word) == number for word, number in self.words) else None

    def weights(self, ids: list[int], turns: Sequence[Turn], is_control: NDArray[np.bool_]) -> list[float] | None:
        """Return the loss weights of the tokens of a sequence, or None where they are not the plan's."""
        places = np.flatnonzero(is_control[ids]).tolist()
        if [ids[place] for place in places] != self.controls:
            return None
        weights: list[float] = []
        for reply in self.replies:
            opens = places[reply.opens] + 1
            begins, ends = opens + len(reply.tail), places[reply.ends] + 1
            if ids[opens:begins] != reply.tail:
                return None
            weights += [0.0] * (begins - len(weights))
            weights += [turns[reply.turn].weight] * (ends - begins)
        return weights if len(weights) == len(ids) else None


Plan = tuple[PlannedSequence, ...]


class Batches:
    """Encodes plain conversations of one template format in batches; what it cannot prove it leaves out (None)."""

    def __init__(
        self,
        renderer: Renderer,
        ending: Ending,
        *,
        tokenizer: "PreTrainedTokenizerBase",
        guard: Guard,
    ) -> None:
        self._renderer = renderer
        self._ending = ending
        self._tokenizer = tokenizer
        self._guard = guard
        self._plans: dict[tuple[Any, ...], Plan | None] = {}
        self._proven: set[tuple[Any, ...]] = set()
        self._words = deciding_words(renderer.template)
        probe = renderer.text(turns_of(PROBE, has_system_role=True)[:2], for_reply=False)
        self._is_fast = self._words is not None and has_fast_ids(tokenizer, [probe])
        self._is_control = np.zeros(max(guard.control_ids, default=0) + len(tokenizer) + 1, dtype=np.bool_)
        self._is_control[list(guard.control_ids)] = True

    def texts(self, turns: Sequence[Turn], *, masks: bool) -> tuple[Plan, list[str]] | None:
        """Return the plan for some turns and the texts of its sequences, or None if they have to go the slow way.

        `masks` says whether reasoning is without loss in some of them.
        """
        if not self._is_fast or masks or any(turn.calls or turn.role == "tool" for turn in turns):
            return None
        key = pattern_of(turns)
        if key not in self._plans:
            self._plans[key] = self._plan(turns)
        plan = self._plans[key]
        if plan is None:
            return None
        texts = []
        for one in plan:
            try:
                rendered = self._renderer.text(turns[: one.num_turns], for_reply=False)
            except NotTrainable:
                return None
            text = one.text(rendered, turns)
            if text is None:
                return None
            texts.append(text)
        return plan, texts

    def encoded(
        self, plan: Plan, turns: Sequence[Turn], ids: Sequence[list[int]], *, num_merged: int
    ) -> list[Encoded] | None:
        """Return the sequences of some turns whose texts have these ids, or None if they have to go the slow way.

        `num_merged` is how many messages more than turns there are.
        """
        found = []
        for one, own in zip(plan, ids, strict=True):
            weights = one.weights(own, turns, self._is_control)
            if weights is None:
                return None
            found.append(Encoded(own, weights, one.num_turns + num_merged))
        return found

    def compare(self, turns: Sequence[Turn], fast: list[Encoded], slow: list[Encoded] | NotTrainable) -> None:
        """Note whether both ways gave the same for a row of a pattern; if not, the pattern has no plan."""
        if fast == slow:
            self._proven.add(pattern_of(turns))
        else:
            self._plans[pattern_of(turns)] = None

    def is_proven(self, turns: Sequence[Turn]) -> bool:
        """Say whether a row of this pattern has been encoded in both ways already."""
        return pattern_of(turns) in self._proven

    def _plan(self, turns: Sequence[Turn]) -> Plan | None:
        """Learn how turns of a pattern come out, from marks in place of their texts."""
        turns = marked(turns, slots_of(turns))
        drafts: list[tuple[str, int, list[tuple[int, int, int]]]] = []  # text, turns, and where replies stand
        try:
            for place, turn in enumerate(turns):
                if turn.role == "assistant" and turn.weight:
                    reply = served(self._renderer, turns[: place + 1], (), self._ending)
                    spans = [(place, reply.start, len(reply.text))]
                    earlier = next((draft for draft in drafts if reply.text.startswith(draft[0])), None)
                    if earlier is not None:
                        spans = earlier[2] + spans
                        drafts[drafts.index(earlier)] = (reply.text, place + 1, spans)
                    else:
                        drafts.append((reply.text, place + 1, spans))
            planned = [self._planned(turns, *draft) for draft in drafts]
        except NotTrainable:
            return None
        return None if any(one is None for one in planned) else tuple(one for one in planned if one is not None)

    def _planned(
        self, turns: Sequence[Turn], text: str, num_turns: int, spans: Sequence[tuple[int, int, int]]
    ) -> PlannedSequence | None:
        rendered = self._renderer.text(turns[:num_turns], for_reply=False)
        written, closing = self._ending.written, self._ending.closing
        shown = [slot for slot in slots_of(turns[:num_turns]) if mark(slot) in text]
        if text != rendered[: len(rendered) - len(written)] + closing or any(text.count(mark(s)) > 1 for s in shown):
            return None
        controls = self._guard.controls(text)
        replies = []
        for turn, start, end in spans:
            opens = max((n for n, one in enumerate(controls) if one[1] <= start), default=None)
            ends = next((n for n, one in enumerate(controls) if one[1] == end), None)
            if opens is None or ends is None or "\ue000" in text[controls[opens][1] : start]:
                return None
            [first, *tail] = fast_ids(self._tokenizer, [text[controls[opens][0] : start]])[0]
            if first != controls[opens][2]:
                return None
            replies.append(PlannedReply(turn, opens, tail, ends))
        return PlannedSequence(
            num_turns=num_turns,
            skeleton=skeleton_of(text, shown),
            num_cut=len(written),
            added=closing,
            controls=[one[2] for one in controls],
            replies=tuple(replies),
            words=tuple((word, text.count(word)) for word in self._words or ()),
        )


def pattern_of(turns: Sequence[Turn]) -> tuple[Any, ...]:
    """Return what turns have in common that differ in their texts alone."""
    return tuple((turn.role, turn.weight != 0, turn.reasoning != "") for turn in turns)


def fast_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts, tokenized on all cores without looking for where each token stands."""
    backend: Any = tokenizer.backend_tokenizer
    return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def has_fast_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> bool:
    """Say whether a tokenizer has a fast backend that gives the same ids; tried on `texts`."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "encode_batch_fast"):
        return False
    cuts_or_pads = backend.truncation is not None or backend.padding is not None
    if cuts_or_pads or getattr(tokenizer, "split_special_tokens", False):
        return False
    slow = [tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in texts]
    return fast_ids(tokenizer, texts) == slow


def deciding_words(template: str) -> tuple[str, ...] | None:
    """Return the texts that a template looks for in others (`'</think>' in content`), or None if that cannot be told.

    A name alone, such as `'tool_calls' in message`, asks for a key.
    """
    try:
        parsed = environment().parse(template)
    except TemplateError:
        return None
    found: set[str] = set()
    for compared in parsed.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compared.ops):
            found |= {text for text in constants(compared.expr) if not text.isidentifier()}
    for call in parsed.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in TEXT_METHODS:
            for argument in call.args:
                found |= constants(argument)
    for applied in parsed.find_all(nodes.Filter):
        if applied.name in ("replace", "split"):
            for argument in applied.args:
                found |= constants(argument)
    return tuple(sorted(text for text in found if text))


def constants(expression: nodes.Node) -> set[str]:
    """Return the texts that stand in an expression as they are."""
    own = {expression.value} if isinstance(expression, nodes.Const) else set()
    inner = {constant.value for constant in expression.find_all(nodes.Const)}
    return {value for value in own | inner if isinstance(value, str)}
