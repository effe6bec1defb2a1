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

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format
from numpy.typing import NDArray

from tgd_kit.errors import RunError, printable, reason
from tgd_kit.progress import progress as shown
from tgd_kit.runs.files import replacing, there, write_json
from tgd_kit.runs.jobs import run_jobs
from tgd_pet.simulation.anatomy import TISSUES
from tgd_pet.simulation.config import PatientConfig, PatientError
from tgd_pet.simulation.osem import RECONSTRUCTIONS
from tgd_pet.simulation.patient import SimulatedPatient, simulate_patient
from tgdsurgery import TGDError

MANIFEST = "manifest.json"
_TABLES = ("true", "labels", "lesions", "spacing", "fractions")


def save_patient(patient: SimulatedPatient, path: str | Path) -> None:
    """Write a patient file; it appears under its name only when it is complete."""
    fields: dict[str, Any] = {name: getattr(patient, name) for name in (*_TABLES, "seed")}
    fields |= {**patient.images, "config": patient.config.to_json()}
    with replacing(Path(path)) as temporary:
        np.savez(temporary, **fields)


def load_patient(path: str | Path) -> SimulatedPatient:
    """Read a patient file.

    Raises:
        PatientError: the file is missing, damaged, or not a patient.
    """
    path, shown = Path(path), printable(path)
    if not there(path):
        raise PatientError(f"There is no patient file {shown}.", "Simulate it first, or check the path.")
    try:
        arrays = _arrays(path)
        config = PatientConfig.from_json(str(arrays.pop("config")))
        seed = int(arrays.pop("seed"))
        fields = {name: arrays.pop(name) for name in _TABLES}
        patient = SimulatedPatient(**fields, images=arrays, config=config, seed=seed)
        _check(patient)
    except TGDError as error:
        raise PatientError(f"{shown} cannot be used: {error.problem}", error.remedy) from error
    except Exception as error:  # numpy and zipfile raise anything on damaged bytes
        raise PatientError(
            f"{shown} is not a whole patient file: {reason(error)}.", "Simulate it again."
        ) from error
    return patient


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file as `np.savez` writes it: none is larger than what is stored of it."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it holds more than its size")
        return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}


def _array(content: bytes) -> NDArray[Any]:
    """An array from the bytes of an `.npy` file; `np.load` would make room for whatever its header claims."""
    file = io.BytesIO(content)
    if format.read_magic(file) != (1, 0):
        raise ValueError("its arrays are of another version")
    shape, fortran, dtype = format.read_array_header_1_0(file)
    values = np.frombuffer(bytearray(content[file.tell() :]), dtype)
    return values.reshape(shape, order="F" if fortran else "C")


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


def load_set(folder: Path) -> list[SimulatedPatient]:
    """All patients of a folder, by name.

    Raises:
        RunError: there is none.
        PatientError: a file is damaged.
    """
    patients = [load_patient(path) for path in sorted(folder.glob("patient_*.npz"))]
    if not patients:
        raise RunError(f"{folder} holds no patient.", "Make some with `tgd pet simulate`.")
    return patients


def patient_file(folder: Path, seed: int) -> Path:
    """Where a set in this folder has the patient of this seed."""
    return folder / f"patient_{seed:06d}.npz"


def simulate_set(
    folder: str | Path,
    seeds: Iterable[int],
    config: PatientConfig,
    *,
    workers: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Simulate one patient per seed into `folder`: see `simulate_files`.

    Args:
        folder: made if missing.
        seeds: one patient each; the file is called `patient_<seed>.npz`.
        config: how they are simulated.
        workers: number of processes.
        progress: show how far it is.

    Returns:
        The files, in the order of the seeds.
    """
    wanted = {patient_file(Path(folder), seed): (seed, config) for seed in seeds}
    simulate_files(wanted, workers=workers, progress=progress)
    return list(wanted)


def simulate_files(
    wanted: Mapping[Path, tuple[int, PatientConfig]], *, workers: int = 1, progress: bool = True
) -> None:
    """Simulate patients of one or several sets; each process builds the projector once for all of them.

    Files that are already there and of this seed and configuration are kept, so the same call continues an
    interrupted one; others are replaced. `manifest.json` lists all patients of the last configuration in a folder.

    Args:
        wanted: file to seed and configuration.
        workers: number of processes (`tgd_kit.runs.jobs.run_jobs`).
        progress: show how far it is.

    Raises:
        RunError: a process died.
    """
    missing = [
        (seed, path, config)
        for path, (seed, config) in wanted.items()
        if _seed_of_current(path, config) != seed
    ]
    with shown("simulated patients", len(wanted), done=len(wanted) - len(missing), show=progress) as task:
        for _ in run_jobs(_simulate_file, missing, workers):
            task.advance()
    for folder, config in {path.parent: config for path, (_, config) in wanted.items()}.items():
        _write_manifest(folder, config)


def _simulate_file(seed: int, path: Path, config: PatientConfig) -> None:
    save_patient(simulate_patient(seed, config), path)


def _seed_of_current(path: Path, config: PatientConfig) -> int | None:
    """The seed of a whole patient of this configuration, None for any other file."""
    try:
        patient = load_patient(path)
    except PatientError:
        return None
    return patient.seed if patient.config == config else None


def _write_manifest(folder: Path, config: PatientConfig) -> None:
    seeds = {path.name: _seed_of_current(path, config) for path in sorted(folder.glob("patient_*.npz"))}
    patients = [{"file": name, "seed": seed} for name, seed in seeds.items() if seed is not None]
    manifest = {"config_hash": config.hash(), "config": json.loads(config.to_json()), "patients": patients}
    write_json(folder / MANIFEST, manifest)
