"""Cases of a data set as small files: read, resampled and cut out once, and trained on many times.

Fields of a file (axes (z, y, x)): `name`, `spacing` (3,) in mm, `body` bool, a uint8 label map for each task
(`tgd_ct.case.TASKS`), and a float32 image in HU for each dose (`dose_1` is the normal one).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tgd_ct.case import NORMAL, TASKS, TUMOUR, Case
from tgd_kit.errors import PatientError, printable, reason
from tgd_kit.runs.files import replacing, there
from tgd_kit.runs.npz import read_npz

FILES = "case_*.npz"
DOSE = "dose_"
AGAIN = "Prepare it again, with `tgd ct prepare`."


def case_file(folder: Path, patient: str) -> Path:
    """Where a folder has the case of a patient."""
    return folder / f"case_{patient}.npz"


def save_case(case: Case, path: Path) -> None:
    """Write a case; the file appears under its name only when it is complete."""
    fields: dict[str, Any] = {"name": case.name, "spacing": np.array(case.spacing_mm), "body": case.body}
    fields |= {str(task): target for task, target in case.targets.items()}
    fields |= {f"{DOSE}{dose:g}": image for dose, image in case.images.items()}
    with replacing(path) as temporary:
        np.savez(temporary, **fields)


def load_case(path: Path) -> Case:
    """Read a case.

    Raises:
        PatientError: the file is missing, damaged, or not a case.
    """
    if not there(path):
        raise PatientError(f"There is no case {printable(path)}.", AGAIN)
    try:
        return _case(read_npz(path))
    except Exception as error:  # numpy and zipfile raise anything on damaged bytes
        raise PatientError(f"{printable(path)} is not a whole case: {reason(error)}.", AGAIN) from error


def _case(arrays: dict[str, NDArray[Any]]) -> Case:
    body, spacing = arrays.pop("body"), arrays.pop("spacing")
    name = str(arrays.pop("name"))
    targets = {task: arrays.pop(task) for task in TASKS if task in arrays}
    images = {float(key.removeprefix(DOSE)): image for key, image in arrays.items() if key.startswith(DOSE)}
    volumes: list[tuple[NDArray[Any], type[np.generic]]] = [(body, np.bool_)]
    volumes += [(target, np.uint8) for target in targets.values()]
    volumes += [(image, np.float32) for image in images.values()]
    fit = all(volume.shape == body.shape and volume.dtype == kind for volume, kind in volumes)
    if not (fit and body.ndim == 3 and len(images) == len(arrays) and NORMAL in images):
        raise ValueError("its arrays do not fit together")
    if not (spacing.shape == (3,) and np.isfinite(spacing).all() and spacing.min() > 0):
        raise ValueError("its voxels have no size")
    if not all(np.isfinite(image).all() for image in images.values()):
        raise ValueError("it holds values that are not finite")
    if any(target.max() > TUMOUR for target in targets.values()):
        raise ValueError("it has unknown labels")
    z, y, x = (float(size) for size in spacing)
    return Case(name, (z, y, x), images, targets, body)
