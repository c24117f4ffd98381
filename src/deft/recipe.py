"""Recipes: a YAML file with one section per command; what the command line says wins over it."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from deft.errors import UserError, did_you_mean


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
        raise UserError(f"the recipe has no section {section!r}", got=", ".join(sections) or None, where=str(path))
    values = sections[section] or {}
    if not isinstance(values, Mapping):
        raise UserError(f"section {section!r} should hold `name: value` lines", got=values, where=str(path))
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
        fix = did_you_mean(path.name, near) if near else "give the path of a recipe, e.g. recipes/quickstart.yaml"
        raise UserError("there is no such recipe", got=str(path), fix=fix) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("the recipe cannot be read as UTF-8 text", got=str(error), where=str(path)) from error
    try:
        sections = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "not YAML"
        raise UserError("the recipe is not valid YAML", got=problem, where=place) from error
    if not isinstance(sections, dict):
        raise UserError("the recipe should hold sections such as `train:`", got=sections, where=str(path))
    return sections


def line_of(path: Path, key: str) -> int:
    """Return the number of the line that sets `key`, counted from 1."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip().startswith(f"{key}:"):
            return number
    return 1
