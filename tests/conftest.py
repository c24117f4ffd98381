"""Settings every test runs under: no network, quiet libraries, one thread per worker (the models are tiny)."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "120"
os.environ["DEFT_LANG"] = "en"  # whatever the locale of the machine
if "DEFT_CACHE_DIR" not in os.environ:  # workers get that of the process that starts them
    os.environ["DEFT_CACHE_DIR"] = tempfile.mkdtemp(prefix="deft-tests-")
    atexit.register(shutil.rmtree, os.environ["DEFT_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with an empty hub cache and no network."""

    def no_network(*_: object, **__: object) -> object:
        raise ConnectionError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEFT_MODELS_DIR", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
