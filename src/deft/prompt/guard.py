"""Text that someone typed never becomes a control token, whatever it spells.

In: a rendered text, and where in it the contents stand. Out: token ids, in which every control token was written by
the template, except that a reply may hold control tokens that are not special (`<think>`).

An offending occurrence is cut in two and the pieces are tokenised apart, so the model reads the same characters as
ordinary text. Where a tokenizer cannot do that exactly, the text is refused.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from deft.errors import NotTrainable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHORS = ("", "\n", "。", "=")
"""Texts put before a piece and taken off again, so that a tokenizer does not add the space it adds at a beginning."""

LAYOUT_TAG = re.compile(
    "</?(?:h[1-6]|img|[biup]|br|em|strong|su[bp]|blockquote|[ou]l|li|table|caption|t(?:head|body|foot|r|h|d))/?>"
    "|<!DOCTYPE>"
)
"""HTML that Baichuan2 and Gemma have as pieces of their own: ordinary text of web pages to them."""


class Content(NamedTuple):
    """The part `[start, end)` of a rendered text that a message brought in; the rest is the template's own."""

    start: int
    end: int
    is_reply: bool


class Control(NamedTuple):
    """A control token that the guard let through: its text is `[start, end)`; `place` is where its id stands."""

    start: int
    end: int
    place: int
    token_id: int
    is_special: bool


class GuardedText(NamedTuple):
    """The ids of a text, and every control token among them."""

    ids: list[int]
    controls: list[Control]


class Guard:
    """Encodes text for one tokenizer; made once, since it lists the tokenizer's control tokens.

    Control tokens are the special tokens, the control and user-defined pieces of a SentencePiece model, and the
    other added tokens except those that only extend the vocabulary (`is_vocabulary`). `special` names further tokens
    that no content may make, text to id.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", special: Mapping[str, int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._special = {**special_tokens(tokenizer), **(special or {})}
        self._ids = {**added_tokens(tokenizer), **self._special}
        self._guarded_ids = frozenset(self._ids.values()) - unknown_token_id(tokenizer)
        self._pattern = re.compile(any_of(text for text in self._ids if self._matches(text)))
        joined = self._decode(self._ordinary_ids("a") + self._ordinary_ids("b")).strip()
        self._anchors = ANCHORS if joined == "ab" else ANCHORS[1:]

    def encode(self, text: str, contents: Sequence[Content], *, cut: int | None = None) -> GuardedText:
        """Return the ids of `text`, no control token among them coming from `contents` (in order, not overlapping).

        No token reaches over the place `cut`, if one is given: what stands before it has the ids that it has alone.

        Raises:
            NotTrainable: `control_token_in_text`, if the tokenizer would still make one, or would change the text.
        """
        pieces, found = self._safe_pieces(text, contents, cut)
        ids = self._ordinary_ids(text) if len(pieces) == 1 else self._joined_ids(text, pieces)
        places = [place for place, token_id in enumerate(ids) if token_id in self._guarded_ids]
        found = [match for match in found if self._ids[match.group()] in self._guarded_ids]
        expected = [self._ids[match.group()] for match in found]
        if [ids[place] for place in places] != expected:
            raise self._refusal(text, contents)
        controls = [
            Control(match.start(), match.end(), place, ids[place], match.group() in self._special)
            for match, place in zip(found, places, strict=True)
        ]
        return GuardedText(ids, controls)

    def plain_ids(self, text: str, *, is_reply: bool = False) -> list[int]:
        """Return the ids of a text that is all content, without bos or eos."""
        return self.encode(text, [Content(0, len(text), is_reply)]).ids if text else []

    def special_texts(self, text: str) -> list[str]:
        """Return the special tokens that `text` spells, from left to right."""
        return [found for found in self._pattern.findall(text) if found in self._special]

    def special_spans(self, text: str) -> list[tuple[int, int]]:
        """Return where the special tokens that `text` spells begin and end, from left to right."""
        return [match.span() for match in self._pattern.finditer(text) if match.group() in self._special]

    def controls(self, text: str) -> list[tuple[int, int, int]]:
        """Return where the control tokens that `text` spells begin and end, and their ids, from left to right."""
        found = ((*match.span(), self._ids[match.group()]) for match in self._pattern.finditer(text))
        return [one for one in found if one[2] in self._guarded_ids]

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of all control tokens."""
        return self._guarded_ids

    def has_plain_control(self, text: str) -> bool:
        """Say whether `text` spells a control token that is not special."""
        return any(found not in self._special for found in self._pattern.findall(text))

    def special_ids(self, text: str) -> list[int]:
        """Return the ids of the special tokens that `text` spells, from left to right."""
        return [self._special[found] for found in self._pattern.findall(text) if found in self._special]

    def _safe_pieces(
        self, text: str, contents: Sequence[Content], cut: int | None
    ) -> tuple[list[tuple[int, int]], list[re.Match[str]]]:
        """Cut `text` until no piece spells a control token that its place does not allow; return what is allowed."""
        pieces: list[tuple[int, int]] = []
        allowed: list[re.Match[str]] = []
        pending = [(0, len(text))] if cut is None else [(cut, len(text)), (0, cut)]
        while pending:
            start, end = pending.pop()
            allowed_here: list[re.Match[str]] = []
            for match in self._pattern.finditer(text, start, end):
                place = self._cut(match, contents)
                if place is not None:
                    pending += [(place, end), (start, place)]
                    break
                allowed_here.append(match)
            else:
                pieces.append((start, end))
                allowed += allowed_here
        return pieces, allowed

    def _cut(self, match: re.Match[str], contents: Sequence[Content]) -> int | None:
        """Return where to cut an occurrence: where content and template meet, else its middle; None if it may stay."""
        start, end = match.span()
        last = bisect_right(contents, end - 1, key=lambda content: content.start) - 1
        if last < 0 or contents[last].end <= start:
            return None
        content = contents[last]
        if content.start > start:
            return content.start
        if content.end < end:
            return content.end
        if content.is_reply and match.group() not in self._special:
            return None
        if end - start == 1:
            raise self._refusal(match.group(), [])
        return (start + end) // 2

    def _joined_ids(self, text: str, pieces: Sequence[tuple[int, int]]) -> list[int]:
        """Tokenise the pieces apart and join them; the result reads exactly as `text`, or it is refused."""
        ids: list[int] = []
        for start, end in pieces:
            piece = text[start:end]
            ids += self._ordinary_ids(piece) if start == 0 else self._continuation_ids(piece)
        if self._decode(ids) not in (text, self._decode(self._ordinary_ids(text))):
            raise self._refusal(text, [])
        return ids

    def _continuation_ids(self, piece: str) -> list[int]:
        """Return the ids of a piece from the middle of a text."""
        for anchor in self._anchors:
            anchor_ids = self._ordinary_ids(anchor)
            ids = self._ordinary_ids(anchor + piece)
            if ids[: len(anchor_ids)] == anchor_ids:
                return ids[len(anchor_ids) :]
        raise self._refusal(piece, [])

    def _refusal(self, text: str, contents: Sequence[Content]) -> NotTrainable:
        typed = [text[content.start : content.end] for content in contents] or [text]
        offending = next((found for part in typed if (found := self._pattern.search(part))), None)
        return NotTrainable(
            "control_token_in_text",
            "the text contains a control token, and this tokenizer cannot encode it as ordinary text",
            got=offending.group() if offending else "\n".join(typed),
            fix="take the control token out of the message",
        )

    def _matches(self, text: str) -> bool:
        """Say whether the tokenizer makes a control token of its text (it does not of SentencePiece's `<s>`)."""
        return self._ids[text] in self._ordinary_ids(text)

    def _ordinary_ids(self, text: str) -> list[int]:
        if not text:
            return []
        # A tokenizer that lets no text make control tokens is asked to let it: here some text is a template's.
        lets_none = getattr(self._tokenizer, "split_special_tokens", False)
        allowing = {"split_special_tokens": False} if lets_none else {}
        return self._tokenizer.encode(text, add_special_tokens=False, verbose=False, **allowing)

    def _decode(self, ids: list[int]) -> str:
        return decode_exactly(self._tokenizer, ids)


