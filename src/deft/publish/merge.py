"""An adapter merged into its base model, and a model written to a folder, both checked by the logits they compute.

In: an adapter (or a whole model, for `export`), or its name. Out: a folder with a whole model, its tokenizer, chat
format and generation config, and `source.json`, which says where it came from. What a wrong merge looks like: tied
embeddings that are wrong after saving (peft#1035, transformers#45127), a scale left out, weights rounded too coarsely.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.errors import UserError, did_you_mean, first_line
from deft.files import cannot_write, check_writable, read_object, write_json, written_whole
from deft.hub.files import ADAPTER_CONFIG, holds_adapter, incomplete
from deft.hub.find import FoundModel, find
from deft.hub.known import SOURCE_FILE
from deft.hub.manifest import check_manifest, write_manifest
from deft.hub.quiet import quiet_transformers
from deft.locks import place_held
from deft.model.load import LoadedModel, load_model
from deft.model.stops import name_stops
from deft.model.vocabulary import check_ids
from deft.prompt.detect import find_chat_format
from deft.prompt.formats.kinds import ChatFormat
from deft.prompt.formats.turns import PROBE
from deft.prompt.store import FILE_NAME as CHAT_FORMAT_FILE
from deft.prompt.store import load_chat_format
from deft.publish.provenance import is_base_of, provenance_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far logits may move, as a share of the largest logit, when weights are rounded to a type and all is computed in
fp32: above what 8, 11 and 24 significant bits do over many layers, below what a wrong weight does."""

