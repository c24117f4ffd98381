"""The lowest versions that pyproject.toml allows: `python -m tests.lowest` prints them for pip.

torch is the one of requirements.txt: older builds come from other places, and are as large.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BOUND = re.compile(r"(?P<name>[\w-]+)>=(?P<lowest>[\w.]+)(,<[\w.]+)?")


def lowest_versions(pyproject: str, requirements: str) -> Iterator[str]:
    """Yield a requirement for each dependency, at its lower bound.

    Raises:
        AssertionError: if a dependency has none.
    """
    for dependency in tomllib.loads(pyproject)["project"]["dependencies"]:
        found = BOUND.fullmatch(dependency)
        assert found is not None, f"{dependency} names no lowest version"
        if found["name"] == "torch":
            yield next(line for line in requirements.splitlines() if line.startswith("torch=="))
        else:
            yield f"{found['name']}=={found['lowest']}"


if __name__ == "__main__":
    texts = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "requirements.txt"))
    print("\n".join(lowest_versions(*texts)))
