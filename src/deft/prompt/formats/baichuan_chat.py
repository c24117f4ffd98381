"""The encoding of Baichuan2-7B-Chat and -13B-Chat: `[system] 195 user 196 assistant 195 user 196 assistant … eos`.

In: messages. Out: token ids, and for each token whether it carries loss. The ids are those of the official chat
function and the loss is that of the official fine-tuning script (github.com/baichuan-inc/Baichuan2, `fine-tune.py`):
a reply is followed by the next user token at once, and what is taught in that place is eos.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deft.errors import UserError
from deft.prompt.formats.role_tokens import has_reserved_pieces
from deft.prompt.formats.turns import Turn, turns_of
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

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """Return the prompt as text to look at: the contents between the names of the role tokens."""
        check_conversation(messages, ends_with="user")
        turns = turns_of(messages, has_system_role=True)
        return "".join(self._names.get(turn.role, "") + turn.content for turn in turns) + self._names["assistant"]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids up to where the assistant's next reply begins.

        Raises:
            NotTrainable: if a text cannot be kept from spelling control tokens.
        """
        check_conversation(messages, ends_with="user")
        ids, _ = self._encode(turns_of(messages, has_system_role=True))
        return [*ids, ASSISTANT_ID]

    def encode_conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the ids of a whole conversation, and which of them carry loss: each reply and what follows it.

        Raises:
            NotTrainable: if a text cannot be kept from spelling control tokens.
        """
        check_conversation(messages, ends_with="assistant")
        ids, trained = self._encode(turns_of(messages, has_system_role=True))
        return [*ids, *self.end_of_turn_ids], [*trained, True]

    def _encode(self, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        trained: list[bool] = []
        follows_reply = False
        for turn in turns:
            is_reply = turn.role == "assistant"
            if turn.role != "system":
                ids.append(ASSISTANT_ID if is_reply else USER_ID)
                trained.append(follows_reply)
            content_ids = self._guard.plain_ids(turn.content, is_reply=is_reply)
            ids += content_ids
            trained += [is_reply] * len(content_ids)
            follows_reply = is_reply
        return ids, trained


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
