import json
from pathlib import Path

import numpy as np
import pytest

from deft.data.audit import Audit, audit, leaks, percentiles
from deft.errors import NotTrainable
from deft.types import IGNORED_LABEL, EncodedExample, Example, Message, TokenSequence

END = 2


def example(prompt: str, reply: str, ability: str | None = None, source: str = "") -> Example:
    messages = [Message(role="user", content=prompt), Message(role="assistant", content=reply)]
    return Example.create(messages, ability=ability, source=source)


def encode(one: Example, max_length_tokens: int) -> EncodedExample | NotTrainable:
    """One token for each character; the reply and an end-of-turn token carry loss, the latter unless it says 不停."""
    prompt, reply = (message.content for message in one.messages)
    if "坏" in prompt:
        return NotTrainable("template_refused", "the template refuses this row")
    sequence = sequence_of(one.id, len(prompt), len(reply), ends="不停" not in reply)
    if len(sequence) > max_length_tokens:
        return NotTrainable("too_long", "the row is too long")
    return EncodedExample([sequence], 0)


def sequence_of(row_id: str, num_asked: int, num_said: int, *, ends: bool = True) -> TokenSequence:
    ids = [10] * num_asked + [11] * num_said + [END]
    labels = [IGNORED_LABEL] * num_asked + [11] * num_said + [END if ends else IGNORED_LABEL]
    return TokenSequence(id=row_id, input_ids=np.array(ids, np.int32), labels=np.array(labels, np.int32))


def run(examples: list[Example], max_length_tokens: int = 12) -> Audit:
    rows = (encode(one, max_length_tokens) for one in examples)
    return audit(examples, rows, max_length_tokens=max_length_tokens, end_of_turn_ids={END})


ROWS = [
    example("一加一？", "二", "math"),  # 6 tokens, 2 supervised
    example("一加一？", "二", "math"),  # the same row again
    example("一 加 一 ?", "等于二", "math"),  # the same prompt to a reader; 7 + 3 + 1 = 11 tokens, 4 supervised
    example("坏", "行", "math"),  # refused
    example("写诗", "床前明月光疑是地上霜", "写作"),  # 2 + 10 + 1 = 13 tokens: too long
    example("写诗", "不停写", "写作"),  # 2 + 3 + 1 = 6 tokens, 3 supervised, the end is not trained
    example("你好", "你好！"),  # 6 tokens, 4 supervised
]


def test_counts_by_hand() -> None:
    found = run(ROWS)
    assert [one.ability for one in found.abilities] == ["(none)", "math", "写作"]
    _, maths, writing = found.abilities
    assert (maths.num_rows, maths.num_trainable, maths.num_tokens, maths.num_supervised) == (4, 3, 23, 8)
    assert (maths.num_duplicates, maths.num_conflicting, maths.num_open_ended) == (1, 3, 0)
    assert (maths.length_p50, maths.length_p90, maths.length_max) == (6, 11, 11)
    assert maths.dropped == {"template_refused": 1}
    assert (writing.num_rows, writing.num_tokens, writing.num_supervised) == (2, 6, 3)
    assert (writing.num_conflicting, writing.num_open_ended) == (2, 1)
    assert writing.dropped == {"too_long": 1}
    total = found.total
    assert (total.num_rows, total.num_dropped, total.num_tokens, total.num_supervised) == (7, 2, 35, 15)
    assert (total.num_duplicates, total.num_conflicting, total.num_open_ended) == (1, 5, 1)
    assert (total.length_p50, total.length_p90, total.length_max) == (6, 11, 11)
    assert found.stop_reasons == ()
    assert found.warnings == (
        "2 of 7 rows cannot be trained: 1 template_refused, 1 too_long",
        "1 of 5 replies do not end with an end-of-turn token that is trained",
        "1 of 7 rows are duplicates of others",
        "5 rows share their prompt with a row that has another reply",
        "1 of 7 rows name no ability",
    )


def test_order_of_rows_changes_no_count() -> None:
    assert run(ROWS[::-1]).total == run(ROWS).total


def test_length_limit_is_inclusive() -> None:
    assert run([ROWS[0]], max_length_tokens=6).total.num_trainable == 1
    assert run([ROWS[0]], max_length_tokens=5).total.dropped == {"too_long": 1}


