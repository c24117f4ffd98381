"""The kinds of chat formats, in one table, and the interface that each of them has.

In: a tokenizer and a kind. Out: a `ChatFormat`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from deft.errors import NotTrainable, UserError
from deft.registry import resolve
from deft.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


FormatKind = Literal["auto", "template", "role_tokens", "baichuan_chat"]
KINDS = {
    "template": "deft.prompt.formats.template:TemplateFormat",
    "role_tokens": "deft.prompt.formats.role_tokens:RoleTokenFormat",
    "baichuan_chat": "deft.prompt.formats.baichuan_chat:BaichuanChatFormat",
}
"""Every kind, and its class: made from a tokenizer, or by `from_dict` from what its `to_dict` returned."""


class Encoded(NamedTuple):
    """One sequence of a conversation: its ids, and for each the weight of its loss, 0 where it carries none.

    `num_messages` is how many messages of the conversation it holds: up to the last reply that it teaches.
    """

    ids: list[int]
    weights: list[float]
    num_messages: int


TrainReasoning = Literal["last", "all", "none"]
"""In which replies the reasoning carries loss; where it does not, it still stands before the reply it led to."""
Tools = Sequence[Mapping[str, Any]]
"""The functions that an assistant may call, as `Example.tools`."""


class ChatFormat(Protocol):
    """How one model writes a conversation."""

    @property
    def kind(self) -> str:
        """`template`, `role_tokens` or `baichuan_chat`."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a generation."""

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Those of them that a reply is trained to end with."""

    @property
    def trained_as(self) -> Mapping[int, int]:
        """The labels of tokens that carry loss but stand in the place of another token; empty in most formats."""

    @property
    def has_system_role(self) -> bool:
        """Whether a system message has its own turn; else it is put in front of the first user message."""

    def render_prompt(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """Return the prompt as text; `messages` end with the user, or with results of tools."""

    def encode_prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """Return the ids up to where the assistant's next reply begins; `messages` as for `render_prompt`."""

    def encode_conversation(
        self, messages: Sequence[Message], tools: Tools = (), *, train_reasoning: TrainReasoning = "last"
    ) -> list[Encoded]:
        """Return the sequences that teach the replies of a conversation.

        Each reply to be trained is in one of them, behind the very ids that inference feeds for it. There is one for
        all replies unless the format writes earlier turns in another way than it served them.
        """

    def encode_conversations(
        self, conversations: Sequence[tuple[Sequence[Message], Tools]], *, train_reasoning: TrainReasoning = "last"
    ) -> list[list[Encoded] | NotTrainable]:
        """Return what `encode_conversation` returns or raises for each of many conversations."""

    def to_dict(self) -> dict[str, Any]:
        """Return what the format was made from, as JSON values."""


def one_by_one(
    chat_format: ChatFormat, conversations: Sequence[tuple[Sequence[Message], Tools]], train_reasoning: TrainReasoning
) -> list[list[Encoded] | NotTrainable]:
    """Return what `encode_conversation` returns or raises for each of many conversations, by calling it."""
    found: list[list[Encoded] | NotTrainable] = []
    for messages, tools in conversations:
        try:
            found.append(chat_format.encode_conversation(messages, tools, train_reasoning=train_reasoning))
        except NotTrainable as error:
            found.append(error)
    return found


def chat_format_for(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    kind: FormatKind = "auto",
    chat_template: str | None = None,
    begins_with_bos: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> ChatFormat:
    """Return the chat format of a tokenizer: its chat template (or `chat_template`) if there is one, else role tokens.

    `begins_with_bos` is for role tokens; a template says for itself how a conversation begins. `template_kwargs` are
    what a template is given beside the messages, such as `enable_thinking`.

    Where a checkpoint's folder is at hand, `deft.prompt.detect.find_chat_format` knows more.

    Raises:
        UserError: if the template cannot be masked, if the tokenizer has neither a template nor role tokens, or if
            there are `template_kwargs` and no template.
    """
    if kind == "auto":
        kind = "template" if chat_template or tokenizer.chat_template else "role_tokens"
    settings: dict[str, Any] = {}
    if kind != "template" and template_kwargs:
        fix = "leave --template-kwargs out, or use a model with a chat template"
        raise UserError("only a chat template takes template_kwargs", got=kind, fix=fix)
    if kind == "template":
        settings |= {"chat_template": chat_template, "template_kwargs": template_kwargs}
    elif kind == "role_tokens":
        settings["begins_with_bos"] = begins_with_bos
    chat_format: ChatFormat = resolve(KINDS, kind, kind="chat format")(tokenizer, **settings)
    return chat_format
