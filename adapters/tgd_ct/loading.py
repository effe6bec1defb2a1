"""The cases of a folder, simulated or prepared."""

from __future__ import annotations

from pathlib import Path

from tgd_ct.case import Case
from tgd_ct.images.prepared import FILES, load_case
from tgd_ct.simulation.files import load_patient
from tgd_kit.errors import RunError


def load_cases(folder: Path) -> list[Case]:
    """All cases of a folder, by name.

    Raises:
        RunError: there is none.
        PatientError: a file is damaged.
    """
    cases = [load_case(path) for path in sorted(folder.glob(FILES))]
    cases += [load_patient(path).case() for path in sorted(folder.glob("patient_*.npz"))]
    if not cases:
        raise RunError(
            f"{folder} holds no case.",
            "Make some with `tgd ct simulate`, or of LiTS or KiTS with `tgd ct prepare`.",
        )
    return cases
