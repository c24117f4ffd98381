"""`deft merge` and `deft export`: a checkpoint as a folder that others can use."""

from pathlib import Path
from typing import Literal

from deft.screen import console, say


def merge(
    adapter: str,
    out: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    overwrite: bool = False,
    verify: Literal["all", "none"] = "all",
) -> None:
    """Merge an adapter into its base model, and check that the result computes the same.

    Parameters
    ----------
    adapter
        Folder or hub id of an adapter, such as runs/latest/best.
    out
        Folder to write the whole model to.
    dtype
        Type of the weights that are written.
    overwrite
        Replace the model in `out` if there is one.
    verify
        Compare the files of adapter and base with what was recorded of them; none: take them as they are.
    """
    from deft.publish.merge import merge as merge_adapter

    screen = console()
    merge_adapter(
        adapter,
        out,
        dtype=dtype,
        overwrite=overwrite,
        verify=verify == "all",
        tell=lambda text: say(screen, "{text!t}", text=text),
    )
    say(screen, "[green]✓[/] merged: {out}", out=out)


def export(
    checkpoint: str,
    out: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    max_shard_size: str = "5GB",
    keep_adapter: bool = False,
    to: Literal["llama", "plain_head"] | None = None,
    license: str | None = None,
    overwrite: bool = False,
    verify: Literal["all", "none"] = "all",
    push: str | None = None,
    public: bool = False,
) -> None:
    """Write a checkpoint as a folder to publish: weights, tokenizer, chat format and model card.

    Parameters
    ----------
    checkpoint
        Folder, alias or hub id, such as runs/latest/best; an adapter is merged first.
    out
        Folder to write.
    dtype
        Type of the weights that are written; by default the one they are stored in.
    max_shard_size
        Largest weight file, such as 500MB or 5GB.
    keep_adapter
        Export an adapter as it is.
    to
        For tools that know no Baichuan2. llama: a Baichuan2-7B in Llama's layout; plain_head: a Baichuan2 with its
        head already normalised.
    license
        Licence to state in the card, in place of the base model's.
    overwrite
        Replace the model in `out` if there is one.
    verify
        Compare the files with what was recorded of them; none: take them as they are.
    push
        Upload to this repository of the Hugging Face hub, ORG/NAME, as a private one.
    public
        Let the uploaded repository be public.
    """
    from deft.publish.export import export as export_checkpoint

    screen = console()
    result = export_checkpoint(
        checkpoint,
        out,
        dtype=dtype,
        max_shard_size=max_shard_size,
        keep_adapter=keep_adapter,
        to=to,
        license=license,
        overwrite=overwrite,
        verify=verify == "all",
        push=push,
        public=public,
        tell=lambda text: say(screen, "{text!t}", text=text),
    )
    for note in result.notes:
        say(screen, "[yellow]note:[/] {note}", note=note, fold=True)
    say(screen, "[green]✓[/] exported: {place}", place=result.url or out)
