"""The encoding of models without a chat template: `<user> tokens <eot> <assistant> tokens <eot> …`.

In: messages. Out: token ids, and for each token whether it carries loss. Contents are encoded apart from each other
and from the role tokens, so nothing in a content can reach over its end. A conversation begins with bos where the
model has never read a text without it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from deft.errors import NotTrainable, UserError
from deft.prompt.formats.kinds import Encoded, Tools, TrainReasoning, one_by_one
from deft.prompt.formats.turns import (
    Turn,
    as_text,
    masks_reasoning,
    num_common,
    reasoning_block,
    taught,
    turns_of,
)
from deft.prompt.guard import Guard
from deft.types import Message, check_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLE_TOKENS = ("<user>", "<assistant>", "<eot>")
BAICHUAN2_ROLE_IDS = (197, 198, 199)
"""`<reserved_108>` to `<reserved_110>`."""
BAICHUAN2_RESERVED_OFFSET = 89
"""What the id of `<reserved_N>` is above N in Baichuan2's vocabulary; in Baichuan 1's it is 93."""


class RoleIds(NamedTuple):
    """The ids that open a user turn, open a reply, and end either."""

    user: int
    assistant: int
    end_of_turn: int


class RoleTokenFormat:
    """User and assistant turns between role tokens; loss on replies and the `<eot>` that ends them.

    A system message goes in front of the first user message (`SYSTEM_SEPARATOR` between them) and carries no loss.
    """

    kind = "role_tokens"
    has_system_role = False
    trained_as: Mapping[int, int] = {}

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, begins_with_bos: bool = False) -> None:
        """Find the role tokens of a tokenizer; with `begins_with_bos` a conversation starts with its bos.

        Raises:
            UserError: if it has none; `add_role_tokens` adds them.
        """
        found = find_role_ids(tokenizer)
        if found is None:
            raise UserError(
                "the tokenizer has neither a chat template nor role tokens",
                got=tokenizer.name_or_path or type(tokenizer).__name__,
                fix="fine-tune this base model first (training adds <user>, <assistant>, <eot>), or give a chat model",
            )
        self.role_ids = found
        self._names = RoleNames(*tokenizer.convert_ids_to_tokens(list(found)))
        self._tokenizer = tokenizer
        self._guard = Guard(tokenizer, special=dict(zip(self._names, found, strict=True)))
        self.end_of_turn_ids = (found.end_of_turn,)
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
        stops = (*ends, found.end_of_turn, found.user, found.assistant)
        self.stop_token_ids = tuple(dict.fromkeys(token_id for token_id in stops if token_id is not None))
        self._bos = str(tokenizer.bos_token) if begins_with_bos else ""
        self._bos_ids = [int(tokenizer.bos_token_id)] if begins_with_bos else []

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Return the format that `to_dict` described."""
        return cls(tokenizer, begins_with_bos=stored.get("begins_with_bos", False))

    def to_dict(self) -> dict[str, Any]:
        """Return the ids that the format uses, as JSON values."""
        return {
            "kind": self.kind,
            **({"begins_with_bos": True} if self._bos_ids else {}),
            "role_ids": self.role_ids._asdict(),
            "end_of_turn_ids": list(self.end_of_turn_ids),
            "stop_token_ids": list(self.stop_token_ids),
        }

    def render_prompt(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return the prompt as text to look at: the contents between the names of the role tokens."""
        check_conversation(messages, ends_with="user")
        names = self._names
        turns = as_text(turns_of(messages, has_system_role=False), tools)
        opened = (f"{getattr(names, turn.role)}{turn.content}{names.end_of_turn}" for turn in turns)
        return self._bos + "".join(opened) + names.assistant

    def encode_prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """Return the ids up to where the assistant's next reply begins.

        Raises:
            NotTrainable: if a text cannot be kept from spelling control tokens.
        """
        check_conversation(messages, ends_with="user")
        turns = as_text(turns_of(messages, has_system_role=False), tools)
        turn_ids = [token_id for turn in turns for token_id in self._turn_ids(turn)]
        return [*self._bos_ids, *turn_ids, self.role_ids.assistant]

    def encode_conversation(
        self, messages: Sequence[Message], tools: Tools = (), *, train_reasoning: TrainReasoning = "last"
    ) -> list[Encoded]:
        """Return the one sequence of a conversation; loss is on each reply and its `<eot>`.

        Raises:
            NotTrainable: if a text cannot be kept from spelling control tokens, or there are tools.
        """
        check_conversation(messages, ends_with="assistant")
        messages = taught(messages)
        turns = turns_of(messages, has_system_role=False)
        ids: list[int] = [*self._bos_ids]
        weights = [0.0] * len(ids)
        for place, (turn, written) in enumerate(zip(turns, as_text(turns, tools), strict=True)):
            turn_ids = self._turn_ids(written)
            ids += turn_ids
            num_masked = 1
            if masks_reasoning(turns, place, train_reasoning):
                num_masked += num_common(turn_ids[1:], self._guard.plain_ids(reasoning_block(turn), is_reply=True))
            weight = turn.weight if turn.role == "assistant" else 0.0
            weights += [0.0] * num_masked + [weight] * (len(turn_ids) - num_masked)
        return [Encoded(ids, weights, len(messages))]

    def encode_conversations(
        self, conversations: Sequence[tuple[Sequence[Message], Tools]], *, train_reasoning: TrainReasoning = "last"
    ) -> list[list[Encoded] | NotTrainable]:
        """Return what `encode_conversation` returns or raises for each of many conversations."""
        return one_by_one(self, conversations, train_reasoning)

    def _turn_ids(self, turn: Turn) -> list[int]:
        is_reply = turn.role == "assistant"
        opening = self.role_ids.assistant if is_reply else self.role_ids.user
        return [opening, *self._guard.plain_ids(turn.content, is_reply=is_reply), self.role_ids.end_of_turn]


class RoleNames(NamedTuple):
    """The role tokens as text."""

    user: str
    assistant: str
    end_of_turn: str


def find_role_ids(tokenizer: "PreTrainedTokenizerBase") -> RoleIds | None:
    """Return the role tokens of a tokenizer: Baichuan2's reserved ones, or those called `ROLE_TOKENS`; else None."""
    if has_reserved_pieces(tokenizer, BAICHUAN2_ROLE_IDS):
        return RoleIds(*BAICHUAN2_ROLE_IDS)
    vocabulary = tokenizer.get_vocab()
    if all(name in vocabulary for name in ROLE_TOKENS):
        return RoleIds(*(vocabulary[name] for name in ROLE_TOKENS))
    return None


def has_reserved_pieces(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int]) -> bool:
    """Say whether these ids are Baichuan2's reserved pieces, which are there for roles."""
    if max(token_ids) >= len(tokenizer):
        return False
    pieces = [f"<reserved_{token_id - BAICHUAN2_RESERVED_OFFSET}>" for token_id in token_ids]
    return tokenizer.convert_ids_to_tokens(list(token_ids)) == pieces


def writes_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Say whether a tokenizer's own encoding of a text begins with bos, so that its model has read none without it."""
    ids = tokenizer.encode("a")
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def add_role_tokens(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Give a tokenizer the role tokens it lacks, and return how many; the caller resizes the model's embeddings."""
    if find_role_ids(tokenizer) is not None:
        return 0
    return tokenizer.add_tokens(list(ROLE_TOKENS), special_tokens=True)
