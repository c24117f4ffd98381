"""The judge of the template benchmark: it knows a right row, and sees every kind of wrong one."""

from pathlib import Path

import pytest
from benchmarks.templates.conversations import Case, call, reply, result, system, typed, user
from benchmarks.templates.fetch import Template, all_templates, of_folder, of_python
from benchmarks.templates.marks import difference
from benchmarks.templates.render import Unbuildable
from benchmarks.templates.served import Judge, behind_words, faults_of
from benchmarks.templates.tokenizers import tokenizer_for
from benchmarks.templates.verdict import tried

from deft.errors import UserError
from deft.prompt.formats.kinds import Encoded

CHATML = """
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{ '<|im_start|>assistant\n' }}
{%- if m.reasoning_content and loop.last -%}{{ '<think>\n' ~ m.reasoning_content ~ '\n</think>\n\n' }}{%- endif -%}
{{ m.content ~ '<|im_end|>\n' }}
{%- else -%}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""
TWO = Case("two", (system("简短。"), user("你好"), reply("Hello!"), user("再见"), reply("再见，Bye")))
THOUGHT = Case("thought", (user("1+1"), reply("二", reasoning="一加一")))
START = "<|im_start|>system\n简短。<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
MIDDLE = "\n<|im_start|>user\n再见<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(tokenizer_for(CHATML))


def row(judge: Judge, *parts: str) -> Encoded:
    """Return a sequence of parts that are silent and trained in turn."""
    ids = [judge.ids(part) for part in parts]
    weights = [[float(place % 2)] * len(part) for place, part in enumerate(ids)]
    return Encoded([number for part in ids for number in part], [weight for part in weights for weight in part], 0)


def faults(judge: Judge, case: Case, *rows: Encoded) -> list[str]:
    return faults_of(judge, case, rows, [judge.special["<|im_end|>"]])


def test_a_right_row_has_no_fault(judge):
    whole = row(judge, START, "Hello!<|im_end|>", MIDDLE, "再见，Bye<|im_end|>")
    alone = row(judge, START, "Hello!<|im_end|>")
    second = row(judge, START + "Hello!<|im_end|>" + MIDDLE, "再见，Bye<|im_end|>")
    assert faults(judge, TWO, whole) == []
    assert faults(judge, TWO, alone, second) == []


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ((START, "Hello!", "<|im_end|>" + MIDDLE, "再见，Bye<|im_end|>"), "reply 2: trained 'Hello!'"),
        ((START, "Hello!<|im_end|>\n", MIDDLE[1:], "再见，Bye<|im_end|>"), "reply 2: trained"),
        ((START, "Hello!<|im_end|>" + MIDDLE + "再见，Bye<|im_end|>"), "reply 2: trained"),
        ((START + "H", "ello!<|im_end|>", MIDDLE, "再见，Bye<|im_end|>"), "reply 2: 'H' is not trained"),
        ((START, "Hello!<|im_end|>", MIDDLE + "再见，Bye<|im_end|>"), "reply 4 is trained 0 times"),
        ((START[:-1], "\nHello!<|im_end|>", MIDDLE, "再见，Bye<|im_end|>"), "behind no served prompt"),
        (("<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n", "Hello!<|im_end|>"), "behind no served prompt"),
        ((START, "<think>\n\n</think>\n\nHello!<|im_end|>", MIDDLE, "再见，Bye<|im_end|>"), "reply 2: trained"),
    ],
)
def test_a_wrong_mask_is_seen(judge, parts, fault):
    assert any(fault in found for found in faults(judge, TWO, row(judge, *parts)))


def test_a_reply_trained_twice_or_with_another_weight_is_seen(judge):
    whole = row(judge, START, "Hello!<|im_end|>", MIDDLE, "再见，Bye<|im_end|>")
    assert "reply 2 is trained 2 times" in faults(judge, TWO, whole, row(judge, START, "Hello!<|im_end|>"))
    half = whole._replace(weights=[weight / 2 for weight in whole.weights])
    assert faults(judge, TWO, half) == ["reply 2: weights [0.5], not 1.0", "reply 4: weights [0.5], not 1.0"]


def test_reasoning_is_trained_or_masked_as_asked_for(judge):
    prompt, block = "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n", "<think>\n一加一\n</think>\n\n"
    trained, masked = row(judge, prompt, block + "二<|im_end|>"), row(judge, prompt + block, "二<|im_end|>")
    none = THOUGHT._replace(train_reasoning="none")
    assert faults(judge, THOUGHT, trained) == faults(judge, none, masked) == []
    assert faults(judge, THOUGHT, masked) and faults(judge, none, trained)


def test_typed_control_strings_must_stay_text(judge):
    case = typed(("<|im_end|>",))
    text = "<|im_start|>user\n什么是 {} ？<|im_end|>\n<|im_start|>assistant\n"
    after = "\n<|im_start|>user\nok<|im_end|>\n<|im_start|>assistant\n"
    wrong = row(judge, text.format("<|im_end|>"), "<|im_end|> 是控制符号。<|im_end|>", after, "结束<|im_end|>")
    assert "is no served reply" in faults(judge, case, wrong)[0]


def test_what_cannot_be_built_is_told(judge):
    calls = Case("call", (user("天气？"), reply("", tool_calls=(call("北京"),)), result("晴", "x"), reply("晴")))
    with pytest.raises(Unbuildable, match="a call is not written once"):
        judge.expected(calls)
    endless = CHATML.replace("<|im_end|>", "\n").replace("<|im_start|>", "### ")
    with pytest.raises(Unbuildable, match="no special token follows a reply"):
        Judge(tokenizer_for(endless)).expected(TWO)


def test_a_template_is_tried_on_every_conversation():
    found = tried(Template("own", "中文", CHATML), "words")
    plain = [one for one in found.verdicts if one.kind == "plain"]
    assert len(found.verdicts) >= 14 and found.count("wrong") == found.count("needless") == 0
    assert found.count("exact", "plain") == len(plain) == 9
    assert {one.outcome for one in found.verdicts if one.kind == "tools"} == {"refused"}


def test_templates_are_found_in_files_and_in_source(tmp_path: Path):
    (tmp_path / "甲.jinja").write_text(CHATML, encoding="utf-8")
    (tmp_path / "乙.jinja").write_text(CHATML + "\n", encoding="utf-8")
    assert [one.name for one in of_folder(tmp_path)] == ["乙"]  # each content once
    assert of_python(f"A = {CHATML!r}\nB = 'no template'") == [("A", CHATML)]


def test_without_network_and_cache_there_is_one_error(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError, match="cannot be fetched") as error:
        all_templates(tmp_path)
    assert "--templates" in str(error.value.fix)
    assert list(tmp_path.iterdir()) == []


def test_differences_are_told_in_words():
    assert difference("好<|im_end|>", "好<|im_end|>\n") == "only the mark trains '\\n' after a reply"
    assert difference("思考\n好", "好") == "only deft trains '思考\\n' before a reply"
    assert behind_words("a  b\n c", "a b c") == 7 and behind_words("a b", "a c") is None
