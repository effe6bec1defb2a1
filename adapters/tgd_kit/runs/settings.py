"""Settings as dataclasses, from YAML or JSON: every name and type is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from tgd_kit.errors import RunError

Settings = TypeVar("Settings")


def read_yaml(path: Path, remedy: str) -> object:
    """What a YAML file holds; nothing in it is run.

    Raises:
        RunError: it is missing, or not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read as YAML ({error}).", remedy) from error


def settings_from(kind: type[Settings], given: object, where: str, remedy: str) -> Settings:
    """A dataclass from a mapping: lists become tuples, and nested mappings dataclasses.

    Args:
        kind: the dataclass; its fields are numbers, tuples of numbers or strings, or such dataclasses.
        given: names and values of the fields, as YAML or JSON hold them.
        where: they come from, for messages.
        remedy: what to do about wrong names.

    Raises:
        RunError: names or values are not those of the dataclass.
    """
    if not isinstance(given, Mapping):
        raise RunError(f"{where} is not a list of settings.", remedy)
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in given.keys() - known.keys())
    missing = sorted({name for name, field in known.items() if field.default is MISSING} - given.keys())
    faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(
        unknown
    )
    if faults:
        raise RunError(f"{where} {' and '.join(faults)}.", remedy)
    types = get_type_hints(kind)
    return kind(
        **{name: _value(types[name], value, f"{where}: {name}", remedy) for name, value in given.items()}
    )


def _value(kind: Any, value: object, where: str, remedy: str) -> Any:
    if is_dataclass(kind):
        return settings_from(kind, value, where, remedy)  # type: ignore[arg-type]
    if kind is str:
        return value
    if kind in (int, float):
        if not isinstance(value, (int, kind)) or isinstance(value, bool):
            raise RunError(f"{where} is {value!r}.", f"Give a number ({kind.__name__}).")
        return kind(value)
    if not isinstance(value, list):
        raise RunError(f"{where} is {value!r}.", "Give a list.")
    return tuple(_value(get_args(kind)[0], entry, where, remedy) for entry in value)
