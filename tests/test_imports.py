"""Who may import whom: read from the source, and seen in a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/deft"
FOUNDATION = {"types", "errors", "registry", "rundir", "locks", "manifest", "screen", "drawing"}
"""What every package may import."""

ALLOWED = {
    "types": {"errors"},
    "errors": set(),
    "registry": {"errors"},
    "rundir": {"errors"},
    "screen": {"errors"},
    "drawing": {"errors", "rundir"},
    "locks": {"errors", "rundir"},
    "manifest": {"errors", "rundir"},
    "recipe": {"errors"},
    "data": FOUNDATION,
    "prompt": FOUNDATION,
    "model": FOUNDATION | {"prompt"},
    "train": FOUNDATION | {"prompt", "model"},
    "evaluate": FOUNDATION | {"prompt", "model"},
    "serve": FOUNDATION | {"prompt", "model"},
}
"""What each part of deft may import of deft; parts that are not named here (the command line) may import everything."""

NO_TORCH = [
    "data",
    "prompt",
    "types",
    "errors",
    "registry",
    "rundir",
    "locks",
    "manifest",
    "recipe",
    "screen",
    "drawing",
]


def imports_of(file: Path) -> set[str]:
    """Return the parts of deft that a file imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            assert node.level == 0, f"{file}: relative import"
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("deft.")}
    return found


def part_of(file: Path) -> str:
    return file.relative_to(SOURCE).with_suffix("").parts[0]


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_each_part_imports_only_what_it_may(file: Path) -> None:
    part = part_of(file)
    if part in ALLOWED:
        forbidden = imports_of(file) - ALLOWED[part] - {part}
        assert not forbidden, f"{part} must not import {forbidden}"


def test_the_rule_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from deft.train.run import train\n")
    assert imports_of(file) == {"train"}


@pytest.mark.parametrize("part", NO_TORCH)
def test_light_parts_do_not_load_torch(part: str) -> None:
    package = SOURCE / part
    modules = [f"deft.{part}"] if not package.is_dir() else [f"deft.{part}.{f.stem}" for f in package.glob("*.py")]
    modules = [name.removesuffix(".__init__") for name in modules]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, f"{part} loads torch"


def test_importing_deft_and_the_command_line_is_light() -> None:
    code = "import sys, deft, deft.cli; heavy = {'torch', 'transformers', 'numpy', 'gradio', 'matplotlib', 'pyarrow'}"
    code += " & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
