"""Where a reply ends, written down for programs that know nothing of deft's chat formats.

In: a model, its tokenizer and its chat format. Out: the same model and tokenizer, whose generation config and end of
sequence tell `transformers`, vLLM and others to stop where deft stops. A base model's own config names only the token
that ended its documents, which a model taught to chat may never write.
"""

from typing import TYPE_CHECKING, Any

from deft.prompt.formats.kinds import ChatFormat
from deft.prompt.formats.turns import PROBE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def name_stops(model: Any, tokenizer: "PreTrainedTokenizerBase", chat_format: ChatFormat) -> None:
    """List in a model's generation config all tokens that end a reply, and make the usual one the tokenizer's eos.

    The token that replies are trained to end with comes first: transformers fills up a batch with the first where
    there is no padding token.
    """
    ends = (*chat_format.end_of_turn_ids, *chat_format.stop_token_ids)
    model.generation_config.eos_token_id = list(dict.fromkeys(ends))
    name_eos(tokenizer, chat_format)


def name_eos(tokenizer: "PreTrainedTokenizerBase", chat_format: ChatFormat) -> None:
    """Make the token that ends a reply the tokenizer's eos: one special token, and no chat is written otherwise for it.

    Baichuan2's role tokens are ordinary pieces to its tokenizer, which stays as it is.
    """
    [end, *others] = chat_format.end_of_turn_ids
    added = tokenizer.added_tokens_decoder.get(end)
    if others or end == tokenizer.eos_token_id or added is None or not added.special:
        return
    before, written = tokenizer.eos_token, chat_format.render_prompt(PROBE[:3])
    tokenizer.eos_token = added.content
    if chat_format.render_prompt(PROBE[:3]) != written:  # a template that writes eos elsewhere too
        tokenizer.eos_token = before