CHECK_TEXTS = (
    "Water boils at 100 °C at sea level; on a mountain it boils earlier, because the air presses less.",
    "水在海平面上一百摄氏度沸腾；山上气压低，所以水开得更早。请问：3 × 12 + 4 等于多少？",
    "def mean(values):\n    return sum(values) / len(values)  # 平均值\n",
)
"""What logits are compared on, with a chat as the model's format writes it."""
MAX_CHECKED_TOKENS = 256
MAX_SHARD_SIZE = "5GB"
MACHINE_KEYS = ("is_local", "local_files_only", "name_or_path", "_name_or_path")
"""What transformers writes into a config about the computer it ran on."""

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ready:
    """A whole model in fp32 on the CPU, and the logits it must compute wherever it is written.

    `texts` are token ids, `logits` fp32 `[length, vocab]` for each; `dtype` is the type that holds its weights without
    loss, `source` the folder they were read from.
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    source: Path
    dtype: str
    texts: Sequence[list[int]]
    logits: Sequence["torch.Tensor"]
    notes: tuple[str, ...] = ()


def merge(
    adapter: str | Path | FoundModel,
    out: str | Path,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
    verify: bool = True,
    tell: Tell = lambda line: None,
) -> Path:
    """Merge an adapter into its base model, write the whole model to `out`, and return `out`.

    The sum is computed in fp32 on the CPU (4 bytes a weight); `dtype` is the type it is written in. Logits of the
    adapter on its base are compared with those of the merged model, of its weights rounded to `dtype`, and of what was
    written; `out` appears after the last. `verify` compares the files of both with their digests first, and the base
    with the one that the run of the adapter recorded.

    Raises:
        UserError: if there is no adapter, a file is damaged or the base is another one, the target is there or cannot
            be written, or the logits differ by more than `TOLERANCES` says.
    """
    check_dtype(dtype)
    out, model = Path(out), find(adapter)
    folder = model.folder
    if not model.is_adapter:
        fix = "a whole model needs no merging; to publish it: deft export CHECKPOINT OUT"
        raise UserError(f"{folder} holds no adapter", got=f"it has no {ADAPTER_CONFIG}", fix=fix)
    check_target(out, overwrite=overwrite, sources=(folder,))
    check_sources(model, verify=verify)
    tell(f"merging {folder} in fp32")
    ready = merged(model)
    for note in ready.notes:
        tell(note)
    with written_alone(out, overwrite=overwrite, sources=(folder,)) as temporary:
        difference = write_model(ready, temporary, dtype=dtype)
        write_json(temporary / SOURCE_FILE, asdict(provenance_of(model)))
        write_manifest(temporary)
    tell(f"largest difference of a logit: {difference:.1e} of the largest logit (allowed: {TOLERANCES[dtype]:g})")
    return out


# --- before the work ----------------------------------------------------------------------------------------------


def check_dtype(dtype: str) -> None:
    """Check the name of a type to write weights in."""
    if dtype not in TOLERANCES:
        raise UserError("weights cannot be written in that type", got=dtype, fix=did_you_mean(dtype, TOLERANCES))


@contextmanager
def written_alone(out: Path, *, overwrite: bool, sources: Sequence[Path]) -> Iterator[Path]:
    """Give a temporary folder that becomes `out` at the end, as `written_whole` does, to one process at a time.

    Raises:
        UserError: if another process is writing `out`, or has just written it.
    """
    with place_held(out):
        check_target(out, overwrite=overwrite, sources=sources)
        with written_whole(out) as temporary:
            yield temporary


def check_target(out: Path, *, overwrite: bool, sources: Sequence[Path]) -> None:
    """Check that a folder can be written, and that what it would replace is a model of no further use here.

    Raises:
        UserError: if it is there without `overwrite`, or it must not be replaced.
    """
    if out.exists() or out.is_symlink():
        fix = "name another folder, or --overwrite"
        if not overwrite:
            raise UserError("the output folder already exists", got=str(out), fix=fix)
        if out.is_symlink() or not out.is_dir():
            raise UserError("what is there is not a folder", got=str(out), fix="name another folder")
        here = out.resolve()
        for kept in (Path.cwd(), *sources):
            if kept.resolve().is_relative_to(here):
                raise UserError(f"overwriting {out} would delete {kept}", got=str(out), fix="name another folder")
        holds_model = (out / "config.json").is_file() or holds_adapter(out)
        if not holds_model and any(out.iterdir()):
            what = "the folder to overwrite holds no model"
            raise UserError(what, got=str(out), fix="name another folder, or empty it by hand")
    check_writable(out.parent)


def check_sources(model: FoundModel, *, verify: bool) -> None:
    """Check the files of a checkpoint and, if it is an adapter, of its base, against what was recorded of them.

    Nothing is checked without `verify`.

    Raises:
        UserError: naming the file that has changed, or the base that is not the one the adapter was trained on.
    """
    if not verify:
        return
    folder = model.folder
    check_manifest(folder)
    if not model.is_adapter:
        return
    base = model.base.folder
    check_manifest(base)
    if not is_base_of(base, read_object(folder.resolve().parent / "run.json")):
        fix = f"set base_model_name_or_path in {folder / ADAPTER_CONFIG} to the model it was trained on"
        what = "the base model is not the one that the adapter was trained on: its files have changed"
        raise UserError(what, got=str(base), where=str(folder), fix=f"{fix}; to merge all the same: --verify none")


# --- merging ------------------------------------------------------------------------------------------------------


def merged(adapter: FoundModel) -> Ready:
    """Load an adapter on its base model in fp32 on the CPU, merge it, and check the result's logits.

    Raises:
        UserError: if the logits differ, or the base model is held in fewer bits.
    """
    loaded = load_model(adapter, dtype="float32", device="cpu")
    refuse_quantised(loaded.model, adapter.folder)
    texts = texts_to_check(loaded)
    expected = logits_of(loaded.model, texts)
    model, notes = merge_weights(loaded.model)
    check_logits(expected, logits_of(model, texts), "float32", what="the merged model")
    return Ready(
        model=model,
        tokenizer=loaded.tokenizer,
        source=loaded.path,
        dtype="float32",
        texts=texts,
        logits=expected,
        notes=notes,
    )


def merge_weights(adapted: Any) -> tuple[Any, tuple[str, ...]]:
    """Merge a `PeftModel` into its base; return the base model and what the user should know about it.

    A head that shares its weights with the embeddings is given its own while adapters are added, because adding to one
    would add to both. Afterwards the two are joined again if they are equal; if the adapter made them differ, the
    config says so, since a model that ties them on loading would compute something else.
    """
    import torch
    from torch import nn

    base = adapted.get_base_model()
    config = base.config.get_text_config()
    tied = bool(config.tie_word_embeddings)
    head = base.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    if tied and isinstance(head, nn.Linear):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the head is no longer tied, which is seen to below
            model = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        fix = "use an earlier checkpoint of the run, or train again with a lower learning rate"
        raise UserError("the adapter cannot be merged", got=first_line(error), fix=fix) from error
    if not tied:
        return model, ()
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    together = torch.equal(embeddings.weight, head.weight)
    if together:
        head.weight = embeddings.weight
    for each in {id(part): part for part in (model.config, config)}.values():
        each.tie_word_embeddings = together
    if together:
        return model, ()
    return model, ("the adapter changes embeddings and head in different ways: the merged model has one of each",)


def refuse_quantised(model: Any, folder: Path) -> None:
    """Refuse a model whose weights are held in fewer bits than a float has."""
    if getattr(model.config, "quantization_config", None) is not None:
        fix = "set base_model_name_or_path (or the checkpoint) to the model in bfloat16 or float32"
        raise UserError(f"the weights of {folder} are quantised, and can be neither merged nor exported", fix=fix)


# --- checking -----------------------------------------------------------------------------------------------------


def texts_to_check(loaded: LoadedModel) -> list[list[int]]:
    """Return the token ids to compare logits on: `CHECK_TEXTS`, and a chat as the checkpoint's format writes it."""
    texts = [loaded.tokenizer.encode(text) for text in CHECK_TEXTS]
    chat_format = chat_format_in(loaded.tokenizer, loaded.path)
    if chat_format is not None:
        texts.append(chat_format.encode_conversation(PROBE)[-1].ids)
    for ids in texts:
        check_ids(loaded.model, ids, where=f"the tokenizer in {loaded.path}")
    return [ids[:MAX_CHECKED_TOKENS] for ids in texts]


