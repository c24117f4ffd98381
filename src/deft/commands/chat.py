"""`deft chat`: talk to a model in the terminal."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from deft.commands.flags import AT_LEAST_1
from deft.screen import console
from deft.serve.defaults import TEMPERATURE
from deft.training.config import parsed_kwargs


def chat(
    model: str = "smollm2-135m",
    *,
    identity_file: Path = Path("model_identity.txt"),
    context_limit_tokens: Annotated[int | None, AT_LEAST_1] = None,
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = TEMPERATURE,
    top_p: Annotated[float | None, Parameter(validator=Number(gt=0, lte=1))] = None,
    max_new_tokens: Annotated[int | None, AT_LEAST_1] = None,
    seed: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    template_kwargs: str | None = None,
) -> None:
    """Talk to a model in the terminal.

    Parameters
    ----------
    model
        Alias, local folder (such as runs/latest/best) or hub id.
    identity_file
        Text file that says who the model is; empty or missing means nothing is said.
    context_limit_tokens
        Oldest turns are forgotten past this many tokens; by default 2,048, or what the model reaches.
    temperature
        0 always takes the likeliest token, above 0 tokens are drawn.
    top_p
        Draw from the likeliest tokens that make up this share; 0.9 unless the temperature is 0.
    max_new_tokens
        Longest reply; by default 1,024, or half of the context limit.
    seed
        Makes replies repeatable: the same prompt gets the same reply.
    template_kwargs
        What the chat template is given beside the messages, as JSON such as {"enable_thinking": false}; by default what
        the model was trained with.
    """
    from deft.serve.assistant import Assistant
    from deft.serve.terminal import chat_sampling, run_chat

    sampling = chat_sampling(temperature=temperature, top_p=top_p, seed=seed)
    assistant = Assistant(
        model,
        identity_file=identity_file,
        context_limit_tokens=context_limit_tokens,
        max_new_tokens=max_new_tokens,
        template_kwargs=parsed_kwargs(template_kwargs),
    )
    run_chat(assistant, console=console(), **sampling)
