"""Recipes: a YAML file with one section per command; what the command line says wins over it."""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from deft.errors import UserError, did_you_mean

EXAMPLE = "write for example `train:`, and on the next line `  num_epochs: 3`"
MOST_VALUES = 10_000
"""A recipe holds settings; one whose references make it larger than this is none."""


class Loader(yaml.SafeLoader):
    """YAML in which no key may be set twice, and only true and false are true and false, as YAML 1.2 has it.

    YAML 1.1, which PyYAML reads, takes `no`, `off`, `yes` and `on` for them too.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a mapping that names a key again, where plain YAML would let the last one win."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is set twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def read_section(path: Path, section: str, config_type: type) -> dict[str, Any]:
    """Return the `section` of a recipe, its keys checked against the fields of `config_type`.

    Raises:
        UserError: if the file is missing or not YAML, the section is misspelt or missing, or a key is unknown.
    """
    sections = read_recipe(path)
    known_sections = {"train", "quickstart"}
    for name in sections:
        if name not in known_sections:
            fix = did_you_mean(str(name), known_sections)
            raise UserError("the recipe has an unknown section", got=name, where=str(path), fix=fix)
    if section not in sections:
        fault = f"the recipe has no section {section!r}"
        raise UserError(fault, got=", ".join(sections) or None, where=str(path), fix=EXAMPLE)
    values = sections[section] or {}
    if not isinstance(values, Mapping):
        fault = f"section {section!r} should hold `name: value` lines"
        raise UserError(fault, got=values, where=str(path), fix=EXAMPLE)
    known = {field.name for field in fields(config_type)}
    for name in values:
        if name not in known:
            place = f"{path}:{line_of(path, str(name))}"
            fix = did_you_mean(str(name), known)
            raise UserError(f"unknown setting in section {section!r}", got=name, where=place, fix=fix)
    return {name: value for name, value in values.items() if value is not None}


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the sections of a recipe file.

    Raises:
        UserError: if it cannot be read as a YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = [other.name for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        fix = did_you_mean(path.name, near) if near else "give the path of a recipe, e.g. recipes/abilities-en.yaml"
        raise UserError("there is no such recipe", got=str(path), fix=fix) from error
    except IsADirectoryError as error:
        fix = "give the path of a recipe, e.g. recipes/abilities-en.yaml"
        raise UserError("a recipe is a file, and this is a folder", got=str(path), fix=fix) from error
    except (OSError, UnicodeDecodeError) as error:
        fix = "save it as UTF-8, and check the permissions (ls -l)"
        raise UserError("the recipe cannot be read as UTF-8 text", got=str(error), where=str(path), fix=fix) from error
    try:
        sections = yaml.load(text, Loader)
    except RecursionError as error:
        raise UserError("the recipe is nested too deeply", where=str(path), fix=EXAMPLE) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError("the recipe is not valid YAML", got=problem, where=place, fix=EXAMPLE) from error
    if count_values(sections) > MOST_VALUES:
        fix = "write each setting out; a recipe needs no references (&name, *name)"
        raise UserError("the recipe refers to itself, or holds far too much", where=str(path), fix=fix)
    if not isinstance(sections, dict):
        raise UserError("the recipe should hold sections such as `train:`", got=sections, where=str(path), fix=EXAMPLE)
    return sections


def count_values(value: Any) -> int:
    """Return how many values there are, at any depth; or a number above `MOST_VALUES`, as they may have no end."""
    left, counted = [value], 0
    while left and counted <= MOST_VALUES:
        one = left.pop()
        counted += 1
        if isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list):
            left += one
    return counted


def line_of(path: Path, key: str) -> int:
    """Return the number of the line that sets `key`, counted from 1."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip().startswith(f"{key}:"):
            return number
    return 1
