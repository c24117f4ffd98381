"""Who may import whom: read from the source, and seen in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.imports import (
    SOURCE,
    arrows,
    circles,
    imported_names,
    late_imports,
    module_of,
    modules,
    num_lines,
    room_of,
    room_sizes,
)

FOUNDATION = {
    "errors",
    "files",
    "fingerprint",
    "intervals",
    "language",
    "locks",
    "losses",
    "registry",
    "screen",
    "types",
}
"""What every room may import."""

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "fingerprint": {"errors", "files"},
    "intervals": {"errors", "losses"},
    "language": {"errors"},
    "locks": {"errors", "files", "fingerprint"},
    "losses": {"errors", "files", "types"},
    "registry": {"errors"},
    "screen": {"errors", "language"},
    "types": {"errors"},
    "hub": FOUNDATION,
    "data": FOUNDATION,
    "prompt": FOUNDATION,
    "report": FOUNDATION,
    "model": FOUNDATION | {"hub", "prompt"},
    "publish": FOUNDATION | {"hub", "prompt", "model"},
    "training": FOUNDATION | {"hub", "prompt", "model", "report"},
    "evaluation": FOUNDATION | {"hub", "prompt", "model"},
    "serve": FOUNDATION | {"hub", "prompt", "model"},
    "estimate": FOUNDATION | {"hub", "prompt", "model", "training"},
    "ancestor": FOUNDATION | {"data", "training"},
    "testing": FOUNDATION | {"hub", "prompt", "model"},
    "quickstart": FOUNDATION | {"data", "evaluation", "hub", "model", "prompt", "report", "training"},
}
"""What each room may import of deft, beside itself."""
OUTSIDE = {"api", "commands", "deft", "__main__"}
"""The ways in: they know every room, and no room knows them."""
NO_TORCH = [*sorted(FOUNDATION), "ancestor", "commands", "data", "hub", "prompt", "report"]
LATE_ANYWAY = {
    "gradio.networking": "only a public link needs it",
    "gradio.tunneling": "only a public link needs it",
    "readline": "not on every system",
    "resource": "not on every system",
}
"""What is imported inside functions though it keeps nothing away, and why."""
LARGEST_SHARE = 0.20
MOST_LINES = 400


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_each_room_imports_only_what_it_may(file: Path) -> None:
    room = room_of(module_of(file))
    if room in OUTSIDE:
        return
    assert room in ALLOWED, f"name the new room {room!r} in this test"
    forbidden = {room_of(name) for name in imported_names(file)} - ALLOWED[room] - {room}
    assert not forbidden, f"{room} must not import {forbidden}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(arrows()) == []


def test_rooms_and_files_stay_small() -> None:
    sizes = room_sizes()
    total = sum(sizes.values())
    assert {room: lines for room, lines in sizes.items() if lines > LARGEST_SHARE * total} == {}
    lengths = {module: num_lines(file) for module, file in modules().items()}
    assert {module: lines for module, lines in lengths.items() if lines > MOST_LINES} == {}


def test_imports_inside_functions_keep_something_heavy_away() -> None:
    """Anything else belongs at the top, where a reader looks for it."""
    needless = {
        f"{module}: {name}" for module, name, kept_away in late_imports() if not kept_away and name not in LATE_ANYWAY
    }
    assert needless == set()


def test_the_rules_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from deft.training.run import train\n")
    assert {room_of(name) for name in imported_names(file)} == {"training"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


@pytest.mark.parametrize("room", NO_TORCH)
def test_light_rooms_do_not_load_torch(room: str) -> None:
    names = [f"deft.{module}" for module in modules() if room_of(module) == room]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, f"{room} loads torch"


def test_importing_deft_and_the_command_line_is_light() -> None:
    code = "import sys, deft, deft.commands.app\n"
    code += "heavy = {'torch', 'transformers', 'numpy', 'gradio', 'matplotlib', 'pyarrow'}"
    code += " & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
