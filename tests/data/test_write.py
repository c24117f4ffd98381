import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deft.data.read import make_example, read_examples
from deft.data.write import write_examples
from deft.errors import UserError
from deft.types import Example, Message

SUFFIXES = (".jsonl", ".json", ".parquet")


def without_source(examples: Sequence[Example]) -> list[Example]:
    return [dataclasses.replace(example, source="") for example in examples]


def example(reply: str = "答", **fields: Any) -> Example:
    return Example.create([Message(role="user", content="问"), Message(role="assistant", content=reply)], **fields)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_comes_back_equal(format_case: Any, tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "源.jsonl"
    source.write_text(json.dumps(format_case.row, ensure_ascii=False), encoding="utf-8")
    read = read_examples(source).examples
    assert write_examples(tmp_path / f"出{suffix}", read) == 1
    again = read_examples(tmp_path / f"出{suffix}").examples
    assert without_source(again) == without_source(read)
    assert again[0].source == f"{tmp_path}/出{suffix}:1"


def test_layout_is_a_superset_of_doit(tmp_path: Path) -> None:
    path = tmp_path / "出.json"
    write_examples(path, [example(ability="数学", meta={"question_format": 0, "answer": "3"}), example("甲")])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "id": example().id,
        "messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}],
        "type": "数学",
        "question_format": 0,
        "answer": "3",
    }
    assert list(json.loads(lines[1])) == ["id", "messages"]
    assert "问" in lines[0]


COLLIDING = {
    "id": "旧",
    "messages": [1],
    "type": "x",
    "ability": "y",
    "meta": {"id": 1, "别": None},
    "system": "z",
    "tools": [{"name": "f"}],
    "row_id": 5,
    "instruction": "甲",
    "conversations": [{"from": "human", "value": "乙"}],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("ability", [None, "数学"])
def test_colliding_meta_survives(tmp_path: Path, suffix: str, ability: str | None) -> None:
    for meta in [
        COLLIDING,
        *({key: value} for key, value in COLLIDING.items()),
        {"meta": "文字"},
        {"meta": '{"a": 1}'},
    ]:
        written = [example(ability=ability, meta=meta)]
        write_examples(tmp_path / f"出{suffix}", written)
        assert without_source(read_examples(tmp_path / f"出{suffix}").examples) == written


def test_edited_row_gets_a_new_id_and_keeps_its_meta(tmp_path: Path) -> None:
    path = tmp_path / "出.jsonl"
    old = example(meta={"type": "甲"})
    write_examples(path, [old])
    path.write_text(path.read_text(encoding="utf-8").replace("答", "改过的答案"), encoding="utf-8")
    new = read_examples(path).examples[0]
    assert new.id == example("改过的答案").id
    assert new.meta == {"type": "甲", "row_id": old.id}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
CONTENT = TEXT.filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


KNOWN_KEYS = ["messages", "conversations", "conversation", "instruction", "input", "output", "target", "query"]
KNOWN_KEYS += ["response", "history", "system", "type", "ability", "id", "meta", "tools", "instruction_zh", "output_zh"]


@st.composite
def examples(draw: st.DrawFn) -> Example:
    contents = draw(st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3))
    messages = [Message(role="system", content=draw(CONTENT))] if draw(st.booleans()) else []
    for question, reply in contents:
        messages += [Message(role="user", content=question), Message(role="assistant", content=reply)]
    keys = TEXT | st.sampled_from(sorted(COLLIDING))
    meta = draw(st.dictionaries(keys, JSON, max_size=4))
    return Example.create(messages, ability=draw(st.none() | CONTENT), meta=meta)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(examples(), min_size=1, max_size=3))
def test_any_examples_come_back_equal(tmp_path: Path, suffix: str, written: list[Example]) -> None:
    write_examples(tmp_path / f"出{suffix}", written)
    assert without_source(read_examples(tmp_path / f"出{suffix}").examples) == written


@given(row=st.dictionaries(st.sampled_from(KNOWN_KEYS), JSON))
@settings(max_examples=200, deadline=None)
def test_any_row_gives_an_example_or_a_user_error(row: dict[str, Any]) -> None:
    try:
        assert make_example(row).messages
    except UserError as error:
        assert str(error)


def test_many_rows_and_none(tmp_path: Path) -> None:
    many = [example(f"第{n}个") for n in range(1025)]
    for suffix in SUFFIXES:
        assert write_examples(tmp_path / f"出{suffix}", iter(many)) == 1025
        assert without_source(read_examples(tmp_path / f"出{suffix}").examples) == many
        assert write_examples(tmp_path / f"空{suffix}", []) == 0


def test_unknown_ending_and_unwritable_values(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write_examples(tmp_path / "出.csv", [example()])
    assert caught.value.fix == "end the name in .jsonl, .json, .parquet"
    for value in ({1, 2}, float("nan"), "\ud800"):
        for suffix in SUFFIXES:
            with pytest.raises(UserError, match="`meta` is not JSON") as caught:
                write_examples(tmp_path / f"出{suffix}", [example(source="甲.json:3", meta={"键": value})])
            assert caught.value.where == f"example {example().id} (甲.json:3)"
    assert list(tmp_path.iterdir()) == []


def test_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "出.jsonl"
    write_examples(path, [example("旧")])
    before = path.read_bytes()
    with pytest.raises(UserError):
        write_examples(path, [example("新"), example(meta={"键": {1}})])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
