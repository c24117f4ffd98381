"""The example data of a language go in; the rows to train on, to validate with and to test on come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from deft.data.read import read_examples
from deft.quickstart.plan import Plan
from deft.report.texts import Lang
from deft.types import Example

EXAMPLES = Path("examples/abilities")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The examples of the three splits; of each ability a first part where the plan says so."""

    train: Sequence[Example]
    valid: Sequence[Example]
    test: Sequence[Example]


def example_folder(lang: Lang) -> Path:
    """Return the folder of the example rows of a language: those in the current folder, else those in the package."""
    own = EXAMPLES / lang / "curated"
    if own.is_dir():
        return own
    return Path(str(resources.files("deft.data"))) / "abilities" / lang / "curated"


def read_rows(plan: Plan) -> Rows:
    """Read the three splits."""
    return Rows(
        train=spread(read_examples(plan.config.train).examples, plan.max_train_rows),
        valid=spread(read_examples(plan.config.valid).examples, plan.num_valid_rows),
        test=spread(read_examples([plan.test]).examples, plan.max_test_rows),
    )


def spread(examples: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """Return at most `limit` examples, the first of every ability in turn, in their order."""
    if limit is None or limit >= len(examples):
        return examples
    place_in_ability: dict[str | None, int] = {}
    ranked = []
    for index, example in enumerate(examples):
        place = place_in_ability.setdefault(example.ability, 0)
        place_in_ability[example.ability] += 1
        ranked.append((place, index))
    return [examples[index] for index in sorted(index for _, index in sorted(ranked)[:limit])]
