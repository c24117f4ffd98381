"""What is printed: values are never markup, and no place in the source prints them as such."""

import ast
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from deft.screen import say, styled

SOURCE = Path(__file__).parents[1] / "src/deft"

VALUES = [
    "a\\",
    "[/]",
    "[[x]",
    "\\[",
    "\\\\[x]",
    "x[red]\\",
    ":cat:",
    "[0]",
    "[\\",
    "数据[旧]/行.jsonl",
    "{x}",
    "\ue000",
]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_shown_as_it_is(value: str) -> None:
    screen = io.StringIO()
    say(Console(file=screen, width=80), "[green]✓[/] {rows:,} 条 → {path}[bold]{path}[/]", rows=1240, path=value)
    shown = value if value.isprintable() else "\\ue000"
    assert screen.getvalue() == f"✓ 1,240 条 → {shown}{shown}\n"


def test_styles_stay_where_the_template_has_them() -> None:
    text = styled("{a}[bold]{b}词[/]{c}", a="[长长]", b="二", c="")
    assert text.plain == "[长长]二词"
    assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [("二词", "bold")]


def test_long_lines_are_broken_between_words_as_far_indented_as_they_begin() -> None:
    screen = io.StringIO()
    say(Console(file=screen, width=16), "  held out {count} rows of 数据.jsonl", count=20, fold=True)
    assert screen.getvalue() == "  held out 20\n  rows of\n  数据.jsonl\n"
    say(Console(file=screen, width=16), "  {path}", path="数据/很长的路径/rows.jsonl")
    assert screen.getvalue().endswith("\n  数据/很长的路径/rows.jsonl\n"), "a path stays whole"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert styled("{name}", name="\x1b]0;标题\x07\n").plain == "\\x1b]0;标题\\x07\\n"


CONSOLE = {"print", "rule", "status"}
MADE_AS_TEXT = re.compile(r"Text|Padding|Syntax|assemble|styled|paint|side_by_side|\w+_table")
"""What may be handed to a console beside words that stand in the source: what is no string, and so no markup."""


def is_safe(node: ast.expr) -> bool:
    """Say whether printing an expression cannot read a value as markup."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return MADE_AS_TEXT.fullmatch(name) is not None
    if isinstance(node, ast.BinOp):
        return is_safe(node.left) and is_safe(node.right)
    if isinstance(node, ast.IfExp):
        return is_safe(node.body) and is_safe(node.orelse)
    return isinstance(node, ast.Constant)


def markup_with_values(tree: ast.AST) -> list[int]:
    """Return the lines that hand a console, or `say`, text that is neither in the source nor made by `styled`.

    `markup=False` is no way out: rich still turns `:cat:` into a picture.
    """
    texts = {
        node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and is_safe(node.value)
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in CONSOLE:
            given = node.args
        elif isinstance(node.func, ast.Name) and node.func.id in ("say", "styled"):
            given = node.args[1:] if node.func.id == "say" else node.args
        else:
            continue
        if not all(is_safe(one) or (isinstance(one, ast.Name) and one.id in texts) for one in given):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "file", sorted({*SOURCE.rglob("*.py")} - {SOURCE / "screen.py"}), ids=lambda file: str(file.relative_to(SOURCE))
)
def test_no_value_is_printed_as_markup(file: Path) -> None:
    lines = markup_with_values(ast.parse(file.read_text(encoding="utf-8")))
    assert not lines, f"{file}:{lines}: print it with deft.screen.say"


def test_the_rule_can_fail() -> None:
    bad = ["f'[red]{path}[/]'", "f'{path}', markup=False", "'a' + path", "'{}'.format(path)", "path", "str(error)"]
    source = "".join(f"console.print({one})\n" for one in bad) + "say(screen, f'{path}')\nstyled(path)\n"
    assert markup_with_values(ast.parse(source)) == list(range(1, 9))
    good = "words = 'a'\nconsole.print(words)\nsay(screen, '{path}', path=path)\nconsole.print(Text(path))"
    assert markup_with_values(ast.parse(good)) == []


def test_a_wrong_value_in_a_recipe_is_shown_safely(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from deft.commands.app import app
    from deft.commands.exits import run_or_explain
    from deft.screen import console

    recipe = tmp_path / "配方.yaml"
    recipe.write_text('{"train": {"method": "甲\\u001b]0;x\\u0007"}}', encoding="utf-8")
    assert run_or_explain(lambda: app(["train", str(recipe)], console=console(), exit_on_error=False)) == 2
    said = "".join(capfd.readouterr())
    assert "\x1b" not in said and "\x07" not in said and "甲\\x1b]0;x\\x07" in said
