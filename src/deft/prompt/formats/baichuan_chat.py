"""The encoding of Baichuan2-7B-Chat and -13B-Chat: `[system] 195 user 196 assistant 195 user 196 assistant … eos`.

In: messages. Out: token ids, and for each token whether it carries loss. The ids are those of the official chat
function and the loss is that of the official fine-tuning script (github.com/baichuan-inc/Baichuan2, `fine-tune.py`):
a reply is followed by the next user token at once, and what is taught in that place is eos.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deft.errors import NotTrainable, UserError
from deft.prompt.formats.kinds import Encoded, Tools, TrainReasoning, one_by_one
from deft.prompt.formats.role_tokens import has_reserved_pieces
from deft.prompt.formats.turns import Turn, as_text, masks_reasoning, num_common, reasoning_block, taught, turns_of
from deft.prompt.guard import Guard
from deft.types import Message, check_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER_ID, ASSISTANT_ID = 195, 196
"""`<reserved_106>` and `<reserved_107>`."""

GENERATION_CONFIG = "generation_config.json"


class BaichuanChatFormat:
    """The system text as it is, then turns that the user and assistant tokens open; eos after the last reply.

    Loss is on replies and on how they end. Inside a conversation the token after a reply is the next user token,
    because the official chat function writes no eos there; that token carries loss, with eos as its label.
    """

    kind = "baichuan_chat"
    has_system_role = True

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Find the tokens of the format in a tokenizer.

        Raises:
            UserError: if its vocabulary is not Baichuan2's.
        """
        eos_id = tokenizer.eos_token_id
        if not has_reserved_pieces(tokenizer, (USER_ID, ASSISTANT_ID)) or eos_id is None:
            raise UserError(
                "the chat format baichuan_chat needs the vocabulary of Baichuan2",
                got=tokenizer.name_or_path or type(tokenizer).__name__,
                fix="use chat_format: auto",
            )
        names = tokenizer.convert_ids_to_tokens([USER_ID, ASSISTANT_ID])
        self._names = dict(zip(("user", "assistant"), names, strict=True))
        self._guard = Guard(tokenizer, special={self._names["user"]: USER_ID, self._names["assistant"]: ASSISTANT_ID})
        self.end_of_turn_ids = (eos_id,)
        stops = (eos_id, tokenizer.bos_token_id, USER_ID, ASSISTANT_ID)
        self.stop_token_ids = tuple(dict.fromkeys(token_id for token_id in stops if token_id is not None))
        self.trained_as = {USER_ID: eos_id}

    @classmethod
    def from_dict(cls, _: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> Self:
        """Return the format that `to_dict` described."""
        return cls(tokenizer)

    def to_dict(self) -> dict[str, Any]:
        """Return the ids that the format uses, as JSON values."""
        return {
            "kind": self.kind,
            "role_ids": {"user": USER_ID, "assistant": ASSISTANT_ID},
            "end_of_turn_ids": list(self.end_of_turn_ids),
            "stop_token_ids": list(self.stop_token_ids),
        }

    def render_prompt(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return the prompt as text to look at: the contents between the names of the role tokens."""
        check_conversation(messages, ends_with="user")
        turns = as_text(turns_of(messages, has_system_role=True), tools)
        return "".join(self._names.get(turn.role, "") + turn.content for turn in turns) + self._names["assistant"]

    def encode_prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """Return the ids up to where the assistant's next reply begins.

        Raises:
            NotTrainable: if a text cannot be kept from spelling control tokens, or there are tools.
        """
        check_conversation(messages, ends_with="user")
        encoded = self._encode(turns_of(messages, has_system_role=True), tools, "all")
        return [*encoded.ids, ASSISTANT_ID]

    def encode_conversation(
        self, messages: Sequence[Message], tools: Tools = (), *, train_reasoning: TrainReasoning = "last"
    ) -> list[Encoded]:
        """Return the one sequence of a conversation; loss is on each reply and what follows it.

        Raises:
            NotTrainable: if a text cannot be kept from spelling control tokens, or there are tools.
        """
        check_conversation(messages, ends_with="assistant")
        messages = taught(messages)
        encoded = self._encode(turns_of(messages, has_system_role=True), tools, train_reasoning)
        weights = [*encoded.weights, messages[-1].weight]
        return [Encoded([*encoded.ids, *self.end_of_turn_ids], weights, len(messages))]

    def encode_conversations(
        self, conversations: Sequence[tuple[Sequence[Message], Tools]], *, train_reasoning: TrainReasoning = "last"
    ) -> list[list[Encoded] | NotTrainable]:
        """Return what `encode_conversation` returns or raises for each of many conversations."""
        return one_by_one(self, conversations, train_reasoning)

    def _encode(self, turns: Sequence[Turn], tools: Tools, train_reasoning: TrainReasoning) -> Encoded:
        ids: list[int] = []
        weights: list[float] = []
        weight_before = 0.0  # of the reply that the next user token ends
        for place, (turn, written) in enumerate(zip(turns, as_text(turns, tools), strict=True)):
            is_reply = turn.role == "assistant"
            if turn.role != "system":
                ids.append(ASSISTANT_ID if is_reply else USER_ID)
                weights.append(weight_before)
            content_ids = self._guard.plain_ids(written.content, is_reply=is_reply)
            num_masked = 0
            if masks_reasoning(turns, place, train_reasoning):
                num_masked = num_common(content_ids, self._guard.plain_ids(reasoning_block(turn), is_reply=True))
            weight_before = turn.weight if is_reply else 0.0
            ids += content_ids
            weights += [0.0] * num_masked + [weight_before] * (len(content_ids) - num_masked)
        return Encoded(ids, weights, len(turns))


def is_baichuan_chat(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Say whether a folder holds one of Baichuan2's Chat models, or a model saved from one.

    Their `generation_config.json` names the ids that open a user's and an assistant's turn. That of the Base models
    does not, nor that of what the ancestor trained from them; Baichuan 1 names the same ids in another vocabulary.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / GENERATION_CONFIG
    if not path.is_file() or not has_reserved_pieces(tokenizer, (USER_ID, ASSISTANT_ID)):
        return False
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        named = settings.get("user_token_id"), settings.get("assistant_token_id")
    except (OSError, ValueError, AttributeError) as error:
        fix = "copy or download that file again"
        raise UserError("the generation config cannot be read", got=str(error), where=str(path), fix=fix) from error
    return named == (USER_ID, ASSISTANT_ID)
