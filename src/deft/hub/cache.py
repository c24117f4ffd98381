"""Which models are on this computer already: pulled, or in the hub's own cache. The network is not asked."""

from pathlib import Path

from deft.hub.embedded import find_damage
from deft.hub.files import missing_files
from deft.hub.known import KnownModel, models_folder


def find_in_cache(hub_id: str, *, weights: bool = True) -> Path | None:
    """Return the snapshot of a hub model in the local cache, if it is whole; the network is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return None if missing_files(folder, weights=weights) else folder


def is_present(model: KnownModel, models_dir: Path | None = None) -> bool:
    """Say whether a whole model is on this computer: pulled into the models folder, or in the hub's cache."""
    if model.hub_id is None:
        return find_damage(models_folder(models_dir) / model.alias, model) is None
    return find_in_cache(model.hub_id) is not None