GOOD = example("问", "答", "math")
BAD = example("坏", "答", "ethics")
OPEN = example("问题", "不停", "math")


@pytest.mark.parametrize(
    ("rows", "stop_reasons"),
    [
        ([], ("there are no rows",)),
        ([GOOD], ()),
        ([BAD], ("no row can be trained: 1 template_refused",)),
        ([GOOD, BAD], ("no row of ethics can be trained: 1 template_refused",)),
        (
            [GOOD, BAD, example("坏", "另", "math")],
            (
                "more than half of the rows cannot be trained: 2 template_refused",
                "no row of ethics can be trained: 1 template_refused",
            ),
        ),
        ([OPEN], ("no reply ends with an end-of-turn token that is trained, so the model would not learn to stop",)),
        ([OPEN, GOOD], ()),
        ([GOOD, GOOD], ()),
        ([GOOD, GOOD, GOOD], ("more than half of the rows are duplicates of others: 2 of 3",)),
    ],
)
def test_stop_reasons(rows: list[Example], stop_reasons: tuple[str, ...]) -> None:
    assert run(rows).stop_reasons == stop_reasons


def test_percentile_is_a_length_that_occurs() -> None:
    assert percentiles(list(range(1, 11))) == (5, 9, 10)
    assert percentiles([7]) == (7, 7, 7)
    assert percentiles([]) == (0, 0, 0)


def test_leaks_by_id_and_by_prompt() -> None:
    train = [example("１+１＝？", "2", source="a:1"), example("首都？", "北京", source="a:2")]
    held_out = [
        example("首都？", "北京", source="b:1"),
        example("1 + 1 =？", "二", source="b:2"),
        example("河？", "黄河", source="b:3"),
    ]
    found = leaks(train, held_out)
    assert [(leak.train.source, leak.source, leak.reason) for leak in found] == [
        ("a:2", "b:1", "same_id"),
        ("a:1", "b:2", "same_prompt"),
    ]
    assert leaks([], held_out) == ()


def test_rows_longer_than_the_limit_are_named() -> None:
    rows = [example("长", "文", source="甲.json:1"), example("短", "文", source="甲.json:2"), example("更", "长")]
    encoded: list[EncodedExample | NotTrainable] = [
        EncodedExample([sequence_of("长", 4, 2)], 1),
        EncodedExample([sequence_of("短", 4, 2)], 0),
        NotTrainable("too_long", "…"),
    ]
    assert audit(rows, encoded, max_length_tokens=12, end_of_turn_ids={END}).longer == ("甲.json:1", "")


def test_rows_of_several_sequences_are_counted_with_what_they_repeat() -> None:
    rows = [example("问", "答", "对话"), example("问二", "答二", "对话")]
    split = [sequence_of("甲", 3, 2), sequence_of("甲", 8, 2)]  # 6 and 11 tokens
    encoded = [EncodedExample(split, 0), EncodedExample([sequence_of("乙", 2, 2)], 0)]
    found = audit(rows, encoded, max_length_tokens=12, end_of_turn_ids={END})
    assert (found.total.num_split, found.total.num_repeated_tokens, found.total.num_tokens) == (1, 6, 22)
    assert (found.total.num_supervised, found.total.length_max) == (9, 11)
    assert found.warnings == (
        "1 rows become one sequence for each reply, because the chat template writes earlier turns in another way than "
        "it served them: 6 tokens more (38 %)",
    )


def test_the_audit_names_rows_beyond_the_positions_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from deft.commands.app import app
    from deft.screen import console
    from deft.testing.tiny import VOCAB_SIZE, save_tiny

    model = save_tiny(tmp_path / "模型", "llama", seed=1)
    learned = GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=64, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(learned).save_pretrained(model)
    replies = ["好", "好" * 30, "很好", "好" * 2000]  # 30 characters are 90 tokens
    lines = [json.dumps({"prompt": f"问{number}", "response": reply}) for number, reply in enumerate(replies)]
    (tmp_path / "行.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = ["data", "audit", str(tmp_path / "行.jsonl"), "--model", str(model)]
    app(words, console=console(), exit_on_error=False, result_action="return_value")
    said = "".join(capsys.readouterr().out.split())
    assert "themodelhas64positions,and2of4rowsarelonger" in said
    assert f"行.jsonl:2,{tmp_path}/行.jsonl:4)" in said and "2too_long" in said
