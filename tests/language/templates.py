"""The source of deft goes in; every text that it may show to a user comes out, as the catalogue of a language has it.

Texts are found by reading the source. An f-string becomes a template with `{}` for each value; of a text that is put
together from parts, or chosen by a condition, every variant counts; a name stands for what is assigned to it in its
function, its module, or the module it is imported from; and a call for what the function returns.
`python -m tests.language.templates` prints those that have no Chinese yet, with the file each stands in.
"""

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from tests.imports import modules

SENTENCES: dict[str, tuple[str | int, ...]] = {
    "UserError": (0, "what", "fix"),
    "NotTrainable": (1, "what", "fix"),
    "require": (3,),
    "translated": (0,),
    "tell": (0,),
    "note": (0,),
    "KnownModel": ("note",),
    "Terms": ("gist",),
    "encode": ("split",),
    "too_long": (0,),
    "resolve": ("kind",),
    "remark": (0,),
    "check_logits": ("what",),
    "leave": (1,),
}
"""Calls that take sentences, filled where they are made: the places or names of those arguments."""
TEMPLATES: dict[str, int] = {"say": 1, "styled": 0, "worded": 0}
"""Calls that take templates, filled where they are printed."""
SPEAKERS = {
    "data.audit": ("find_stop_reasons", "find_warnings"),
    "data.fields": ("__str__",),
    "estimate.estimate": ("advise",),
    "publish.export": ("export", "write_adapter"),
    "publish.merge": ("merge_weights",),
    "data.show": ("files_told", "unused_lines"),
}
"""Functions whose texts, all that have a space in them, are shown as sentences."""
MOST_VARIANTS = 24


@dataclass(frozen=True)
class Place:
    """Where an expression stands: its module, the functions around it, the innermost last, and in the value of what."""

    module: str
    functions: tuple[ast.FunctionDef, ...] = ()
    inside: frozenset[str] = frozenset()


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def variants(node: ast.AST, place: Place, depth: int = 0) -> list[str]:
    """Return the templates that an expression may stand for; `{}` alone where nothing is known of it."""
    found = list(dict.fromkeys(variants_of(node, place, depth))) if depth < 8 else ["{}"]
    return found if 0 < len(found) <= MOST_VARIANTS else ["{}"]


def variants_of(node: ast.AST, place: Place, depth: int) -> list[str]:  # noqa: C901
    inner = depth + 1
    match node:
        case ast.Constant(value=str(text)):
            return [text.replace("{", "{{").replace("}", "}}")]
        case ast.JoinedStr(values=values):
            return joined([variants(value, place, inner) for value in values])
        case ast.FormattedValue(value=value, format_spec=None):
            words = variants(value, place, inner)
            return words if all(word in ("", " ") or literal_text(word) for word in words) else ["{}"]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return joined([variants(left, place, inner), variants(right, place, inner)])
        case ast.BinOp(op=ast.Mult(), left=ast.Constant(value=str(text))):
            return ["", text]
        case ast.IfExp(body=body, orelse=other):
            return [*variants(body, place, inner), *variants(other, place, inner)]
        case ast.BoolOp(values=values):
            return [text for value in values for text in variants(value, place, inner)]
        case ast.Subscript(value=ast.Dict() | ast.Name() as table):
            return values_of(table, place, inner)
        case ast.Call(func=ast.Attribute(value=ast.Dict() | ast.Name() as table, attr="get"), args=[_, *default]):
            return [*values_of(table, place, inner), *(text for one in default for text in variants(one, place, inner))]
        case ast.Call(func=ast.Name(id=name)):
            return returned(name, place, inner)
        case ast.Attribute(attr=name):
            return returned_by_property(name, place, inner)
        case ast.Name(id=name):
            given = [(value, where) for value, where in assigned(name, place)]
            if name in place.inside:  # a text that is put in front of itself
                given = [(value, where) for value, where in given if name not in names_in(value)]
            within = place.inside | {name}
            return [text for value, where in given for text in variants(value, replace(where, inside=within), inner)]
    return ["{}"]


