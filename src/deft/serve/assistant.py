"""The assistant: conversations in, replies out, in batches or streamed; what the page, the terminal and scripts share.

A conversation is written by the chat format that its checkpoint was trained with, cut to the context limit by whole
exchanges, and answered by `deft.model.generate`; a reply is decoded from its own tokens.
"""

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from deft.errors import UserError, did_you_mean
from deft.hub.find import FoundModel
from deft.model.generate import FinishReason, Reply, generate, position_limit, stream
from deft.model.load import load_model
from deft.model.sampling import Sampling, check_number
from deft.prompt.detect import find_chat_format
from deft.prompt.encode import fit_prompt
from deft.prompt.identity import read_identity
from deft.serve.thoughts import ReadableReplies, parts_of
from deft.types import Message, check_conversation

IDENTITY_FILE = "model_identity.txt"
CONTEXT_LIMIT_TOKENS = 2048
MAX_NEW_TOKENS = 1024
REPLACEMENT = "\ufffd"
"""What a tokenizer decodes to where bytes are missing: the sign of a character that is not whole yet."""


class Assistant:
    """A model that answers conversations `{"messages": [{"role", "content"}, …]}`.

    Identity: where the chat format has a system role, the identity text is the system message of every conversation.
    Where it has none, the text is sent once as a first user message, and that exchange, with the reply the model
    itself gave, goes before every conversation. A system message in the conversation takes the identity's place.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | FoundModel,
        *,
        identity_file: str | Path | None = IDENTITY_FILE,
        context_limit_tokens: int | None = None,
        max_new_tokens: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a model by alias, folder or hub id, or one found already.

        `context_limit_tokens` counts everything: identity, conversation and room for the reply. By default it is
        2,048 or what the model's positions reach, and `max_new_tokens` 1,024 or half of it. `identity_file` None is
        no identity; the default file may be absent, any other must be there. `template_kwargs` are what the chat
        template is given, such as `enable_thinking`; None: what the checkpoint was trained with.

        Raises:
            UserError: if the model cannot be loaded, the identity file cannot be read, or the limits do not fit.
        """
        identity = identity_from(identity_file)
        for name, value in (("context_limit_tokens", context_limit_tokens), ("max_new_tokens", max_new_tokens)):
            if value is not None:
                check_number(name, value, whole=True, least=1)
        loaded = load_model(model_name_or_path, dtype=dtype, device=device)
        name = model_name_or_path.name if isinstance(model_name_or_path, FoundModel) else str(model_name_or_path)
        self.name = Path(name).resolve().name if Path(name).is_dir() else name
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.chat_format = find_chat_format(loaded.tokenizer, loaded.path, template_kwargs=template_kwargs)
        self.readable = ReadableReplies(loaded.tokenizer, self.chat_format)
        positions = position_limit(self.model)
        self.context_limit_tokens = context_limit_tokens or min(CONTEXT_LIMIT_TOKENS, positions or CONTEXT_LIMIT_TOKENS)
        if positions is not None and self.context_limit_tokens > positions:
            raise UserError(
                f"the context limit is beyond the model's {positions} positions",
                got=context_limit_tokens,
                fix=f"context_limit_tokens={positions} or less",
            )
        self.max_new_tokens = max_new_tokens or min(MAX_NEW_TOKENS, max(self.context_limit_tokens // 2, 1))
        self.prompt_budget(Sampling(max_new_tokens=self.max_new_tokens))
        self.identity = ""
        self.identity_messages: Sequence[Message] = ()
        self.set_model_identity(identity)

    def set_model_identity(self, text: str) -> None:
        r"""Set the identity or role that later conversations begin with; "" is none, a literal `\n` a line break.

        Raises:
            UserError: as `identity_prefix` does.
        """
        text = text.replace("\\n", "\n").strip()
        self.identity, self.identity_messages = text, self.identity_prefix(text)

    def identity_prefix(self, text: str, *, cancel: threading.Event | None = None) -> list[Message]:
        """Return the messages that put an identity before a conversation.

        The reply that is kept where the format has no system role is cut at a quarter of the context limit. Setting
        `cancel` stops it; then there are no messages.

        Raises:
            UserError: if the text is too long, or the model gave no reply to keep.
        """
        if not text.strip():
            return []
        if self.chat_format.has_system_role:
            messages = [Message(role="system", content=text)]
        else:
            asked = [Message(role="user", content=text)]
            self.check_room(asked, text)
            quarter = max(self.context_limit_tokens // 4, 1)
            settings = self.sampling(max_new_tokens=min(self.max_new_tokens, quarter))
            prompt = self.chat_format.encode_prompt(asked)
            [reply] = self.generate([prompt], settings, cancel)
            if reply.finish_reason == "cancelled":
                return []
            answer = parts_of(self.text_of(reply, prompt)).said
            if not answer.strip():
                fix = "phrase the identity differently, or train it into the model"
                raise UserError("the model gave an empty reply to its identity", got=text, fix=fix)
            messages = [*asked, Message(role="assistant", content=answer)]
        self.check_room([*messages, Message(role="user", content="?")], text)
        return messages

    def check_room(self, messages: list[Message], identity: str) -> None:
        """Check that a conversation that begins with an identity fits into the context limit."""
        if len(self.chat_format.encode_prompt(messages)) > self.prompt_budget(self.sampling()):
            raise no_room(identity)

    def inference(self, contexts: Sequence[Mapping[str, Any]], **sampling: Any) -> tuple[list[str], torch.Tensor]:
        """Answer every conversation.

        `sampling` are the fields of `deft.model.sampling.Sampling`; greedy by default. A reply does not depend on the
        conversations beside it.

        Returns:
            The replies, and the logits fp32 [conversations, vocab] of each reply's first token.

        Raises:
            UserError: naming the conversation and the message, counted from 1.
        """
        settings = self.sampling(**sampling)
        prompts = []
        for index, context in enumerate(contexts):
            try:
                prompts.append(self.prompt_ids(messages_from(context), settings))
            except UserError as error:
                where = f"context {index + 1}" + (f", {error.where}" if error.where else "")
                raise UserError(error.what, got=error.got, where=where, fix=error.fix) from error
        replies = self.generate(prompts, settings, keep_first_logits=True)
        scores = [reply.first_logits for reply in replies]
        vocab_size = self.model.get_input_embeddings().weight.shape[0]
        return [self.text_of(reply, prompt) for reply, prompt in zip(replies, prompts, strict=True)], (
            torch.stack(scores) if scores else torch.empty(0, vocab_size)
        )

    def stream(
        self,
        context: Mapping[str, Any],
        *,
        cancel: threading.Event | None = None,
        identity_messages: Sequence[Message] | None = None,
        **sampling: Any,
    ) -> Generator[str, None, FinishReason]:
        """Answer one conversation piece by piece; the pieces joined are the reply that `inference` gives.

        A piece never ends within a character. Closing the generator or setting `cancel` stops the model before its
        next token. `identity_messages` (from `identity_prefix`) take the place of the assistant's own for this reply.
        The generator returns why the reply ended.

        Raises:
            UserError: at once, not at the first piece, if the conversation or a setting is wrong.
        """
        settings = self.sampling(**sampling)
        ids = self.prompt_ids(messages_from(context), settings, identity_messages)
        return self.pieces(
            stream(
                self.model,
                ids,
                stop_token_ids=self.chat_format.stop_token_ids,
                settings=settings,
                cancel=cancel,
            ),
            self.readable.head(ids),
        )

    def pieces(self, tokens: Generator[int, None, Reply], head: str = "") -> Generator[str, None, FinishReason]:
        """Turn tokens into text, after `head`, holding back what the next token may still change."""
        ids: list[int] = []
        shown = ""
        try:
            while True:
                try:
                    ids.append(next(tokens))
                except StopIteration as end:
                    text = head + self.decode(end.value.token_ids, is_whole=end.value.finish_reason == "stop")
                    if text.startswith(shown) and len(text) > len(shown):
                        yield text[len(shown) :]
                    reason: FinishReason = end.value.finish_reason
                    return reason
                text = head + self.decode(ids, is_whole=False)
                if text.startswith(shown) and len(text) > len(shown):
                    piece, shown = text[len(shown) :], text
                    yield piece
        finally:
            tokens.close()

    def sampling(self, **settings: Any) -> Sampling:
        """Return the settings of one call, checked; `max_new_tokens` is the assistant's unless given.

        Raises:
            UserError: if a name is unknown or a value is not allowed.
        """
        known = [field.name for field in fields(Sampling)]
        for name in settings:
            if name not in known:
                raise UserError("unknown sampling setting", got=name, fix=did_you_mean(name, known))
        return Sampling(**{"max_new_tokens": self.max_new_tokens, **settings})

    def prompt_budget(self, settings: Sampling) -> int:
        """Return how many tokens a prompt may have, the reply's room taken off the context limit."""
        budget = self.context_limit_tokens - settings.max_new_tokens
        if budget < 1:
            raise UserError(
                "max_new_tokens leaves no room for the conversation",
                got=settings.max_new_tokens,
                fix=f"less than the context limit of {self.context_limit_tokens} tokens",
            )
        return budget

    def prompt_ids(
        self, messages: list[Message], settings: Sampling, identity_messages: Sequence[Message] | None = None
    ) -> list[int]:
        """Return the tokens of a conversation with its identity, whole oldest exchanges left out where it must fit."""
        budget = self.prompt_budget(settings)
        encode = self.chat_format.encode_prompt
        identity = list(self.identity_messages if identity_messages is None else identity_messages)
        if messages[0].role == "system":
            identity = []
        elif identity and identity[0].role == "system":
            messages, identity = [*identity, *messages], []
        if identity:
            last = messages[-1:]
            budget -= len(encode([*identity, *last])) - len(encode(last))
            if budget < 1:
                raise no_room(identity[0].content)
        fitting = fit_prompt(messages, self.chat_format, max_prompt_tokens=budget)
        return encode([*identity, *fitting])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Sampling,
        cancel: threading.Event | None = None,
        *,
        keep_first_logits: bool = False,
    ) -> list[Reply]:
        """Answer encoded prompts, ending at the chat format's stop tokens or when `cancel` is set."""
        return generate(
            self.model,
            prompts,
            stop_token_ids=self.chat_format.stop_token_ids,
            settings=settings,
            should_stop=None if cancel is None else cancel.is_set,
            keep_first_logits=keep_first_logits,
        )

    def decode(self, ids: Sequence[int], *, is_whole: bool = True) -> str:
        """Return a reply's text; of one that was cut or is still coming in, without half a character at its end."""
        text = self.readable.text(ids)
        return text if is_whole else text.rstrip(REPLACEMENT)

    def text_of(self, reply: Reply, prompt: Sequence[int]) -> str:
        """Return the text of a reply that has ended, its thinking at its head between `<think>` and `</think>`."""
        return self.readable.head(prompt) + self.decode(reply.token_ids, is_whole=reply.finish_reason == "stop")


def no_room(identity: str) -> UserError:
    """Return the error for an identity that takes up the whole context."""
    fix = "shorten the identity, raise context_limit_tokens, or lower max_new_tokens"
    return UserError("the identity leaves no room for a conversation", got=identity, fix=fix)


def identity_from(file: str | Path | None) -> str:
    """Read an identity file; only the default one may be absent."""
    if file is None:
        return ""
    if str(file) != IDENTITY_FILE and not Path(file).exists():
        raise UserError("there is no such identity file", got=str(file), fix="create it, or leave the option out")
    return read_identity(file)


def messages_from(context: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a conversation, checked; it ends with the user.

    Raises:
        UserError: naming the message, counted from 1.
    """
    layout = '{"messages": [{"role": "user", "content": "…"}]}'
    rows = context.get("messages") if isinstance(context, Mapping) else None
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise UserError("a context is an object with a list of messages", got=context, fix=layout)
    messages = []
    for index, row in enumerate(rows):
        place = f"message {index + 1}"
        if isinstance(row, Message):
            messages.append(row)
            continue
        if not isinstance(row, Mapping) or not {"role", "content"} <= row.keys():
            raise UserError("a message is an object with role and content", got=row, where=place, fix=layout)
        try:
            messages.append(Message(role=row["role"], content=row["content"]))
        except UserError as error:
            raise error.at(place) from error
    check_conversation(messages, ends_with="user")
    return messages
