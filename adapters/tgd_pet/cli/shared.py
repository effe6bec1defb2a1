"""The simulated studies of a folder, for the commands that train on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tgd_kit.errors import RunError
from tgd_pet.simulation.files import Study, load_study


def open_studies(folder: Path) -> Sequence[Study]:
    """All studies of a folder, by name.

    Raises:
        RunError: there is none.
    """
    studies = [load_study(path) for path in sorted(folder.glob("study_*.npz"))]
    if not studies:
        raise RunError(f"{folder} holds no study.", "Make some with `tgd pet simulate`.")
    return studies
