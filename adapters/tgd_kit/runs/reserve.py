"""A folder belongs to one run: what was asked is noted in it, and anything else is refused there."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tgd_kit.errors import RunError
from tgd_kit.runs.files import read_json, write_json
from tgd_kit.runs.settings import checked

REMEDY = "Delete that folder or choose another."


def reserve(
    record: Path, asked: Mapping[str, object], *, what: str = "run", free: Collection[str] = ()
) -> None:
    """Note what was asked in a file of the run's folder; refuse a folder where something else was asked.

    Args:
        record: the file.
        asked: all that results depend on, as plain data.
        what: is in the folder, for messages.
        free: keys that may change from call to call.

    Raises:
        RunError: the folder holds another run, or its record is damaged.
    """
    asked = json.loads(json.dumps(asked))  # as it is read back: tuples become lists
    if record.exists():
        found: dict[str, object] = checked(dict[str, Any], read_json(record, REMEDY), str(record), REMEDY)
        changed = [key for key in asked if key not in free and found.get(key) != asked[key]]
        if changed or found.keys() - asked.keys():
            raise RunError(
                f"{record.parent} holds another {what}: {', '.join(changed) or 'its settings'} differ.",
                "Choose another folder, or delete that one.",
            )
        if found == asked:
            return
    write_json(record, asked)
