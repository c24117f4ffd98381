"""Baichuan2 with the rows of its head at length 1, for tools that multiply by the head as it is.

In: a model ready to be written. Out: the same function, whether or not a tool normalises the head: normalising rows
of length 1 changes nothing. llama.cpp's converter takes Baichuan2 for Baichuan 1, whose head is a plain one.
"""

from typing import Any

from deft.publish.merge import Ready, check_logits, logits_of


def with_plain_head(ready: Ready) -> Ready:
    """Return a model ready to be written whose head is normalised in place.

    Raises:
        UserError: if it computes other logits with a plain head.
    """
    import torch
    from torch import nn

    head: Any = ready.model.get_output_embeddings()
    with torch.no_grad():
        head.weight.copy_(head.effective_weight())
    normalising = type(head)
    head.__class__ = nn.Linear
    try:
        found = logits_of(ready.model, ready.texts)
    finally:
        head.__class__ = normalising
    check_logits(ready.logits, found, "float32", what="the model with a plain head")
    return ready
