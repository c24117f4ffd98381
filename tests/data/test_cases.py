"""Rows as people have them: loss flags, reasoning, tools, in every layout; each with what it should be read as.

A case of `cases/rows.jsonl` is read, compared, written, and read back.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deft.data.read import make_example, read_examples
from deft.data.write import message_rows, write_examples
from deft.errors import UserError

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "cases" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
]
READ = [case for case in CASES if "messages" in case["expected"]]
REFUSED = [case for case in CASES if "refused" in case["expected"]]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "cases" / "rows.jsonl"


@pytest.mark.parametrize("case", READ, ids=[case["case"] for case in READ])
def test_a_row_is_read_as_it_is_meant(case: dict[str, Any]) -> None:
    example = make_example(case["row"])
    assert message_rows(example) == case["expected"]["messages"]
    assert list(example.tools) == case["expected"].get("tools", [])


@pytest.mark.parametrize("case", REFUSED, ids=[case["case"] for case in REFUSED])
def test_a_row_that_cannot_be_meant_is_refused_with_its_place(case: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "行.jsonl"
    file.write_text(json.dumps(case["row"], ensure_ascii=False) + "\n", encoding="utf-8")
    with pytest.raises(UserError) as refusal:
        read_examples(file)
    assert case["expected"]["refused"] in refusal.value.what
    assert refusal.value.where == f"{file}:1"
    assert refusal.value.fix


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_written_is_read_back_equal(suffix: str, tmp_path: Path) -> None:
    examples = [make_example(case["row"]) for case in READ]
    write_examples(tmp_path / f"一起{suffix}", examples)
    together = read_examples(tmp_path / f"一起{suffix}").examples
    assert [replace(one, source="") for one in together] == examples
    for number, example in enumerate(examples):
        file = tmp_path / f"{number}{suffix}"
        write_examples(file, [example])
        [again] = read_examples(file).examples
        assert replace(again, source="") == example, READ[number]["case"]


def test_the_rows_that_users_reported() -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not there")
    rows = {}
    for line in SHARED.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        try:
            rows[case["case"]] = [(one.role, one.content, one.weight) for one in make_example(case["row"]).messages]
        except UserError as error:
            rows[case["case"]] = error.what
    spider = [("user", "How many legs has a spider?", 1), ("assistant", "Six.", 0), ("user", "Are you sure?", 1)]
    corrected = [*spider, ("assistant", "No, eight.", 1)]
    less = [spider[0], ("assistant", "Six.", 0.1), *corrected[2:]]
    passage = "Answer with the passage.\nThe mill stands on the Sieg.\nWhich river?"
    mill = "Which river does the text name?\nThe old mill stands on the Sieg, upstream of the weir."
    rain = [("system", "Answer like a pirate.", 1), ("user", "What is rain?", 1)]
    assert rows == {
        "dolly": [("user", mill, 1), ("assistant", "The Sieg.", 1)],
        "ff_instr": [("user", "Translate into French.\nthe river", 1), ("assistant", "la rivière", 1)],
        "inst_question": [("user", passage, 1), ("assistant", "Sieg", 1)],
        "alpaca_sysprompt": [*rain, ("assistant", "Arr, water from above.", 1)],
        "flag_train_false": corrected,
        "flag_masked": corrected,
        "flag_weight_half": less,
        "kto": "a reply is marked as bad (`label`)",
        "mm_lf": "a row with images, sound or film is not text alone (`images`)",
    }
