"""Simulated patients on disk: one `.npz` file each, made in parallel, kept when already there.

Fields of a patient file (axes (z, y, x); images are float32 in HU):

================  ====================================================================================
`true`            the phantom on the grid of the images, without noise and blur
`body`            bool, everything inside the skin
`liver`           uint8, label map of the task: 0, organ 1, tumour 2
`kidney`          the same of the kidneys
`tumours`         (n, 6): task (0 liver, 1 kidney), centre z, y, x in mm from the centre of the volume, radius in
                  mm, HU above the organ
`dose_{d}`        image at the share d of the normal dose, such as `dose_0.05`, of each of `tgd_ct.case.DOSES`
`config`          the `PatientConfig` as JSON
`seed`            the seed; config and seed determine everything else
================  ====================================================================================

The voxel at index i of an axis with n voxels of size d is centred at (i - (n - 1) / 2) * d mm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tgd_ct.case import DOSES, TASKS, TUMOUR, Case
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.patient import SimulatedPatient, simulate_patient
from tgd_kit.errors import RunError
from tgd_kit.simulation.patients import PatientFiles, write_patient

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
SEEDS_PER_PART = 100_000


def part_seeds(part: Part, first: int, patients: int) -> range:
    """The seeds of a part's patients: no seed belongs to two parts.

    Args:
        part: of the data.
        first: number of the first patient in its part.
        patients: how many there are.

    Raises:
        RunError: the part does not have so many seeds.

    Example:
        >>> list(part_seeds("validation", 7, 2))
        [100007, 100008]
    """
    if not (first >= 0 and patients >= 1 and first + patients <= SEEDS_PER_PART):
        raise RunError(
            f"Patients {first} to {first + patients - 1} of the part {part} do not exist.",
            f"Each part has the numbers 0 to {SEEDS_PER_PART - 1}.",
        )
    start = PARTS.index(part) * SEEDS_PER_PART + first
    return range(start, start + patients)


def save_patient(patient: SimulatedPatient, path: str | Path) -> None:
    """Write a patient file; it appears under its name only when it is complete."""
    fields: dict[str, Any] = {name: getattr(patient, name) for name in ("true", "body", "tumours", "seed")}
    fields |= {_image(dose): image for dose, image in patient.images.items()}
    fields |= {str(task): target for task, target in patient.targets.items()}
    write_patient(path, {**fields, "config": patient.config.to_json()})


def load_set(folder: Path) -> list[Case]:
    """All patients of a folder, by name, as training and measuring take them.

    Raises:
        RunError: there is none.
        PatientError: a file is damaged.
    """
    return [patient.case() for patient in PATIENTS.load_set(folder)]


def _image(dose: float) -> str:
    return f"dose_{dose:g}"


def _simulate_file(seed: int, path: Path, config: PatientConfig) -> None:
    save_patient(simulate_patient(seed, config), path)


def _patient(arrays: dict[str, NDArray[Any]]) -> SimulatedPatient:
    config, seed = PatientConfig.from_json(str(arrays.pop("config"))), int(arrays.pop("seed"))
    patient = SimulatedPatient(
        true=arrays.pop("true"),
        body=arrays.pop("body"),
        targets={task: arrays.pop(task) for task in TASKS},
        tumours=arrays.pop("tumours"),
        images={dose: arrays.pop(_image(dose)) for dose in DOSES},
        config=config,
        seed=seed,
    )
    if arrays:
        raise ValueError(f"it has besides {', '.join(sorted(arrays))}")
    _check(patient)
    return patient


def _check(patient: SimulatedPatient) -> None:
    """Raise unless the arrays are those that `simulate_patient` makes."""
    size = patient.config.scanner.geometry.size
    shape, tumours = (patient.config.slices, size, size), patient.tumours
    volumes = {"true": patient.true, **{_image(dose): image for dose, image in patient.images.items()}}
    kinds: list[tuple[str, NDArray[Any], type[np.generic]]] = [("body", patient.body, np.bool_)]
    kinds += [(name, volume, np.float32) for name, volume in volumes.items()]
    kinds += [(task, target, np.uint8) for task, target in patient.targets.items()]
    wrong = [name for name, array, kind in kinds if array.shape != shape or array.dtype != kind]
    wrong += [task for task, target in patient.targets.items() if target.max() > TUMOUR]
    if tumours.shape != (len(tumours), 6) or tumours.dtype != np.float64:
        wrong.append("tumours")
    if wrong:
        raise ValueError(f"its arrays do not fit together ({', '.join(wrong)})")
    if not (np.isfinite(tumours).all() and all(np.isfinite(values).all() for values in volumes.values())):
        raise ValueError("it holds values that are not finite")


PATIENTS = PatientFiles(_simulate_file, _patient, "tgd ct simulate")
load_patient, simulate_set, simulate_files = PATIENTS.load, PATIENTS.simulate_set, PATIENTS.simulate_files
