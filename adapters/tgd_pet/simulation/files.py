"""Sets of simulated studies on disk: one `.npz` file a study, made in parallel, kept when already there.

Fields of a study file (images are float32 SUV in g/mL, axes (z, y, x); `v` is `v1` or `v2`):

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
`config`          the `StudyConfig` as JSON
`seed`            the seed; config and seed determine everything else
================  ====================================================================================

The voxel at index i of an axis with n voxels of size d is centred at (i - (n - 1) / 2) * d mm.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tgd_kit.runs.files import replacing
from tgd_kit.runs.jobs import run_jobs
from tgd_pet.simulation.osem import RECONSTRUCTIONS
from tgd_pet.simulation.patient import Study, StudyConfig, StudyError, simulate_study
from tgdsurgery import TGDError

__all__ = ["Study", "StudyConfig", "StudyError", "load_study", "save_study", "simulate_set", "simulate_study"]

MANIFEST = "manifest.json"
_TABLES = ("true", "labels", "lesions", "spacing", "fractions")


def save_study(study: Study, path: str | Path) -> None:
    """Write a study file; it appears under its name only when it is complete."""
    fields = {name: getattr(study, name) for name in (*_TABLES, "seed")}
    with replacing(Path(path)) as temporary:
        np.savez(temporary, **fields, **study.images, config=study.config.to_json())


def load_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        StudyError: the file is missing, damaged, or not a study.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"There is no study file {path}.", "Simulate it first, or check the path.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        config = StudyConfig.from_json(str(arrays.pop("config")))
        seed = int(arrays.pop("seed"))
        fields = {name: arrays.pop(name) for name in _TABLES}
        study = Study(**fields, images=arrays, config=config, seed=seed)
        _check_shapes(study)
    except TGDError as error:
        raise StudyError(f"{path} cannot be used: {error.problem}", error.remedy) from error
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise StudyError(f"{path} is not a whole study file: {error}.", "Simulate it again.") from error
    return study


def _check_shapes(study: Study) -> None:
    volumes = {"labels": study.labels, **study.images}
    missing = {f"{version}_full" for version in RECONSTRUCTIONS} - study.images.keys()
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    wrong = [name for name, volume in volumes.items() if volume.shape != study.true.shape]
    if wrong or study.true.ndim != 3 or study.lesions.shape[1:] != (5,) or study.spacing.shape != (3,):
        raise ValueError(f"its arrays do not fit together ({', '.join(wrong) or 'true, lesions or spacing'})")
    if not all(np.isfinite(volume).all() for volume in study.images.values()):
        raise ValueError("its images hold values that are not finite")


def simulate_set(
    folder: str | Path, seeds: Iterable[int], config: StudyConfig, *, workers: int = 1, progress: bool = True
) -> list[Path]:
    """Simulate one study per seed into `folder`.

    Studies of this configuration that are already there are kept, so an interrupted run is resumed by
    calling it again; files of other configurations with the same seed are replaced. `manifest.json` lists
    all studies of this configuration in the folder.

    Args:
        folder: made if missing.
        seeds: one study each; the file is called `study_<seed>.npz`.
        config: how they are simulated.
        workers: number of processes, each of one thread. With more than one, a script that calls this needs
            the usual `if __name__ == "__main__":`.
        progress: show a progress bar on standard error.

    Returns:
        the files, in the order of the seeds.

    Raises:
        RunError: a process died.
    """
    folder = Path(folder)
    paths = {seed: folder / f"study_{seed:06d}.npz" for seed in seeds}
    missing = {seed: path for seed, path in paths.items() if _seed_of_current(path, config) != seed}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("simulating studies", total=len(paths), completed=len(paths) - len(missing))
        for _ in run_jobs(_simulate_file, ((*item, config) for item in missing.items()), workers):
            bar.advance(task)
    _write_manifest(folder, config)
    return list(paths.values())


def _simulate_file(seed: int, path: Path, config: StudyConfig) -> None:
    save_study(simulate_study(seed, config), path)


def _seed_of_current(path: Path, config: StudyConfig) -> int | None:
    """The seed of a whole study of this configuration, None for any other file."""
    try:
        study = load_study(path)
    except StudyError:
        return None
    return study.seed if study.config == config else None


def _write_manifest(folder: Path, config: StudyConfig) -> None:
    seeds = {path.name: _seed_of_current(path, config) for path in sorted(folder.glob("study_*.npz"))}
    studies = [{"file": name, "seed": seed} for name, seed in seeds.items() if seed is not None]
    manifest = {"config_hash": config.hash(), "config": json.loads(config.to_json()), "studies": studies}
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2))
