import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from deft.data.audit import Audit, audit
from deft.data.read import BrokenRow
from deft.data.show import audit_table, problems_table
from deft.errors import NotTrainable
from deft.types import IGNORED_LABEL, EncodedExample, Example, Message, TokenSequence


def plain(shown: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def example(reply: str, ability: str | None = "数学", prompt: str = "问") -> Example:
    messages = [Message(role="user", content=prompt), Message(role="assistant", content=reply)]
    return Example.create(messages, ability=ability, source="甲.json:3")


def audited(*rows: Example) -> Audit:
    def encode(one: Example) -> EncodedExample | NotTrainable:
        if one.messages[-1].content == "坏":
            return NotTrainable("refused", "…")
        ids = np.arange(1500, dtype=np.int32)
        labels = np.where(ids < 500, IGNORED_LABEL, ids).astype(np.int32)
        return EncodedExample([TokenSequence(id=one.id, input_ids=ids, labels=labels)], 0)

    return audit(rows, map(encode, rows), max_length_tokens=2048, end_of_turn_ids={1499})


def test_audit_table_has_a_line_for_each_ability_and_a_total() -> None:
    assert plain(audit_table(audited(example("甲"), example("乙", "[red]写作", "写")))) == (
        "ability    rows  tokens  supervised    p50    p90    max\n"
        "[red]写作     1   1,500       1,000  1,500  1,500  1,500\n"
        "数学          1   1,500       1,000  1,500  1,500  1,500\n"
        "total         2   3,000       2,000  1,500  1,500  1,500"
    )


def test_audit_table_shows_faults_where_there_are_any_and_of_whom() -> None:
    rows = [example("甲"), example("甲"), example("坏", None), example("好", "诗", "别的")]
    assert plain(audit_table(audited(*rows))) == (
        "ability  rows  tokens  supervised    p50    p90    max\n"
        "(none)      1       0           0      0      0      0\n"
        "数学        2   3,000       2,000  1,500  1,500  1,500\n"
        "诗          1   1,500       1,000  1,500  1,500  1,500\n"
        "total       4   4,500       3,000  1,500  1,500  1,500\n"
        "\n"
        "ability  duplicates  same prompt  cannot be trained\n"
        "(none)            0            1          1 refused\n"
        "数学              1            2\n"
        "total             1            3          1 refused"
    )


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_audit_table_breaks_no_word_at_80_columns(lang: Any) -> None:
    rows = [example("甲", "creative_writing"), example("甲", "creative_writing"), example("坏", "understanding")]
    one = replace(audited(*rows).total, num_rows=12_345, num_tokens=12_345_678, num_supervised=1_234_567)
    one = replace(
        one, num_duplicates=1234, num_conflicting=1234, num_open_ended=1234, dropped={"too_few_supervised": 9}
    )
    whole = replace(audited(*rows), total=one, abilities=(replace(one, ability="creative_writing"),))
    shown = plain(audit_table(whole, lang), width=80)
    assert max(map(cell_len, shown.splitlines())) <= 80
    words = ["creative_writing", "12,345,678", "too_few_supervised"]
    words += {"en": ["supervised", "duplicates", "trained"], "zh": ["监督词元", "同题异答", "无法训练"]}[lang]
    for word in words:
        assert word in shown


def test_problems_table_sends_no_control_characters() -> None:
    broken = [
        BrokenRow(source="甲.json:3", reason="empty reply"),
        BrokenRow(source="乙:1", reason="x", got="\x1b[31m[b]"),
    ]
    assert plain(problems_table(broken)) == (
        "where      problem      found\n甲.json:3  empty reply\n乙:1       x            \\x1b[31m[b]"
    )


def test_audit_table_keeps_its_numbers_in_a_narrow_terminal() -> None:
    shown = plain(audit_table(audited(example("甲"), example("甲"), example("坏", None))), width=72)
    assert max(map(len, shown.splitlines())) <= 72
    assert "…" not in shown
    assert shown.count("3,000") == 2