def names_in(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def joined(parts: list[list[str]]) -> list[str]:
    return ["".join(chosen) for chosen in itertools.islice(itertools.product(*parts), MOST_VARIANTS + 1)]


def values_of(table: ast.AST, place: Place, depth: int) -> list[str]:
    """Return the texts of a dictionary that stands in the source."""
    found = [table] if isinstance(table, ast.Dict) else [value for value, _ in assigned(table.id, place)]  # type: ignore[attr-defined]
    dicts = [one for one in found if isinstance(one, ast.Dict)]
    return [text for one in dicts for value in one.values for text in variants(value, place, depth)]


def assigned(name: str, place: Place) -> Iterator[tuple[ast.AST, Place]]:
    """Yield what is assigned to a name, in the innermost function that does it, else in its module."""
    for count in range(len(place.functions), -1, -1):
        where = Place(place.module, place.functions[:count])
        scope = where.functions[-1] if where.functions else tree_of(where.module)
        if isinstance(scope, ast.FunctionDef) and name in parameters(scope):
            return
        values = list(assignments(scope, name))
        if values:
            yield from ((value, where) for value in values)
            return
    if (source := imported_from(name, place.module)) is not None:
        yield from assigned(name, Place(source))


def parameters(function: ast.FunctionDef) -> set[str]:
    every = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return {argument.arg for argument in every}


def assignments(scope: ast.AST, name: str) -> Iterator[ast.AST]:
    for node in statements(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                yield value
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                yield value
            case ast.For(target=ast.Name(id=target), iter=ast.Tuple(elts=values)) if target == name:
                yield from values
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                for target, value in zip(targets, values, strict=False):
                    if isinstance(target, ast.Name) and target.id == name:
                        yield value


def statements(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield what stands in a scope, without what stands in functions within it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            yield from statements(child)


def imported_from(name: str, module: str) -> str | None:
    """Return the module of deft that a name is imported from, anywhere in a module."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deft."):
            source = (node.module or "").removeprefix("deft.")
            if any((alias.asname or alias.name) == name for alias in node.names) and source in modules():
                return source
    return None


def returned(name: str, place: Place, depth: int) -> list[str]:
    """Return the texts that a function of deft may return."""
    for module in (place.module, imported_from(name, place.module)):
        if module is None:
            continue
        for node in tree_of(module).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                where = Place(module, (node,))
                returns = [one.value for one in statements(node) if isinstance(one, ast.Return) and one.value]
                return [text for value in returns for text in variants(value, where, depth)]
    return ["{}"]


def returned_by_property(name: str, place: Place, depth: int) -> list[str]:
    """Return the texts that a property of a class of the same module may have."""
    for node in ast.walk(tree_of(place.module)):
        if isinstance(node, ast.FunctionDef) and node.name == name and node.decorator_list:
            returns = [one.value for one in statements(node) if isinstance(one, ast.Return) and one.value]
            return [text for value in returns for text in variants(value, Place(place.module, (node,)), depth)]
    return ["{}"]


# --- what is found --------------------------------------------------------------------------------------------------


def shown_texts() -> dict[str, set[str]]:
    """Return every template and sentence of the source, each with the modules it stands in."""
    found: dict[str, set[str]] = {}
    for module in modules():
        for text in texts_in(tree_of(module), Place(module)):
            if any(character.isalpha() for character in literal_text(text)):
                found.setdefault(text, set()).add(module)
    return found


def literal_text(template: str) -> str:
    """Return a template without its fields and its markup."""
    return re.sub(r"\[/?[a-z ]*\]|\{[^{}]*\}", "", template)


def texts_in(scope: ast.AST, place: Place) -> Iterator[str]:
    for node in ast.iter_child_nodes(scope):
        here = Place(place.module, (*place.functions, node)) if isinstance(node, ast.FunctionDef) else place
        if isinstance(node, ast.FunctionDef) and node.name in SPEAKERS.get(place.module, ()):
            yield from sentences_of(node, here)
        if isinstance(node, ast.Call):
            yield from texts_of_call(node, here)
        yield from texts_in(node, here)


def texts_of_call(call: ast.Call, place: Place) -> Iterator[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in TEMPLATES and isinstance(call.func, ast.Name) and len(call.args) > TEMPLATES[name]:
        texts = variants(call.args[TEMPLATES[name]], place)
        yield from (text.replace("{{", "{").replace("}}", "}") for text in texts)
    for argument in SENTENCES.get(name, ()):
        for place_or_name, value in [*enumerate(call.args), *((one.arg, one.value) for one in call.keywords)]:
            if place_or_name == argument:
                yield from variants(value, place)


def sentences_of(function: ast.FunctionDef, place: Place) -> Iterator[str]:
    """Yield the texts with a space in them that stand in a function, its docstring aside."""
    left: list[ast.AST] = list(function.body[1:] if ast.get_docstring(function) else function.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.JoinedStr | ast.Constant):
            yield from (text for text in variants(node, place) if " " in text.strip())
        else:
            left += ast.iter_child_nodes(node)


def help_texts() -> set[str]:
    """Return every paragraph that the help of a command, or of one of its parameters, may show."""
    from cyclopts import App
    from cyclopts.help.help import docstring_parse

    from deft.commands.app import app

    found: set[str] = set()

    def visit(one: App) -> None:
        said = docstring_parse(one.help, "markdown")
        texts = [said.short_description, said.long_description]
        if one.default_command is not None:
            texts += [argument.parameter.help for argument in one.assemble_argument_collection(parse_docstring=True)]
        paragraphs = [paragraph for text in texts if text for paragraph in text.split("\n\n")]
        found.update(" ".join(paragraph.split()) for paragraph in paragraphs)
        for name in one:
            if name in (*one.help_flags, *one.version_flags):
                found.add(str(one[name].help))
            else:
                visit(one[name])

    visit(app)
    return found


def main() -> None:
    """Print the texts that the Chinese catalogue has not, and those that it has in vain."""
    from deft.language.catalogue import catalogue

    texts, known = shown_texts() | {text: {"help"} for text in help_texts()}, catalogue("zh")
    for text in sorted(texts.keys() - known.keys(), key=lambda one: (sorted(texts[one]), one)):
        print(f"{', '.join(sorted(texts[text]))}: {text!r}")
    print(f"{len(texts)} texts, {len(texts.keys() - known.keys())} without Chinese")


if __name__ == "__main__":
    main()
