"""The Chinese catalogue has all that deft may show, and nothing else; it reads as Chinese and loses no value."""

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from string import Formatter

import pytest
from tests.language.templates import help_texts, shown_texts

from deft.commands import app as cli
from deft.data.files import find_files
from deft.errors import UserError
from deft.language.catalogue import FOLDER, catalogue, compiled, filled, in_language, speak
from deft.language.errors import told
from deft.training.config import TrainConfig
from deft.types import Message

FILES = sorted((FOLDER / "zh").glob("*.json"))
ASSEMBLED = "assembled"
"""The file of texts that no reader of the source can find: those of cyclopts, and those made from a list of parts."""
VALUES = ("数据/我的 文件.jsonl", "1,240", "it's `x`: [y] (z)", "四", "5 of 6", "七", "8")
"""What templates are filled with: a path with spaces and Chinese, numbers, punctuation."""
WRONG_WIDTH = re.compile(r"[一-鿿][,;:?!(]|[,;:?!)][一-鿿]")


@cache
def shown() -> frozenset[str]:
    return frozenset(shown_texts().keys() | help_texts())


def words_of(file: str) -> dict[str, str]:
    return json.loads((FOLDER / "zh" / f"{file}.json").read_text(encoding="utf-8"))


def test_each_text_has_its_chinese_and_none_is_left_over() -> None:
    ours = {text for file in FILES if file.stem != ASSEMBLED for text in words_of(file.stem)}
    assert sorted(shown() - ours) == [], "translate these: python -m tests.language.templates names their files"
    assert sorted(ours - shown()) == [], "deft shows these no longer"


def test_no_text_stands_in_two_files() -> None:
    counts = Counter(text for file in FILES for text in words_of(file.stem))
    assert [text for text, count in counts.items() if count > 1] == []


def fields_of(template: str) -> Counter[tuple[str, str]]:
    parts = [(field, spec or "") for _, field, spec, _ in Formatter().parse(template) if field is not None]
    return Counter((field or str(place), spec) for place, (field, spec) in enumerate(parts))


def test_fields_and_markup_are_those_of_the_english() -> None:
    for english, chinese in catalogue("zh").items():
        assert set(fields_of(chinese)) == set(fields_of(english)), english
        tags = [re.findall(r"\[/?[a-z ]*\]", text) for text in (english, chinese)]
        if "{}" not in english and not english.startswith(("[choices", "[default", "[required")):
            assert tags[0] == tags[1], english


def test_punctuation_beside_chinese_is_chinese() -> None:
    for english, chinese in catalogue("zh").items():
        assert not (found := WRONG_WIDTH.search(chinese)), f"{found} in {chinese!r} for {english!r}"


def test_each_filled_sentence_is_found_again() -> None:
    """Whatever the values are, the template that made a sentence is the one that fits it."""
    for english, chinese in catalogue("zh").items():
        _, _, names = compiled(english)
        if all(name.isdecimal() for name in names):
            values = dict(zip(names, VALUES, strict=False))
            unnamed = "".join(
                literal + ("" if field is None else next(given))
                for given in [iter(values.values())]
                for literal, field, _, _ in Formatter().parse(english)
            )
            assert in_language(unnamed, "zh") == filled(chinese, values), english


@pytest.mark.parametrize(
    ("fault", "told_as"),
    [
        (lambda: TrainConfig(num_epochs=0), "num_epochs 超出范围|0|num_epochs 须为整数，不小于 1、不大于 10,000"),
        (lambda: TrainConfig(learning_rate=-1.0), "learning_rate 超出范围|-1.0|learning_rate 须为数字，大于 0"),
        (lambda: TrainConfig(seed=-1), "seed 超出范围|-1|seed 须为整数，0 到 4294967295"),
        (lambda: TrainConfig(warmup_ratio=2.0), "warmup_ratio 超出范围|2.0|warmup_ratio 应为：不小于 0 且小于 1"),
        (
            lambda: find_files("没有/我的 数据.jsonl"),
            "没有这个文件或文件夹|没有/我的 数据.jsonl|文件夹 没有 也无法列出",
        ),
        (lambda: Message(role="user", content=" "), "空的 user 消息|给它文本，或去掉这条数据"),
    ],
)
def test_real_errors_are_told_in_chinese(fault: Callable[[], object], told_as: str) -> None:
    with pytest.raises(UserError) as raised:
        fault()
    speak("zh")
    try:
        lines = told(raised.value).splitlines()
    finally:
        speak("en")
    assert [line.partition("：")[2] if line.startswith("  ") else line for line in lines] == told_as.split("|")
    assert not re.search("[一-鿿]", raised.value.what), "for Python it stays English"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("trian", "没有这个命令：“trian”。是不是想写“train”？"),
        ("data 看", "没有这个命令：“看”。可用的命令：convert, show, audit。"),
        ("data audit", "命令“data audit”的 --folder 需要一个值。"),
        ("train --epochs 3", "没有这个选项：--epochs。"),
        ("train --method 全部", "--method 不能是“全部”。可选："),
        ("train --num-epochs 三", "--num-epochs 的值“三”无法转换为 int。"),
        ("chat --top-p 2", "--top-p 不能是 2.0：不得大于 1。"),
        ("chat 甲 乙", "多余的参数：['乙']。"),
        ("data audit --help", "文件夹。 [必填]"),
    ],
)
def test_what_cyclopts_says_is_told_in_chinese(command: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--lang", "zh"])
    assert stopped.value.code == (0 if "--help" in command else 2)
    shown = "".join(line.strip("│ ") for line in "".join(capfd.readouterr()).splitlines())
    assert said.replace(" ", "") in shown.replace(" ", "")


def test_help_and_errors_are_chinese_only_where_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*tokens: str) -> str:
        with pytest.raises(SystemExit):
            cli.main(tokens)
        return "".join(capfd.readouterr())

    monkeypatch.delenv("DEFT_LANG", raising=False)
    monkeypatch.setenv("LC_ALL", "C")
    assert "用法：deft train" in said("--lang", "zh", "train", "--help")
    assert "[默认：polynomial]" in said("train", "--help", "--lang=zh")
    assert "Usage: deft train" in said("train", "--help")
    assert said("train").startswith("error: ")
    assert said("train", "--lang", "zh").startswith("错误：")
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert said("train").startswith("错误：")
    assert said("models", "--lang", "法语").startswith("error: ")
