"""The house as its imports draw it: `python -m tests.imports` prints rooms, their sizes, and who imports whom."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src/deft"


def module_of(file: Path) -> str:
    """Return the name of a file's module, without `deft.` in front; the package itself is `deft`."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "deft"


def room_of(module: str) -> str:
    """Return the room that a module lies in: a package, or a single file beside the packages."""
    return module.split(".", maxsplit=1)[0]


@cache
def modules() -> dict[str, Path]:
    """Return every module of deft, and its file."""
    return {module_of(file): file for file in sorted(SOURCE.rglob("*.py"))}


@cache
def tree_of(file: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"))


def imported_names(file: Path) -> Iterator[str]:
    """Yield what a file imports of deft, anywhere in it, without `deft.`: modules, and names in them."""
    for node in ast.walk(tree_of(file)):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{file}: relative import"
        yield from (name.removeprefix("deft.") for name in names_in(node) if name.startswith("deft."))


def names_in(node: ast.AST) -> list[str]:
    """Return the dotted names that a statement imports; of `from a import b` both `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def statements_at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported: those of functions and of TYPE_CHECKING do not."""
    left: list[ast.stmt] = list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            left += node.orelse
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            left += getattr(node, field, [])
        left += [inner for handler in getattr(node, "handlers", []) for inner in handler.body]


@cache
def packages_loaded(module: str) -> frozenset[str]:
    """Return the packages of others that importing a module of deft loads, through all that it imports."""
    known, found, seen, left = modules(), set(), set(), [module]
    while left:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        tree = tree_of(known[one])
        for name in (name for node in statements_at_import(tree) for name in names_in(node)):
            package = name.split(".")[0]
            if package == "deft":
                left += [name.removeprefix("deft.")] if name.removeprefix("deft.") in known else []
            elif package not in sys.stdlib_module_names:
                found.add(package)
    return frozenset(found)


def late_imports() -> Iterator[tuple[str, str, frozenset[str]]]:
    """Yield each import inside a function: the module it stands in, its name, and the packages it keeps away."""
    known = modules()
    for module, file in known.items():
        tree = tree_of(file)
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                name = (names_in(node) or [""])[0]
                own = [each.removeprefix("deft.") for each in names_in(node) if each.startswith("deft.")]
                if own:
                    loaded = frozenset().union(*(packages_loaded(each) for each in own if each in known))
                else:
                    loaded = frozenset({name.split(".")[0]} - sys.stdlib_module_names) if name else frozenset()
                if name:
                    yield module, name, loaded - packages_loaded(module)


def arrows() -> dict[str, set[str]]:
    """Return for each module the modules that it imports."""
    known = modules()
    return {
        module: {name for name in imported_names(file) if name in known and name != module}
        for module, file in known.items()
    }


def room_arrows() -> dict[str, set[str]]:
    """Return for each room the other rooms that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, targets in arrows().items():
        found[room_of(module)] |= {room_of(target) for target in targets} - {room_of(module)}
    return dict(found)


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Return the groups of nodes that reach one another (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(tuple(sorted(group)))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def num_lines(file: Path) -> int:
    """Return the lines of a file."""
    return len(file.read_text(encoding="utf-8").splitlines())


def room_sizes() -> dict[str, int]:
    """Return the lines of each room."""
    found: dict[str, int] = defaultdict(int)
    for module, file in modules().items():
        found[room_of(module)] += num_lines(file)
    return dict(found)


def main() -> None:
    """Print the house."""
    sizes, graph = room_sizes(), room_arrows()
    total = sum(sizes.values())
    for room, lines in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{room:<12} {lines:>6,} {lines / total:>5.0%}  → {', '.join(sorted(graph.get(room, ()))) or '–'}")
    longest = sorted(modules().values(), key=num_lines)[-3:]
    print(f"{total:,} lines; the longest files: {', '.join(f'{module_of(f)} {num_lines(f)}' for f in longest)}")
    print(f"circles between rooms: {circles(graph) or 'none'}")
    print(f"circles between modules: {circles(arrows()) or 'none'}")


if __name__ == "__main__":
    main()
