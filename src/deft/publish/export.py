"""A checkpoint as a folder to publish: what others load, what they must know, and nothing of this computer.

In: a checkpoint, or its name (an adapter is merged first, or exported as it is). Out: a folder with safetensors in
shards, tokenizer, chat template and format, generation config, licence files, `source.json`, and `README.md`, the model
card; on request it is uploaded to the Hugging Face hub. Training state never goes along.
"""

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from deft.errors import UserError, first_line
from deft.files import read_object, write_json, write_text
from deft.hub.cache import find_in_cache
from deft.hub.files import ADAPTER_CONFIG, weight_files
from deft.hub.find import FoundModel, find
from deft.hub.known import NETWORK_TIMEOUT_S, SOURCE_FILE
from deft.hub.manifest import write_manifest
from deft.hub.terms import pass_on_notice
from deft.model.load import load_model, load_tokenizer
from deft.model.weights import check_weight_files
from deft.prompt.store import load_chat_format
from deft.publish.card import model_card
from deft.publish.layouts import check_layout, in_layout
from deft.publish.merge import (
    MAX_SHARD_SIZE,
    TOLERANCES,
    Ready,
    Tell,
    check_dtype,
    check_sources,
    check_target,
    logits_of,
    merged,
    refuse_quantised,
    save_tokenizer,
    texts_to_check,
    write_model,
    written_alone,
)
from deft.publish.provenance import Provenance, provenance_of, public_name

SHARD_SIZE = re.compile(r"[1-9]\d*(\.\d+)?(KB|MB|GB)")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CARD = "README.md"
LICENSE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """Where an export lies, what the user should still know or do, and its address if it was uploaded."""

    folder: Path
    notes: tuple[str, ...]
    url: str | None = None


def export(
    checkpoint: str | Path | FoundModel,
    out: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    keep_adapter: bool = False,
    to: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
    push: str | None = None,
    public: bool = False,
    tell: Tell = lambda line: None,
) -> ExportResult:
    """Write a checkpoint as a folder to publish, and upload it to the hub as `push` (`org/name`) if that is given.

    `dtype` None leaves whole models in the type they are stored in and writes merged ones in float32. `to` "llama"
    writes a Baichuan2-7B in Llama's layout, "plain_head" a Baichuan2 whose head is normalised already. `license` takes
    the place of the base model's licence.

    Raises:
        UserError: before the long work, if a setting, the target, the hub or the token is at fault, or if the licence
            of what is to be uploaded is not known; later if the logits of what was written differ.
    """
    out = Path(out)
    if dtype is not None:
        check_dtype(dtype)
    if not SHARD_SIZE.fullmatch(max_shard_size):
        raise UserError("max_shard_size is not a valid size", got=max_shard_size, fix="write it as 500MB or 5GB")
    if license is not None and not license.strip():
        raise UserError("the licence is empty", fix="give its name, such as apache-2.0, or leave --license out")
    model = find(checkpoint)
    folder = model.folder
    if keep_adapter and not model.is_adapter:
        fix = "leave --keep-adapter out"
        raise UserError(f"{folder} holds a whole model, no adapter to keep", got=str(folder), fix=fix)
    if to is not None:
        check_layout(model, to, keep_adapter=keep_adapter)
    check_target(out, overwrite=overwrite, sources=(folder,))
    origin = provenance_of(model)
    if license is not None:
        origin = replace(origin, license=license.strip())
    if public and push is None:
        raise UserError("--public goes with --push", fix="--push ORG/NAME --public, or leave --public out")
    if push is not None:
        check_push(push, origin, public=public)
    check_sources(model, verify=verify)
    with written_alone(out, overwrite=overwrite, sources=(folder,)) as temporary:
        if keep_adapter:
            notes = write_adapter(model, temporary, dtype=dtype)
        else:
            tell(f"merging {folder} in fp32" if model.is_adapter else f"loading {folder}")
            ready = merged(model) if model.is_adapter else whole(model)
            if to is not None:
                ready = in_layout(ready, to)
            notes = ready.notes
            write_model(ready, temporary, dtype=dtype or ready.dtype, max_shard_size=max_shard_size)
        copy_licenses(model, temporary)
        pass_on_notice(temporary, origin.base_model)
        write_json(temporary / SOURCE_FILE, asdict(origin))
        name = push or out.name
        write_text(temporary / CARD, model_card(name, temporary, origin))
        check_nothing_local(temporary, model)
        write_manifest(temporary)
    if origin.license is None:
        notes += (f"the base model's licence is not known: look it up and export again with --license (see {CARD})",)
    return ExportResult(folder=out, notes=notes, url=upload(out, push, public=public, tell=tell) if push else None)


