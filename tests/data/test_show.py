import io

import numpy as np
from rich.console import Console, RenderableType

from deft.data.audit import Audit, audit
from deft.data.read import BrokenRow
from deft.data.show import audit_table, problems_table
from deft.errors import NotTrainable
from deft.types import IGNORED_LABEL, Example, Message, TokenSequence


def plain(shown: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def example(reply: str, ability: str | None = "数学", prompt: str = "问") -> Example:
    messages = [Message(role="user", content=prompt), Message(role="assistant", content=reply)]
    return Example.create(messages, ability=ability, source="甲.json:3")


def audited(*rows: Example) -> Audit:
    def encode(one: Example) -> TokenSequence:
        if one.messages[-1].content == "坏":
            raise NotTrainable("refused", "…")
        ids = np.arange(1500, dtype=np.int32)
        return TokenSequence(id=one.id, input_ids=ids, labels=np.where(ids < 500, IGNORED_LABEL, ids).astype(np.int32))

    return audit(rows, encode=encode, max_length_tokens=2048, end_of_turn_ids={1499})


def test_audit_table_has_a_line_for_each_ability_and_a_total() -> None:
    assert plain(audit_table(audited(example("甲"), example("乙", "[red]写作", "写")))) == (
        "ability    rows  tokens  supervised    p50    p90    max\n"
        "[red]写作     1   1,500       1,000  1,500  1,500  1,500\n"
        "数学          1   1,500       1,000  1,500  1,500  1,500\n"
        "total         2   3,000       2,000  1,500  1,500  1,500"
    )


def test_audit_table_shows_faults_where_there_are_any() -> None:
    assert plain(audit_table(audited(example("甲"), example("甲"), example("坏", None)))) == (
        "ability  rows  tokens  supervised    p50    p90    max  duplicates  same prompt  dropped\n"
        "(none)      1       0           0      0      0      0           0            1  1 refused\n"
        "数学        2   3,000       2,000  1,500  1,500  1,500           1            2\n"
        "total       3   3,000       2,000  1,500  1,500  1,500           1            3  1 refused"
    )


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
