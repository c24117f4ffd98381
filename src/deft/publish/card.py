"""The model card of an export: facts on record in, Markdown for the hub out; what is not known is named."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deft.files import read_object
from deft.fingerprint import versions
from deft.hub.files import holds_adapter
from deft.hub.known import find_known
from deft.prompt.store import FILE_NAME as CHAT_FORMAT_FILE
from deft.publish.provenance import Provenance

LICENSE_IDS = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "bsd-3-clause": "bsd-3-clause",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc0-1.0": "cc0-1.0",
    "gpl-3.0": "gpl-3.0",
    "openrail": "openrail",
    "gemma": "gemma",
    "llama2": "llama2",
    "llama3": "llama3",
    "llama3.1": "llama3.1",
    "llama3.2": "llama3.2",
    "llama3.3": "llama3.3",
}
"""Licences by the names that the hub gives them; others are `other`, with their own name beside it."""
HUB_ID_OF = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct", "gemma3-270m": "google/gemma-3-270m"}
"""The hub's name for a model that deft takes from elsewhere; for the card alone, since its weights are rounded."""


def model_card(name: str, folder: Path, origin: Provenance) -> str:
    """Return the text of `README.md` for the exported `folder`: facts on record only, and what is not known named."""
    import yaml

    is_adapter = holds_adapter(folder)
    head = yaml.safe_dump(front_matter(origin, is_adapter=is_adapter), allow_unicode=True, sort_keys=False)
    parts = [f"---\n{head}---\n\n# {name.rpartition('/')[2]}\n"]
    what = "An adapter for" if is_adapter else "A model fine-tuned from"
    base = f"`{origin.base_model}`" if origin.base_model else "a base model that is not on record"
    parts.append(f"{what} {base}, made with [deft](https://pypi.org/project/deft-llm/).\n")
    parts += [text for text in (training_text(origin.run), loss_text(origin.run)) if text]
    parts += [usage_text(name, folder, is_adapter=is_adapter), license_text(origin), versions_text(origin.run)]
    return "\n".join(parts)


def front_matter(origin: Provenance, *, is_adapter: bool) -> dict[str, Any]:
    """Return the card's head, in the hub's words; what is not known is left out."""
    head: dict[str, Any] = {}
    if origin.license is not None:
        plain = re.sub(r"\s+", "", origin.license.lower())
        if plain in LICENSE_IDS:
            head["license"] = LICENSE_IDS[plain]
        else:
            head |= {"license": "other", "license_name": re.sub(r"\s+", "-", origin.license.lower())}
    if origin.base_model is not None:
        head["base_model"] = HUB_ID_OF.get(origin.base_model, origin.base_model)
    if origin.languages:
        head["language"] = list(origin.languages)
    method = origin.run.get("settings", {}).get("method", "full")
    tags = ["deft", "sft", "conversational", *([method] if method != "full" else ())]
    return head | {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }


def training_text(run: Mapping[str, Any]) -> str:
    """Return what the model was trained on and how, as far as its run is on record."""
    if not run:
        return "## Training\n\nNo run is on record with this checkpoint.\n"
    rows = [("training", "train"), ("validation", "valid")]
    lines = ["## Training\n", "| rows | number | fingerprint |", "| --- | ---: | --- |"]
    lines += [
        f"| {title} | {run[f'num_{key}_rows']:,} | `{run.get(f'{key}_rows', '–')}` |"
        for title, key in rows
        if f"num_{key}_rows" in run
    ]
    lines.append("\nA fingerprint changes with any token or label of the rows.\n")
    lines += ["| setting | value |", "| --- | --- |"]
    lines += [f"| {cell(name)} | {cell(value)} |" for name, value in run.get("settings", {}).items()]
    if run.get("step") is not None:
        lines.append(f"\nThese are the weights after step {run['step']}.")
    return "\n".join(lines) + "\n"


