"""Read JSON that somebody else may have written: every value is validated."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, TypeVar

from tgdsurgery.core.errors import PlanError

RecordT = TypeVar("RecordT")


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping in JSON (`object_pairs_hook`), unless it has a name twice: readers would not agree on which counts.

    Raises:
        ValueError: it has.

    >>> json.loads('{"a": 1, "b": 2}', object_pairs_hook=distinct)
    {'a': 1, 'b': 2}
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def read_record(
    kind: type[RecordT], text: str, form: str, what: str, remedy: str, *, derived: Collection[str] = ()
) -> RecordT:
    """A frozen dataclass from JSON text with its fields and a `format`.

    Args:
        kind: the dataclass; its annotations say what each field may be.
        text: the JSON text.
        form: what `format` has to be.
        what: what the text should be, for the message.
        remedy: what the user can do if it is not.
        derived: fields that are written for readers, and follow from the others.

    Raises:
        PlanError: the text is not JSON, has another format, or a field that is missing, unknown or of another type.
    """
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 (slow, and seldom needed)

    try:
        data: dict[str, Any] = json.loads(text, object_pairs_hook=distinct)
        if data.pop("format", None) != form:
            raise ValueError("unknown format")
        data = {name: value for name, value in data.items() if name not in derived}
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise PlanError(f"This is not {what} of format {form} ({reason}).", remedy)
