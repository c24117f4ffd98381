"""An adapter merged into its base model, and a model written to a folder, both checked by the logits they compute.

In: the folder of an adapter (or of a whole model, for `export`). Out: a folder with a whole model, its tokenizer, chat
format and generation config, and `source.json`, which says where it came from. What a wrong merge looks like: tied
embeddings that are wrong after saving (peft#1035, transformers#45127), a scale left out, weights rounded too coarsely.
"""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deft.errors import UserError, did_you_mean
from deft.model.checkpoint_files import ADAPTER_CONFIG, first_line, incomplete
from deft.model.known import KNOWN_MODELS, find_known
from deft.model.load import HUB_ID, LoadedModel, base_of, find_folder, find_in_cache, load_model, quiet_transformers
from deft.model.pull import SOURCE_FILE
from deft.prompt.detect import find_chat_format
from deft.prompt.format import ChatFormat
from deft.prompt.store import FILE_NAME as CHAT_FORMAT_FILE
from deft.prompt.store import load_chat_format
from deft.prompt.turns import PROBE
from deft.rundir import cannot_write, check_writable, folder_fingerprint, write_json, written_whole

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
    adapter: str | Path, out: Path, *, dtype: str = "float32", overwrite: bool = False, tell: Tell = lambda line: None
) -> Path:
    """Merge an adapter into its base model, write the whole model to `out`, and return `out`.

    The sum is computed in fp32 on the CPU (4 bytes a weight); `dtype` is the type it is written in. Logits of the
    adapter on its base are compared with those of the merged model, of its weights rounded to `dtype`, and of what was
    written; `out` appears after the last.

    Raises:
        UserError: if there is no adapter, the target is there or cannot be written, or the logits differ by more than
            `TOLERANCES` says.
    """
    check_dtype(dtype)
    folder = find_folder(adapter)
    if not (folder / ADAPTER_CONFIG).is_file():
        fix = "a whole model needs no merging; to publish it: deft export CHECKPOINT OUT"
        raise UserError(f"{folder} holds no adapter", got=f"it has no {ADAPTER_CONFIG}", fix=fix)
    check_target(out, overwrite=overwrite, sources=(folder,))
    tell(f"merging {folder} in fp32")
    ready = merged(folder)
    for note in ready.notes:
        tell(note)
    with written_whole(out) as temporary:
        difference = write_model(ready, temporary, dtype=dtype)
        write_json(temporary / SOURCE_FILE, asdict(provenance_of(folder)))
    tell(f"largest difference of a logit: {difference:.1e} of the largest logit (allowed: {TOLERANCES[dtype]:g})")
    return out


# --- before the work ----------------------------------------------------------------------------------------------


def check_dtype(dtype: str) -> None:
    """Check the name of a type to write weights in."""
    if dtype not in TOLERANCES:
        raise UserError("weights cannot be written in that type", got=dtype, fix=did_you_mean(dtype, TOLERANCES))


def check_target(out: Path, *, overwrite: bool, sources: Sequence[Path]) -> None:
    """Check that a folder can be written, and that what it would replace is a model of no further use here.

    Raises:
        UserError: if it is there without `overwrite`, or it must not be replaced.
    """
    if out.exists() or out.is_symlink():
        fix = "name another folder, or --overwrite"
        if not overwrite:
            raise UserError("the folder to write is there already", got=str(out), fix=fix)
        if out.is_symlink() or not out.is_dir():
            raise UserError("what is there is no folder", got=str(out), fix="name another folder")
        here = out.resolve()
        for kept in (Path.cwd(), *sources):
            if kept.resolve().is_relative_to(here):
                raise UserError(f"overwriting {out} would delete {kept}", got=str(out), fix="name another folder")
        holds_model = any((out / name).is_file() for name in ("config.json", ADAPTER_CONFIG))
        if not holds_model and any(out.iterdir()):
            what = "the folder to overwrite holds no model"
            raise UserError(what, got=str(out), fix="name another folder, or empty it by hand")
    check_writable(out.parent)


# --- merging ------------------------------------------------------------------------------------------------------


def merged(folder: Path) -> Ready:
    """Load an adapter on its base model in fp32 on the CPU, merge it, and check the result's logits.

    Raises:
        UserError: if the logits differ, or the base model is held in fewer bits.
    """
    loaded = load_model(folder, dtype="float32", device="cpu")
    refuse_quantised(loaded.model, folder)
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
    chat_format = chat_format_in(loaded)
    if chat_format is not None:
        texts.append(chat_format.encode_conversation(PROBE)[0])
    return [ids[:MAX_CHECKED_TOKENS] for ids in texts]


def chat_format_in(loaded: LoadedModel) -> ChatFormat | None:
    """Return the format stored with a model, or that of its tokenizer; None where neither is to be had."""
    stored = load_chat_format(loaded.path, loaded.tokenizer)
    if stored is not None:
        return stored
    try:
        return find_chat_format(loaded.tokenizer, loaded.path)
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


