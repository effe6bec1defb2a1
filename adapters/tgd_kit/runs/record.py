"""What a study took: the seconds of each stage by the clock and of all cores, and the versions that made it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tgd_kit.runs.files import replacing

RECORD = "run.json"


@contextmanager
def timed(out: Path, stage: str) -> Iterator[None]:
    """Add the time of the block to that of its stage in the record; a study may be taken up many times."""
    begun, busy = time.monotonic(), _cpu()
    try:
        yield
    finally:
        known = read_record(out) if (out / RECORD).exists() else {"seconds": {}, "cpu_seconds": 0.0}
        seconds: dict[str, float] = known["seconds"]
        seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - begun, 1)
        cpu = round(known["cpu_seconds"] + _cpu() - busy, 1)
        made_with = {package: version(package) for package in ("tgdsurgery", "torch")}
        with replacing(out / RECORD) as temporary:
            record = {"seconds": seconds, "cpu_seconds": cpu, "cores": os.cpu_count(), "versions": made_with}
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _cpu() -> float:
    """Seconds of computing so far, of this process and of those that it has started and seen end."""
    return sum(os.times()[:4])


def read_record(out: Path) -> dict[str, Any]:
    """The record of the study in `out`."""
    found: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    return found
