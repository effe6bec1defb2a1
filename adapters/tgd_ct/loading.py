"""The cases of a folder."""

from __future__ import annotations

from pathlib import Path

from tgd_ct.case import Case
from tgd_ct.simulation.files import load_set


def load_cases(folder: Path) -> list[Case]:
    """All cases of a folder, by name.

    Raises:
        RunError: there is none.
        PatientError: a file is damaged.
    """
    return load_set(folder)
