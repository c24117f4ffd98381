"""The loss of a checkpoint on the held-out rows of a plan's folder, by `deft.evaluation.loss`, as JSON."""

import json
import sys
from pathlib import Path

from benchmarks.peers.plan import start
from deft.data.read import read_examples
from deft.evaluation.loss import row_losses
from deft.losses import OVERALL, losses_by_ability
from deft.model.load import load_model
from deft.model.start import start_from
from deft.prompt.encode import encode_examples


def main() -> None:
    """Measure the checkpoint named second, its prompts made by the model that the plan starts from."""
    plan = start(sys.argv[1:])
    loaded = load_model(sys.argv[2], dtype="float32", device="cpu")
    chat_format = start_from(plan.model).chat_format
    examples = read_examples(Path(plan.folder) / "heldout.jsonl").examples
    sequences = encode_examples(examples, chat_format, max_length_tokens=plan.pack_length_tokens).sequences
    rows = row_losses(loaded.model, sequences, pack_length_tokens=plan.pack_length_tokens)
    print(json.dumps({"loss": losses_by_ability(rows)[OVERALL].loss, "num_rows": len(rows)}))


if __name__ == "__main__":
    main()