@lru_cache(maxsize=8)
def _guard_of_size(tokenizer: "PreTrainedTokenizerBase", num_tokens: int) -> Guard:
    return Guard(tokenizer)


def guard_for(tokenizer: "PreTrainedTokenizerBase") -> Guard:
    """Return the guard of a tokenizer, made anew when tokens were added to it."""
    return _guard_of_size(tokenizer, len(tokenizer))


def plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, is_reply: bool = False) -> list[int]:
    """Return the ids of a typed text without bos or eos; no control token is among them (a reply may `<think>`).

    Raises:
        NotTrainable: `control_token_in_text`.
    """
    return guard_for(tokenizer).plain_ids(text, is_reply=is_reply)


def decode_exactly(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Return the text of token ids with control tokens shown and no space added or taken away."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def added_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Return the added tokens that could steer a model, text to id."""
    added = tokenizer.added_tokens_decoder.items()
    return {token.content: index for index, token in added if token.special or not is_vocabulary(token.content)}


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Return the tokens that no content may ever make, replies included, text to id."""
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts.update(tokenizer.all_special_tokens)
    vocabulary = tokenizer.get_vocab()
    found = {text: vocabulary[text] for text in sorted(texts) if text in vocabulary}
    return {**found, **sentencepiece_controls(tokenizer)}


def unknown_token_id(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Return the id of the unknown token, if it means nothing else; any character may make it, so it is no control."""
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, None}
    return frozenset() if tokenizer.unk_token_id in others else frozenset({tokenizer.unk_token_id})


def sentencepiece_controls(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Return the control and user-defined pieces of a SentencePiece model, such as Baichuan2's `<reserved_109>`."""
    processor = getattr(tokenizer, "sp_model", None)
    if processor is None:
        return {}
    from sentencepiece import sentencepiece_model_pb2

    model: Any = vars(sentencepiece_model_pb2)["ModelProto"]
    kinds = model.SentencePiece
    pieces = model.FromString(processor.serialized_model_proto()).pieces
    return {
        piece.piece: index
        for index, piece in enumerate(pieces)
        if piece.type == kinds.CONTROL or (piece.type == kinds.USER_DEFINED and not is_vocabulary(piece.piece))
    }


def is_vocabulary(token: str) -> bool:
    """Say whether an added token only extends the vocabulary: a word, white space, punctuation, or a layout tag.

    Gemma adds runs of spaces and line breaks in this way, Chinese extensions add words, Baichuan2 has "```" and `<td>`.
    They steer nothing, and cutting them would change how ordinary text is read.
    """
    if LAYOUT_TAG.fullmatch(token) or not any(character.isalnum() for character in token):
        return True
    return all(character.isalnum() or character.isspace() or character == "▁" for character in token)


def any_of(texts: Iterable[str]) -> str:
    """Return a pattern that matches the longest of `texts` that stands at a place, and nothing where there is none."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    if not longest_first:
        return "(?!)"
    firsts = "".join(sorted({re.escape(text[0]) for text in longest_first}))  # most places are ruled out by one look
    return f"(?=[{firsts}])(?:{'|'.join(map(re.escape, longest_first))})"