# --- weights ------------------------------------------------------------------------------------------------------


def whole(model: FoundModel) -> Ready:
    """Load a whole model on the CPU in fp32, which holds every weight as it is stored, and compute its logits."""
    dtype = stored_dtype(model.folder)
    loaded = load_model(model, dtype="float32", device="cpu")
    refuse_quantised(loaded.model, model.folder)
    texts = texts_to_check(loaded)
    return Ready(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        source=model.folder,
        dtype=dtype,
        texts=texts,
        logits=logits_of(loaded.model, texts),
    )


def stored_dtype(folder: Path) -> str:
    """Return the type that holds every weight of a checkpoint without loss: its own, or float32 for a mixture.

    Raises:
        UserError: if weights are stored in a type that is no plain float, as quantised ones are.
    """
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in weights_of(folder).values()}
    if unknown := sorted(kinds - TOLERANCES.keys()):
        fix = "export the model in float32, float16 or bfloat16"
        raise UserError(f"{folder} holds weights that are not plain floats", got=", ".join(unknown), fix=fix)
    return kinds.pop() if len(kinds) == 1 else "float32"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a checkpoint's weight files, mapped from the disk rather than read."""
    files = weight_files(folder)
    check_weight_files(files)
    found: dict[str, torch.Tensor] = {}
    for file in files:
        safe = file.suffix == ".safetensors"
        found |= load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    return found


def write_adapter(model: FoundModel, out: Path, *, dtype: str | None) -> tuple[str, ...]:
    """Write an adapter, its base model named by alias or hub id, and return what the user should know."""
    folder, tokenizer = model.folder, load_tokenizer(model)
    load_chat_format(folder, tokenizer)
    tensors = weights_of(folder)
    if dtype is not None:
        tensors = {name: weights.to(getattr(torch, dtype)) for name, weights in tensors.items()}
    config = read_object(folder / ADAPTER_CONFIG)
    base = public_name(str(config.get("base_model_name_or_path") or ""))
    out.mkdir()
    save_file({name: weights.contiguous() for name, weights in tensors.items()}, out / "adapter_model.safetensors")
    write_json(out / ADAPTER_CONFIG, config | {"base_model_name_or_path": base})
    (out / "adapter_model.safetensors").chmod((out / ADAPTER_CONFIG).stat().st_mode)
    save_tokenizer(tokenizer, folder, out)
    if base is not None:
        return ()
    return (
        f"the adapter's base model has no public name, so {ADAPTER_CONFIG} names none: write its hub id there, "
        "or export without --keep-adapter",
    )


def copy_licenses(model: FoundModel, out: Path) -> None:
    """Copy the files with licence terms that lie beside a checkpoint, or else beside an adapter's base model."""
    found = license_files(model.folder)
    if not found and model.is_adapter:
        with suppress(UserError):  # an adapter is exported as it is without its base model
            place = model.base_place
            if (base := place if isinstance(place, Path) else find_in_cache(place)) is not None:
                found = license_files(base)
    for file in found:
        shutil.copyfile(file, out / file.name)


def license_files(folder: Path) -> list[Path]:
    """Return the files in a folder that hold licence terms."""
    return [file for pattern in LICENSE_FILES for file in folder.glob(pattern) if file.is_file()]


