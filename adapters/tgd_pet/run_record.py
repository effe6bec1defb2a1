"""What a study took: the seconds of each stage by the clock, the cores, and the versions that made it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tgd_pet.files import replacing

RECORD = "run.json"


@contextmanager
def timed(out: Path, stage: str) -> Iterator[None]:
    """Add the time of the block to that of its stage in the record; a study may be taken up many times."""
    begun = time.monotonic()
    try:
        yield
    finally:
        seconds = dict(read_record(out)["seconds"]) if (out / RECORD).exists() else {}
        seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - begun, 1)
        made_with = {package: version(package) for package in ("tgdsurgery", "torch")}
        with replacing(out / RECORD) as temporary:
            record = {"seconds": seconds, "cores": os.cpu_count(), "versions": made_with}
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(out: Path) -> dict[str, Any]:
    """The record of the study in `out`."""
    found: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    return found
