"""The pages of `docs/` and `docs/zh/` say the same, and what they name exists.

Compared are headings, code spans, tables, fenced blocks and links. The commands of the English pages, which are those
of the Chinese, are run by `tests/test_readme.py`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.pages import CODE, ROOT, blocks_in_order, broken_links, prose, relative_links, sections, tables

from deft.data.formats import FORMATS

ENGLISH, CHINESE = ROOT / "docs", ROOT / "docs/zh"
PAGES = sorted(path.name for path in ENGLISH.glob("*.md"))
BOTH = [*(ENGLISH / name for name in PAGES), *(CHINESE / name for name in PAGES)]
HAN = "[\u4e00-\u9fff]"
BADLY_SPACED = re.compile(rf"{HAN}[,;:!?()]|[,;:!?()]{HAN}|{HAN}[A-Za-z0-9]|[A-Za-z0-9%]{HAN}")
"""Punctuation of Latin text beside a Chinese character, or the two scripts without a space between them."""
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SOURCE_FILE = re.compile(r"[\w/]+/\w+\.py")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def cell_shape(cell: str) -> list[str] | None:
    """Return the numbers of a cell that has no words; None for one that has."""
    return None if re.search(r"[^\W\d_]", cell) else NUMBER.findall(cell)


def shape(text: str) -> dict[str, Any]:
    """Return what a page has in any language."""
    return {
        "headings": [level for level, _ in sections(text)],
        "code spans": [sorted(set(CODE.findall(body))) for _, body in sections(text)],
        "keys of tables": [[sorted(CODE.findall(row[0])) for row in table] for table in tables(text)],
        "numbers in tables": [[[cell_shape(cell) for cell in row] for row in table] for table in tables(text)],
        "blocks": [(language, len(lines)) for language, lines in blocks_in_order(text)],
    }


def same_line(language: str, ours: str, theirs: str) -> bool:
    """Say whether two lines of a block differ in nothing but comments, or what a Chinese text says in its columns."""
    if language in ("bash", "sh", "python"):
        ours, theirs = (re.sub(r"(^|  )#.*", "", line).rstrip() for line in (ours, theirs))
    elif re.search(HAN, theirs):
        ours, theirs = (re.split(r"\s{2,}", line.strip())[0] for line in (ours, theirs))
    return ours == theirs


def differences(english: str, chinese: str) -> list[str]:
    """Return in what two pages differ besides the language."""
    ours, theirs = shape(english), shape(chinese)
    found = [
        f"{name}: {one} / {other}"
        for name in ours
        for one, other in zip([*ours[name], "end"], [*theirs[name], "end"], strict=False)
        if one != other
    ]
    pairs = zip(blocks_in_order(english), blocks_in_order(chinese), strict=False)
    lines = ((language, *pair) for (language, one), (_, other) in pairs for pair in zip(one, other, strict=False))
    return found + [f"{one} / {other}" for language, one, other in lines if not same_line(language, one, other)]


def leads_to(page: Path) -> set[Path]:
    """Return the files that a page links to, the Chinese ones under the names of the English."""
    files = {file for _, file, _ in relative_links(page)}
    files = {ENGLISH / file.relative_to(CHINESE) if file.is_relative_to(CHINESE) else file for file in files}
    return {ROOT / "README.md" if file.name == "README.zh-CN.md" else file for file in files}


def test_both_languages_have_the_same_pages() -> None:
    assert sorted(path.name for path in CHINESE.glob("*.md")) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_say_the_same(name: str) -> None:
    assert differences(read(ENGLISH / name), read(CHINESE / name)) == []
    assert leads_to(ENGLISH / name) - {ENGLISH / name} == leads_to(CHINESE / name) - {ENGLISH / name}


def test_the_comparison_can_fail() -> None:
    english = "# A\n\n| `key` | 1 |\n\n```bash\ndeft models  # all\n```\n\n```text\nrun.json   settings\n```\n"
    chinese = english.replace("all", "全部").replace("settings", "设置").replace("A", "甲")
    assert differences(english, chinese) == []
    for right, wrong in (("# ", "## "), ("key", "鍵"), ("1", "2"), ("models", "model"), ("run.json", "runs.json")):
        assert differences(english, chinese.replace(right, wrong)), wrong
    assert differences(english, chinese + "\n```text\n多一块\n```\n")


@pytest.mark.parametrize("page", BOTH, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize(
    ("readme", "docs", "other"), [("README.md", ENGLISH, CHINESE), ("README.zh-CN.md", CHINESE, ENGLISH)]
)
def test_each_readme_links_to_the_docs_in_its_language(readme: str, docs: Path, other: Path) -> None:
    linked = {file for _, file, _ in relative_links(ROOT / readme) if file.suffix == ".md"}
    assert docs / "README.md" in linked
    assert [file for file in linked if file.parent == other] == []


@pytest.mark.parametrize("name", PAGES)
def test_chinese_is_set_as_chinese(name: str) -> None:
    text = re.sub(r"\]\([^)]*\)", "", CODE.sub("`", prose(read(CHINESE / name))))
    assert [text[max(match.start() - 8, 0) : match.end() + 8] for match in BADLY_SPACED.finditer(text)] == []


# What the pages name


def imported(text: str) -> Iterator[tuple[str, str]]:
    """Yield the modules of deft that the Python of a page imports from, and the names."""
    for language, lines in blocks_in_order(text):
        for node in ast.walk(ast.parse("\n".join(lines))) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deft."):
                yield from ((node.module or "", alias.name) for alias in node.names)


def defined_in(module: str) -> set[str]:
    """Return the names that a module's source gives values at its top."""
    tree = ast.parse(read(ROOT / "src" / f"{module.replace('.', '/')}.py"))
    named = (getattr(node, "name", None) or getattr(getattr(node, "target", None), "id", None) for node in tree.body)
    return {name for name in named if name}


@pytest.mark.parametrize("name", PAGES)
def test_modules_and_files_that_pages_name_exist(name: str) -> None:
    text = read(ENGLISH / name)
    assert [(module, one) for module, one in imported(text) if one not in defined_in(module)] == []
    named = (path for span in CODE.findall(prose(text)) for path in SOURCE_FILE.findall(span))
    assert [path for path in named if not any((folder / path).is_file() for folder in (ROOT, ROOT / "src"))] == []


def test_every_data_format_is_in_the_table_in_its_order() -> None:
    known = [format_.name for format_ in FORMATS]
    keys = [[row[0].strip("`") for row in table[2:]] for table in tables(read(ENGLISH / "data.md"))]
    assert known in keys
