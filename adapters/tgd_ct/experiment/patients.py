"""The patients of a study: which there are, and where their files lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from tgd_ct.case import Case
from tgd_ct.experiment.settings import SIZES, Settings
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.files import Part, load_patient, part_seeds, simulate_files
from tgd_kit.simulation.patients import patient_file

Kernel = Literal["standard", "sharp"]
ADAPTATION_FIRST = 20_000  # number among the training patients, far from those of the first training
PER_SEED = 100  # numbers that each seed has for its adaptation patients


@dataclass(frozen=True)
class PatientSet:
    """Patients of one kind, in a folder of their own."""

    name: str
    seeds: tuple[int, ...]
    config: PatientConfig

    def paths(self, out: Path) -> list[Path]:
        """The files, in the order of the seeds."""
        return [patient_file(out / "patients" / self.name, seed) for seed in self.seeds]


def simulate_patients(out: Path, settings: Settings, *, progress: bool = True) -> None:
    """Simulate what is not there yet."""
    chosen = [training(settings), validation(settings)]
    for kernel in ("standard", "sharp"):
        chosen += [measured(settings, kernel), adaptation(settings, settings.seeds, kernel)]
    wanted = {
        path: (seed, one.config)
        for one in chosen
        for seed, path in zip(one.seeds, one.paths(out), strict=True)
    }
    simulate_files(wanted, workers=settings.workers, progress=progress)


def training(settings: Settings) -> PatientSet:
    """For segmenters and denoisers."""
    return _set("train", settings, "train", range(settings.train))


def validation(settings: Settings) -> PatientSet:
    """That decide dose and weight of the task loss."""
    return _set("validation", settings, "validation", range(settings.validation))


def measured(settings: Settings, kernel: Kernel = "standard") -> PatientSet:
    """To measure; the sharp images are of the same scans."""
    return _set(f"test {kernel}", settings, "test", range(settings.test), kernel)


def adaptation(settings: Settings, seeds: Iterable[int], kernel: Kernel = "standard") -> PatientSet:
    """To adapt to, for these seeds."""
    first = [ADAPTATION_FIRST + PER_SEED * seed for seed in seeds]
    numbers = [number for start in first for number in range(start, start + settings.adapt)]
    return _set(f"adapt {kernel}", settings, "train", numbers, kernel)


def load(out: Path, patients: PatientSet) -> list[Case]:
    """The cases of a set."""
    return [_cached(path) for path in patients.paths(out)]


@lru_cache(maxsize=256)
def _cached(path: Path) -> Case:
    """A process does many jobs on the same patients."""
    return load_patient(path).case()


def _set(
    name: str, settings: Settings, part: Part, numbers: Iterable[int], kernel: Kernel = "standard"
) -> PatientSet:
    config = SIZES[settings.images]()
    seeds = tuple(part_seeds(part, number, 1)[0] for number in numbers)
    return PatientSet(name, seeds, replace(config, scanner=replace(config.scanner, kernel=kernel)))
