"""Looking up: exact templates, sentences that are filled already, words within them; English stays what it was."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from deft.errors import UserError
from deft.language import catalogue
from deft.language.errors import told
from deft.screen import say

WORDS = {
    "cannot write {}": "无法写入 {0}",
    "cannot write {} to {}": "无法把 {0} 写入 {1}",
    "{} is damaged: {}": "{0} 已损坏：{1!t}",
    "it is empty": "它是空的",
    'a row looks like {{"a": 1}}': '一条数据形如 {{"a": 1}}',
    "[green]✓[/] {rows:,} rows of {split!t}": "[green]✓[/] {split!t}共 {rows:,} 条",
    "training": "训练数据",
    "{}: {}": "不该出现",
    "{name} rows": "不该出现",
    "  fix:   {advice}": "  办法：{advice}",
    "  got:   {value}": "  实际：{value}",
}


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(catalogue, "catalogue", lambda language: WORDS)
    catalogue.patterns.cache_clear()
    catalogue.speak("zh")
    yield
    catalogue.speak("en")
    catalogue.patterns.cache_clear()


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("cannot write 数据/我的 文件.jsonl", "无法写入 数据/我的 文件.jsonl"),
        ("cannot write rows to 数据 {1}/a to b", "无法把 rows 写入 数据 {1}/a to b"),  # most words first, least text
        ("cannot write two\nlines", "无法写入 two\nlines"),
        ("模型 is damaged: it is empty", "模型 已损坏：它是空的"),
        ("模型 is damaged: 坏了", "模型 已损坏：坏了"),
        ('a row looks like {"a": 1}', '一条数据形如 {"a": 1}'),
        ("a: b", "a: b"),  # no words of its own to go by
        ("12 rows", "12 rows"),  # a template with names is looked up before it is filled
        ("what nobody translated", "what nobody translated"),
    ],
)
@pytest.mark.usefixtures("chinese")
def test_a_sentence_is_found_by_its_words(sentence: str, said: str) -> None:
    assert catalogue.translated(sentence) == said


@pytest.mark.usefixtures("chinese")
def test_templates_are_looked_up_before_they_are_filled() -> None:
    screen = io.StringIO()
    say(Console(file=screen, width=80), "[green]✓[/] {rows:,} rows of {split!t}", rows=1240, split="training")
    assert screen.getvalue() == "✓ 训练数据共 1,240 条\n"


@pytest.mark.usefixtures("chinese")
def test_an_error_is_told_in_chinese_and_stays_english_for_python() -> None:
    error = UserError("cannot write 文件", got="training", fix="it is empty")
    assert told(error) == "无法写入 文件\n  实际：training\n  办法：它是空的"
    assert str(error) == "cannot write 文件\n  got:   training\n  fix:   it is empty"


def test_english_is_what_it_was() -> None:
    error = UserError("cannot write {x}", got=["一", "\x1b"], where="行.jsonl:3", fix="it is empty")
    assert told(error) == str(error)
    assert catalogue.worded("{rows:,} rows", rows=1240) == "1,240 rows"
    assert catalogue.translated("a {b}") == "a {b}"
