"""Which of many deltas is meant for a scan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.tables import shortened
from tgdsurgery.storage.delta_file import read_delta


def choose_delta(paths: Iterable[str | Path], tags: Mapping[str, object]) -> Path | None:
    """The delta whose conditions a scan meets; None if there is none, and the base is to be used.

    A condition is a tag and its value (`save_delta(..., when={"ManufacturerModelName": "Discovery MI"})`), and holds
    if the scan has just that text, surrounding blanks aside. All conditions of a delta must hold. Of several such
    deltas the one with most conditions is chosen. A delta without conditions is never chosen: nothing says whom it is
    for.

    Args:
        paths: files that `save_delta` wrote. All of them are read and checked.
        tags: of the scan: values by DICOM keyword.

    Raises:
        CheckpointError: a file is damaged or no delta; or several meet the scan with equally many conditions.
    """
    found = {Path(path): read_delta(Path(path)).when for path in paths}
    fitting = {path: len(when) for path, when in found.items() if when and _holds(when, tags)}
    best = [path for path, count in fitting.items() if count == max(fitting.values())]
    if len(best) > 1:
        names = " and ".join(shortened(path.name) for path in sorted(best)[:2])
        raise CheckpointError(
            f"{len(best)} deltas are for this scan, with as many conditions ({names}).",
            "Give one of them a further condition, or take it out of the folder.",
        )
    return best[0] if best else None


def _holds(when: Mapping[str, str], tags: Mapping[str, object]) -> bool:
    return all(tag in tags and str(tags[tag]).strip() == value.strip() for tag, value in when.items())
