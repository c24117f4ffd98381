"""Templates that would take hours or all memory are refused before they are rendered here."""

import os
from pathlib import Path

import pytest

from deft.errors import UserError
from deft.files import CACHE_VARIABLE
from deft.prompt.formats import bounds, probe_template
from deft.prompt.formats.bounds import check_template

GOOD = "{% for m in messages %}{{ m.role }}：{{ m.content | trim }}\n{% endfor %}"
BOMBS = {
    "a loop in a loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "text times a number": "{{ '炸' * 9000000000 }}",
    "much output": "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "a wide text": "{{ '炸' | center(9000000000) }}",
    "an indented text": "{{ messages[0].content | indent(2000000000, true) }}",
    "a format": "{{ '%9000000000d' | format(1) }}",
    "deep nesting": "{% if true %}" * 3000 + "{% endif %}" * 3000,
    "a macro in itself": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a text that doubles": "{% set n = namespace(x='炸') %}{% for a in range(64) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "only in long conversations": "{% if messages | length > 6 %}{{ '炸' * 9000000000 }}{% endif %}",
    "only in conversations of seven": "{% if messages | length == 7 %}{{ '炸' * 9000000000 }}{% endif %}",
    "only where a token is given": "{% if bos_token %}{{ '炸' * 9000000000 }}{% endif %}",
    "only where documents are": "{% if documents is defined %}{{ '炸' * 9000000000 }}{% endif %}",
    "only where contents are being found": "{% if '\ue000' in messages[0].content %}{{ '炸' * 9000000000 }}{% endif %}",
    "beside a tag of transformers": "{% generation %}{% endgeneration %}{{ '炸' * 9000000000 }}",
    "inside of that tag": "{% generation %}{{ '炸' * 9000000000 }}{% endgeneration %}",
    "JSON indented": "{% set x = messages | tojson(indent=9000000000) %}",
    "a method's format": "{% set x = '{:>9999999999}'.format(1) %}",
    "slow, again and again": "{% for m in messages %}{% set x = range(99999) | list | pprint %}{% endfor %}",
    "text replaced": "{% set x = ('炸' * 9999) | replace('', '弹' * 999999) %}",
}


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")
    monkeypatch.setattr(bounds, "passed", set())


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_a_few_seconds(name: str) -> None:
    began_at = os.times()
    with pytest.raises(UserError, match="more work than any conversation needs") as caught:
        check_template(BOMBS[name], {"bos_token": "<s>"})
    assert os.times().children_user - began_at.children_user < 5
    assert caught.value.got and "another chat template" in str(caught.value.fix)


@pytest.mark.parametrize(
    "template", [GOOD, "{{ raise_exception('不要') }}", "{% 没有这个 %}", "{{ messages[99].content }}"]
)
def test_what_refuses_or_is_no_template_is_not_a_bomb(template: str) -> None:
    check_template(template, {"date_string": "26 Jul 2024"})


def test_a_template_sees_in_the_trial_what_transformers_shows_it() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs, ours = _compile_jinja_template("好").environment, probe_template.environment()
    for names in ("filters", "globals", "tests"):
        assert getattr(ours, names).keys() == getattr(theirs, names).keys()
    tags = [{tag for extension in each.extensions.values() for tag in extension.tags} for each in (ours, theirs)]
    assert tags[0] == tags[1]
    written = "{% generation %}{{ x | tojson(indent=1, sort_keys=true) }}{% set y = 2 %}{% endgeneration %}{{ y }}"
    assert ours.from_string(written).render(x={"乙": 1, "甲": 2}, y=1) == theirs.from_string(written).render(
        x={"乙": 1, "甲": 2}, y=1
    )


def test_a_template_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    check_template(GOOD, {})
    monkeypatch.setattr(bounds, "passed", set())
    monkeypatch.setattr(bounds.subprocess, "run", None)
    check_template(GOOD, {})
    with pytest.raises(TypeError):
        check_template(GOOD + " ", {})


def test_a_template_of_a_million_characters_is_not_even_tried() -> None:
    with pytest.raises(UserError, match="far too long"):
        check_template("字" * 1_000_001, {})
