"""Settings and records from YAML or JSON, as dataclasses: every name, type and range is checked at the door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from tgd_kit.errors import RunError, printable, reason
from tgd_kit.runs.files import read_json, read_text

LARGEST_YAML = 2**16  # bytes
Record = TypeVar("Record")

Count = Annotated[int, Field(ge=1, le=10**6)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Phi = Annotated[float, Field(gt=0, le=1)]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Without aliases: a few lines of them stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name)")
        return super().compose_node(parent, index)


def read_yaml(path: Path, remedy: str) -> object:
    """What a YAML file holds; nothing in it is run.

    Raises:
        RunError: it is missing, too large, or not YAML.
    """
    text = read_text(path, remedy, most=LARGEST_YAML)
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # PyYAML raises anything on dates and numbers that are none
        raise RunError(f"{printable(path)} cannot be read as YAML ({reason(error)}).", remedy) from error


def checked(kind: type[Record] | Any, given: object, where: str, remedy: str) -> Any:
    """Plain data, as YAML or JSON hold them, as a dataclass or another type; lists become tuples.

    Args:
        kind: its annotations say what each value may be.
        given: the data.
        where: they come from, for messages.
        remedy: what to do if they are not of this type.

    Raises:
        RunError: a name is missing or unknown, or a value of another type or out of its range.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(given), strict=True, extra="forbid")
    except ValidationError as error:
        raise RunError(f"{printable(where)} {_faults(error)}.", remedy) from error
    except (TypeError, ValueError, RecursionError) as error:  # not what JSON can hold
        raise RunError(f"{printable(where)} holds something else ({reason(error)}).", remedy) from error


def read_record(path: Path, kind: type[Record] | Any, remedy: str) -> Any:
    """What a JSON file holds, checked against `kind` (`checked`), as it is there.

    Raises:
        RunError: it is missing, not JSON, or something else.
    """
    given = read_json(path, remedy)
    checked(kind, given, str(path), remedy)
    return given


def _faults(error: ValidationError) -> str:
    """All names that are missing or unknown, or else the first wrong value."""
    found = [(".".join(map(str, one["loc"])), one) for one in error.errors(include_url=False)]
    kinds = {
        "missing": "lacks",
        "unexpected_keyword_argument": "has unknown",
        "extra_forbidden": "has unknown",
    }
    faults = {
        words: [printable(place, 60) for place, one in found if kinds.get(one["type"]) == words]
        for words in ("lacks", "has unknown")
    }
    named = [f"{words} {', '.join(sorted(names)[:10])}" for words, names in faults.items() if names]
    if named:
        return " and ".join(named)
    place, first = found[0]
    value = printable(repr(first["input"]), 60)
    return f"has a wrong value: {printable(place, 60) or 'all of it'} is {value} ({printable(first['msg'])})"