def chat_format_in(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> ChatFormat | None:
    """Return the format stored with a model, or that of its tokenizer; None where neither is to be had."""
    stored = load_chat_format(folder, tokenizer)
    if stored is not None:
        return stored
    try:
        return find_chat_format(tokenizer, folder)
    except UserError:
        return None


def logits_of(model: Any, texts: Sequence[list[int]]) -> list["torch.Tensor"]:
    """Return the fp32 logits `[length, vocab]` of each text."""
    import torch

    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids])).logits[0].float() for ids in texts]


def check_logits(
    expected: Sequence["torch.Tensor"], found: Sequence["torch.Tensor"], dtype: str, *, what: str
) -> float:
    """Return the largest difference of two sets of logits, as a share of the largest logit that was expected.

    Raises:
        UserError: if it is more than `TOLERANCES` has for `dtype`, or no number.
    """
    largest = max(logits.abs().max().item() for logits in expected)
    shapes = [logits.shape for logits in found] == [logits.shape for logits in expected]
    difference = float("nan")
    if shapes:
        difference = max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True)) / max(largest, 1e-6)
    if not difference <= TOLERANCES[dtype]:
        raise UserError(
            f"{what} computes other logits than it should, so nothing was written",
            got=f"they differ by {difference:.2g} of the largest logit; {TOLERANCES[dtype]:g} is allowed for {dtype}",
            fix="write float32 if you asked for another type; else use the versions that the adapter was trained with "
            "(run.json in its run's folder), and tell deft's authors",
        )
    return difference


# --- writing ------------------------------------------------------------------------------------------------------


def write_model(ready: Ready, folder: Path, *, dtype: str, max_shard_size: str = MAX_SHARD_SIZE) -> float:
    """Write a model, its tokenizer and its chat format into a new `folder`, and return how far its logits moved.

    They are checked on the rounded weights before anything is written, and on what was written; computed in fp32 both
    times, so that only the weights count. `ready.model` loses its weights, so that there is room for the second.

    Raises:
        UserError: if the logits differ, or the disk is full.
    """
    import torch

    ready.model.config.dtype = getattr(torch, dtype)
    for weights in ready.model.parameters():
        weights.data = weights.data.to(getattr(torch, dtype)).float()
    rounded = logits_of(ready.model, ready.texts)
    difference = check_logits(ready.logits, rounded, dtype, what=f"the model rounded to {dtype}")
    if (chat_format := chat_format_in(ready.tokenizer, ready.source)) is not None:
        name_stops(ready.model, ready.tokenizer, chat_format)
    for weights in ready.model.parameters():  # not `.to`, which would also round the table of rotary frequencies
        weights.data = weights.data.to(getattr(torch, dtype))
    save(ready, folder, max_shard_size=max_shard_size)
    ready.model.to("meta")
    written = load_model(folder, dtype="float32", device="cpu")
    load_chat_format(folder, written.tokenizer)
    check_logits(rounded, logits_of(written.model, ready.texts), "float32", what="the model as written")
    return difference


def save(ready: Ready, folder: Path, *, max_shard_size: str) -> None:
    """Write weights, configs, tokenizer and chat format, without the traces of this computer."""
    from safetensors import SafetensorError

    folder.mkdir()
    try:
        with quiet_transformers():
            ready.model.save_pretrained(folder, max_shard_size=max_shard_size)
    except SafetensorError as error:
        raise cannot_write(folder, OSError(str(error))) from error
    save_tokenizer(ready.tokenizer, ready.source, folder)
    if not (folder / "config.json").is_file():
        raise incomplete(folder, ["config.json"])
    for file in folder.iterdir():
        file.chmod((folder / "config.json").stat().st_mode)  # safetensors makes its files readable to the owner alone


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", source: Path, folder: Path) -> None:
    """Write a tokenizer with its chat template, and the chat format stored in `source`, into `folder`."""
    with quiet_transformers():
        tokenizer.save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            write_json(folder / name, {key: value for key, value in values.items() if key not in MACHINE_KEYS})
    if (source / CHAT_FORMAT_FILE).is_file():
        shutil.copyfile(source / CHAT_FORMAT_FILE, folder / CHAT_FORMAT_FILE)
