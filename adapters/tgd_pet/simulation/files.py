"""Simulated patients on disk: one `.npz` file each, made in parallel, kept when already there.

Fields of a patient file (images are float32 SUV in g/mL, axes (z, y, x); `v` is `v1` or `v2`):

================  ====================================================================================
`true`            the phantom's activity on the reconstruction grid
`labels`          uint8, index into `tgd_pet.simulation.anatomy.TISSUES`; 0 is air
`lesions`         (n, 5): centre z, y, x in mm from the centre of the volume, radius in mm, SUV
`spacing`         (3,): voxel size in mm, (z, y, x)
`fractions`       (L,): shares of the counts of the low-count images
`{v}_full`        image from all counts, the target
`{v}_low_{i}`     image from the share `fractions[i]` of the counts
`{v}_real_{r}`    image from the r-th of R disjoint, independent scans with the share
                  `realisation_fraction` of the counts each: for ensemble bias and CoV
`{v}_half_{h}`    image from half h (0 or 1) of the counts of `low_0`: the pair for noise2noise; only
                  where there are realisations
`config`          the `PatientConfig` as JSON
`seed`            the seed; config and seed determine everything else
================  ====================================================================================

The voxel at index i of an axis with n voxels of size d is centred at (i - (n - 1) / 2) * d mm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tgd_kit.simulation.patients import PatientFiles, write_patient
from tgd_pet.simulation.anatomy import TISSUES
from tgd_pet.simulation.config import PatientConfig
from tgd_pet.simulation.osem import RECONSTRUCTIONS
from tgd_pet.simulation.patient import SimulatedPatient, simulate_patient

_TABLES = ("true", "labels", "lesions", "spacing", "fractions")


def save_patient(patient: SimulatedPatient, path: str | Path) -> None:
    """Write a patient file; it appears under its name only when it is complete."""
    fields: dict[str, Any] = {name: getattr(patient, name) for name in (*_TABLES, "seed")}
    write_patient(path, {**fields, **patient.images, "config": patient.config.to_json()})


def _simulate_file(seed: int, path: Path, config: PatientConfig) -> None:
    save_patient(simulate_patient(seed, config), path)


def _patient(arrays: dict[str, NDArray[Any]]) -> SimulatedPatient:
    config = PatientConfig.from_json(str(arrays.pop("config")))
    seed = int(arrays.pop("seed"))
    fields = {name: arrays.pop(name) for name in _TABLES}
    patient = SimulatedPatient(**fields, images=arrays, config=config, seed=seed)
    _check(patient)
    return patient


def _check(patient: SimulatedPatient) -> None:
    """Raise unless the arrays are those that `simulate_patient` makes."""
    config, size = patient.config, patient.config.scanner.geometry.size
    kinds = ["full", *(f"low_{i}" for i in range(len(config.fractions)))]
    if config.realisations:
        kinds += ["half_0", "half_1", *(f"real_{i}" for i in range(config.realisations))]
    wanted = {f"{version}_{kind}" for version in RECONSTRUCTIONS for kind in kinds}
    if patient.images.keys() != wanted:
        raise ValueError(f"it lacks, or has besides, {', '.join(sorted(patient.images.keys() ^ wanted))}")
    volumes: dict[str, NDArray[Any]] = {"true": patient.true, **patient.images}
    shape, lesions = (config.slices, size, size), patient.lesions
    wrong = [name for name, volume in volumes.items() if volume.shape != shape or volume.dtype != np.float32]
    labels = patient.labels
    if labels.shape != shape or labels.dtype != np.uint8 or labels.max() >= len(TISSUES):
        wrong.append("labels")
    if lesions.shape != (len(lesions), 5) or patient.spacing.shape != (3,) or not patient.spacing.min() > 0:
        wrong.append("lesions or spacing")
    if patient.fractions.tolist() != list(config.fractions):
        wrong.append("fractions")
    if wrong:
        raise ValueError(f"its arrays do not fit together ({', '.join(wrong)})")
    if not all(np.isfinite(values).all() for values in (*volumes.values(), lesions, patient.spacing)):
        raise ValueError("it holds values that are not finite")


PATIENTS = PatientFiles(_simulate_file, _patient, "tgd pet simulate")
load_patient, load_set = PATIENTS.load, PATIENTS.load_set
simulate_set, simulate_files = PATIENTS.simulate_set, PATIENTS.simulate_files