def loss_text(run: Mapping[str, Any]) -> str:
    """Return the tables of losses, in nats per supervised token: before and after with intervals, and of the step."""
    parts = []
    if changes := run.get("changes"):
        lines = ["## Held-out loss before and after\n", "Nats per token of the reply; 95 % intervals over rows.\n"]
        lines += [
            "| ability | rows | before | after | change | interval |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
        ]
        for ability, change in changes.items():
            low, high = (number(change.get(key), "+.3f") for key in ("low", "high"))
            interval = f"{low} to {high}" if "–" not in (low, high) else "not known"
            values = [number(change.get(key), ".3f") for key in ("before", "after")]
            values.append(number(change.get("difference"), "+.3f"))
            lines.append(f"| {cell(ability)} | {change.get('num_rows', '–')} | {' | '.join(values)} | {interval} |")
        parts.append("\n".join(lines) + "\n")
    if losses := run.get("valid_loss"):
        lines = ["## Validation loss\n", "Nats per token of the reply.\n", "| ability | loss |", "| --- | ---: |"]
        lines += [f"| {cell(ability or 'all rows')} | {number(loss, '.4f')} |" for ability, loss in losses.items()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def usage_text(name: str, folder: Path, *, is_adapter: bool) -> str:
    """Return how to load the model, and how its chats are written."""
    quoted = json.dumps(name, ensure_ascii=False)
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if is_adapter:
        imports = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
    lines = [
        "## Use\n\nWith deft, which writes a chat as in training:\n",
        "```python",
        "from deft.serve.assistant import Assistant\n",
        f"assistant = Assistant({quoted})",
        'print(assistant.inference([{"messages": [{"role": "user", "content": "你好"}]}])[0][0])',
        "```\n",
        f"With {'peft' if is_adapter else 'transformers'}:\n",
        "```python",
        *imports,
        f"\ntokenizer = AutoTokenizer.from_pretrained({quoted})",
        f"model = {imports[0].split()[3].rstrip(',')}.from_pretrained({quoted})",
        "```\n",
    ]
    kind = read_object(folder / CHAT_FORMAT_FILE).get("kind")
    has_template = (folder / "chat_template.jinja").is_file()
    if kind in ("role_tokens", "baichuan_chat"):
        lines.append(
            f"Chats are written with role tokens, for which there is no chat template: see `{CHAT_FORMAT_FILE}`."
        )
    elif has_template:
        lines.append(
            f"Chats are written with the tokenizer's chat template; `{CHAT_FORMAT_FILE}` holds an example."
            if kind
            else "Chats are written with the tokenizer's chat template."
        )
    else:
        lines.append("No chat template is stored with this model.")
    return "\n".join(lines) + "\n"


def license_text(origin: Provenance) -> str:
    """Return the licence notice; a licence that is not known is asked for."""
    base = f"`{origin.base_model}`" if origin.base_model else "the base model"
    if origin.license is None:
        return (
            f"## Licence\n\n**Not known.** The licence of {base} is not on record. Look it up, and state it here and "
            "as `license` in the head of this file, before you publish these weights.\n"
        )
    known = find_known(origin.base_model) if origin.base_model else None
    if known is not None and known.license == origin.license:
        named = f"{base} is under the licence {origin.license}, which goes with these weights"
    else:
        named = f"These weights are under the licence {origin.license}"
    text = f"## Licence\n\n{named}. Its terms, notices and limits of use pass on to whoever takes them.\n"
    if known is not None and known.terms is not None:
        text += f"\n{known.terms.notice.rstrip('.')}. Terms: {known.terms.url}\n"
    return text


def versions_text(run: Mapping[str, Any]) -> str:
    """Return the versions that trained, and those that exported."""
    lines = ["## Versions\n", "| package | trained with | exported with |", "| --- | --- | --- |"]
    trained, now = run.get("versions", {}), versions()
    lines += [f"| {name} | {trained.get(name, '–')} | {now.get(name, '–')} |" for name in {**trained, **now}]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def number(value: Any, form: str) -> str:
    """Return a number as text; – where it is not known."""
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else "–"