# --- nothing of this computer -------------------------------------------------------------------------------------


def check_nothing_local(out: Path, model: FoundModel) -> None:
    """Check that no text file of an export names a folder of this computer.

    Raises:
        UserError: naming the file; the export is then not kept.
    """
    checkpoint = model.folder
    places = {
        str(place) for place in (Path.cwd(), Path.home(), checkpoint, checkpoint.resolve(), checkpoint.parent.resolve())
    }
    if model.is_adapter:
        places.add(str(read_object(checkpoint / ADAPTER_CONFIG).get("base_model_name_or_path")))
    places = {place for place in places if Path(place).is_absolute() and len(Path(place).parts) > 1}
    places |= {json.dumps(place)[1:-1] for place in places}  # as JSON writes what is not ASCII
    for file in sorted(out.iterdir()):
        if file.suffix in (".json", ".md", ".jinja") and file.name not in ("tokenizer.json", "vocab.json"):
            text = file.read_text(encoding="utf-8")
            for place in places:
                if re.search(rf"(?<![\w/]){re.escape(place)}(?=[/\"'\s`]|$)", text):
                    raise UserError(
                        "an exported file would name a folder on this computer",
                        got=place,
                        where=file.name,
                        fix=f"take it out of that file in {checkpoint}, then export again",
                    )


# --- the hub ------------------------------------------------------------------------------------------------------


def check_push(repository: str, origin: Provenance, *, public: bool) -> None:
    """Check, before the long work, that a model can be uploaded, and that it stays private unless `public`.

    Raises:
        UserError: if the name is no `org/name`, the licence is not known, the hub cannot be reached, there is no token
            or none that the hub takes, or the repository is already there for all to see.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not REPOSITORY.fullmatch(repository):
        raise UserError("--push needs a repository's name", got=repository, fix="--push ORG/NAME")
    if origin.license is None:
        fix = "look up the base model's licence and name it: --license apache-2.0"
        raise UserError("the licence is not known, so nothing is published", got=repository, fix=fix)
    by_hand = f"export without --push, and upload it later: hf upload {repository} OUT"
    if constants.HF_HUB_OFFLINE:
        raise UserError("the hub is switched off", got="HF_HUB_OFFLINE=1", fix=f"unset HF_HUB_OFFLINE; or {by_hand}")
    if get_token() is None:
        raise UserError(
            "uploading needs a token, and there is none", got=repository, fix=f"hf auth login; or {by_hand}"
        )
    try:
        HfApi().whoami()
        is_private = bool(HfApi().model_info(repository, timeout=NETWORK_TIMEOUT_S).private)
    except RepositoryNotFoundError:
        return
    except Exception as error:  # the hub's own errors and those of whichever http library it uses
        got = f"{type(error).__name__}: {first_line(error)}"
        fix = f"check the network and the token (hf auth whoami); or {by_hand}"
        raise UserError("the hub cannot be reached, or rejects the token", got=got, fix=fix) from error
    if not is_private and not public:
        fix = "--public if that is meant, or another name"
        raise UserError("that repository already exists, and is public", got=repository, fix=fix)


def upload(folder: Path, repository: str, *, public: bool, tell: Tell) -> str:
    """Upload an export to the hub, as a private repository unless `public`, and return its address.

    Raises:
        UserError: if the hub refuses or is gone; the folder stays.
    """
    from huggingface_hub import HfApi

    tell(f"uploading to {repository} ({'public' if public else 'private'})")
    try:
        HfApi().create_repo(repository, private=not public, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported with deft")
    except Exception as error:  # the hub's own errors and those of whichever http library it uses
        got = f"{type(error).__name__}: {first_line(error)}"
        fix = f"the export is whole in {folder}; upload it with: hf upload {repository} {folder}"
        raise UserError(f"the upload to {repository} failed", got=got, fix=fix) from error
    return f"https://huggingface.co/{repository}"