# --- where weights came from --------------------------------------------------------------------------------------

HUB_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")
NOT_TOLD = ("model", "train", "valid", "output_dir", "resume_training", "skip_broken", "trainer")
"""Settings of a run that are paths of this computer, or say nothing about the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where a model's weights came from, as others may read it: no path of this computer is in it.

    `base_model` is an alias or hub id, `license` the base model's, `languages` those it was made for; None or empty is
    not known. `run` holds what `run_facts` found.
    """

    base_model: str | None = None
    license: str | None = None
    languages: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)


def provenance_of(folder: Path) -> Provenance:
    """Return what is recorded about a checkpoint: in its `source.json`, its adapter's config, and its run's folder."""
    folder = folder.resolve()
    stored, run = read_object(folder / SOURCE_FILE), read_object(folder.parent / "run.json")
    if "base_model" in stored:
        return Provenance(**{name: stored[name] for name in Provenance.__dataclass_fields__ if name in stored})
    if (name := public_name(str(folder))) is not None:
        return of_public(name)
    facts = run_facts(folder, run) if run else {}
    base: str | Path | None = run.get("settings", {}).get("model")
    if (folder / ADAPTER_CONFIG).is_file():
        try:
            base = base_of(folder)
        except UserError:  # it is not on this computer; its name may still say which it is
            base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if base is None:
        return Provenance(license=stored.get("license") or license_in(folder), run=facts)
    if (name := public_name(str(base))) is not None:
        found = of_public(name)
    elif Path(base).is_dir() and Path(base).resolve() != folder and is_base_of(Path(base), run):
        found = provenance_of(Path(base))
    else:
        found = Provenance()
    return Provenance(base_model=found.base_model, license=found.license, languages=found.languages, run=facts)


def is_base_of(folder: Path, run: Mapping[str, Any]) -> bool:
    """Say whether a folder is still the model that a run started from; `runs/latest/best` soon is another."""
    return "model" not in run or folder_fingerprint(folder) == run["model"]


def of_public(name: str) -> Provenance:
    """Return what is known about a model by its alias or hub id."""
    known = find_known(name)
    if known is not None:
        languages = tuple(language for language in known.languages if len(language) == 2)
        return Provenance(base_model=name, license=known.license, languages=languages)
    cached = find_in_cache(name, weights=False)
    return Provenance(base_model=name, license=license_in(cached) if cached else None)


def public_name(model: str) -> str | None:
    """Return the alias or hub id by which others know a model, given that or a path; None if there is none.

    The path of a hub model is that of its snapshot in the hub's cache; a pulled model's folder says so in its
    `source.json`.
    """
    known = find_known(model)
    if known is not None:
        return known.hub_id or known.alias
    if cached := HUB_SNAPSHOT.search(model):
        return f"{cached[1]}/{cached[2]}"
    alias = read_object(Path(model) / SOURCE_FILE).get("name")
    if alias in KNOWN_MODELS or (Path(model).name in KNOWN_MODELS and not Path(model).exists()):
        return alias or Path(model).name
    return model if HUB_ID.fullmatch(model) and not Path(model).parent.is_dir() else None


def license_in(folder: Path) -> str | None:
    """Return the licence that a model's own card names in the head of its `README.md`, if it does."""
    import yaml

    try:
        head = re.match(r"---\n(.*?)\n---", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        values = yaml.safe_load(head[1]) if head else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    found = values.get("license_name") or values.get("license") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def run_facts(checkpoint: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's folder says about one of its checkpoints: rows, settings, versions, losses by ability.

    `valid_loss` is that of the checkpoint's own step; `changes`, with intervals, are the quickstart's, which measures
    the best checkpoint.
    """
    folder, settings = checkpoint.parent, run.get("settings", {})
    step = int(checkpoint.name.rpartition("-")[2]) if re.fullmatch(r"checkpoint-\d+", checkpoint.name) else None
    left_out = NOT_TOLD + (("lora_",) if settings.get("method") == "full" else ())
    kept = ("num_train_rows", "num_valid_rows", "train_rows", "valid_rows", "versions")
    facts: dict[str, Any] = {name: run[name] for name in kept if run.get(name)}
    facts["settings"] = {
        name: value
        for name, value in {**settings, "rows_per_step": run.get("rows_per_step")}.items()
        if not (value is None or name.startswith(left_out) or "/" in str(value) or "\\" in str(value))
    }
    facts["step"] = step
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line.get("step") == step]
    losses = {name: value for line in lines for name, value in line.items() if name.startswith("eval_loss")}
    facts["valid_loss"] = {name.removeprefix("eval_loss").removeprefix("_"): value for name, value in losses.items()}
    quickstart = read_object(folder / "quickstart.json")
    if quickstart and (folder / "best").resolve() == checkpoint:
        facts["changes"] = quickstart.get("results", {}).get("changes", {})
    return facts


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none, or it is damaged and so says nothing."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of lines, up to the first that is damaged."""
    found: list[dict[str, Any]] = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return found
