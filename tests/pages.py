"""Pages of Markdown: a text goes in; its headings, fenced blocks, tables, code spans and broken links come out."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", text)


def headings_of(text: str) -> set[str]:
    """Return the anchors that a page's headings make on a forge: lower case, words joined by hyphens."""
    titles = (title for _, title in HEADING.findall(prose(text)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def blocks_in_order(text: str) -> list[tuple[str, list[str]]]:
    """Return the fenced blocks of a page: the language and the lines of each."""
    return [(match[2], match[3].splitlines()) for match in FENCE.finditer(text)]


def sections(text: str) -> list[tuple[int, str]]:
    """Return the level of each heading, and the prose up to the next one."""
    _, *parts = HEADING.split(prose(text))
    return [(len(marks), body) for marks, body in zip(parts[::3], parts[2::3], strict=True)]


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a page, as rows of cells; the line below the header is one of the rows."""
    found: list[list[list[str]]] = []
    is_inside = False
    for line in prose(text).splitlines():
        if line.startswith("|"):
            found += [] if is_inside else [[]]
            found[-1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
        is_inside = line.startswith("|")
    return found


def relative_links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield each link of a page to a file: as it is written, the file, and the heading; other sites are left out."""
    for target in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        name, _, heading = target.partition("#")
        if not re.match(r"[a-z]+:", target):
            yield target, (page.parent / name).resolve() if name else page, heading


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files or headings that are not there; other sites are not asked."""
    return [
        target
        for target, file, heading in relative_links(page)
        if not file.exists() or (heading and heading not in headings_of(file.read_text(encoding="utf-8")))
    ]
