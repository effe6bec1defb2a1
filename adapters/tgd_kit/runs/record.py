"""What made a result: the seconds that each stage took, the versions, and the files of weights."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tgd_kit.runs.files import write_json
from tgd_kit.runs.settings import read_record

RECORD = "run.json"


@dataclass(frozen=True)
class Stages:
    """What `timed` notes."""

    seconds: dict[str, float]
    cpu_seconds: float
    cores: int | None
    versions: dict[str, str]


@contextmanager
def timed(out: Path, stage: str) -> Iterator[None]:
    """Add the time of the block to that of its stage in the record of `out`, over all calls.

    Counted are the seconds by the clock, and those of computing on all cores.
    """
    begun, busy = time.monotonic(), _cpu_seconds()
    empty: dict[str, Any] = {"seconds": {}, "cpu_seconds": 0.0}
    known = study_record(out) if (out / RECORD).exists() else empty
    try:
        yield
    finally:
        seconds: dict[str, float] = known["seconds"]
        seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - begun, 1)
        record = {
            "seconds": seconds,
            "cpu_seconds": round(known["cpu_seconds"] + _cpu_seconds() - busy, 1),
            "cores": os.cpu_count(),
            "versions": {package: version(package) for package in ("tgdsurgery", "torch")},
        }
        write_json(out / RECORD, record)


def _cpu_seconds() -> float:
    """Seconds of computing so far, of this process and of those that it has started and seen end."""
    return sum(os.times()[:4])


def study_record(out: Path) -> dict[str, Any]:
    """The record that `timed` keeps in `out`.

    Raises:
        RunError: it is missing or damaged.
    """
    found: dict[str, Any] = read_record(out / RECORD, Stages, "Delete it; only the times are lost.")
    return found


def denoised_by(*weights: Path) -> str:
    """The package and its version, and each file of weights by name and digest: words for an image's file."""
    files = (f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})" for path in weights)
    return f"Denoised by tgdsurgery {version('tgdsurgery')} with {', '.join(files)}"
