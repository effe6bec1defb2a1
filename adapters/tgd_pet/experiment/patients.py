"""The patients of a study: which there are, how they are simulated, and where their files lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tgd_kit.simulation.patients import patient_file
from tgd_pet.experiment.settings import SCAN_SECONDS, Settings
from tgd_pet.simulation.config import Feature, PatientConfig
from tgd_pet.simulation.files import simulate_files

SHORT_SECONDS = 60.0  # of the repeated scans of a test patient, as in the paper
FEATURES: dict[str, Feature] = {"bladder": "bladder", "line": "line", "low counts": "none"}
CASES = tuple(FEATURES)
# The first number of each set, so that no patient is in two of them.
FIRST = {"train": 0, "adapt": 10_000, "test low": 20_000, "test high": 21_000, "bladder": 30_000}
FIRST |= {"line": 31_000, "low counts": 32_000}
PER_SEED = 100  # numbers that each seed has for its adaptation patients


@dataclass(frozen=True)
class PatientSet:
    """Patients of one kind, in a folder of their own."""

    name: str
    numbers: tuple[int, ...]
    config: PatientConfig

    def paths(self, out: Path) -> list[Path]:
        """The files, in the order of the numbers."""
        return [patient_file(out / "patients" / self.name, number) for number in self.numbers]


def simulate_patients(out: Path, settings: Settings, *, progress: bool = True) -> None:
    """Simulate what is not there yet."""
    wanted = {
        path: (number, chosen.config)
        for chosen in patient_sets(settings)
        for number, path in zip(chosen.numbers, chosen.paths(out), strict=True)
    }
    simulate_files(wanted, workers=settings.workers, progress=progress)


def patient_sets(settings: Settings) -> list[PatientSet]:
    """All patients of a study."""
    thin, mixed = settings.simulated(body_size="low"), settings.simulated(body_size="mixed")
    sets = [
        _set("train", range(settings.train), mixed),
        _set("adapt", (n for seed in settings.seeds for n in _of_seed(settings, seed)), thin),
    ]
    short = SHORT_SECONDS / SCAN_SECONDS
    counts = {"low": settings.test - settings.test // 2, "high": settings.test // 2}
    for size, count in counts.items():
        config = settings.simulated(
            body_size=size,
            fractions=(short,),
            realisations=settings.realisations,
            realisation_fraction=short,
        )
        sets.append(_set(f"test {size}", range(count), config))
    return sets + [_unseen(settings, case, settings.seeds) for case in CASES]


def training(out: Path, settings: Settings) -> list[Path]:
    """The patients that v1-net and v2-net are trained on."""
    return patient_sets(settings)[0].paths(out)


def adaptation(out: Path, settings: Settings, seed: int) -> list[Path]:
    """The patients that this seed adapts to."""
    thin = settings.simulated(body_size="low")
    return _set("adapt", _of_seed(settings, seed), thin).paths(out)


def testing(out: Path, settings: Settings) -> list[Path]:
    """The test patients, the thin ones first."""
    return [path for chosen in patient_sets(settings)[2:4] for path in chosen.paths(out)]


def unseen(out: Path, settings: Settings, case: str, seed: int) -> Path:
    """This seed's patient with an unseen feature."""
    return _unseen(settings, case, (seed,)).paths(out)[0]


def _unseen(settings: Settings, case: str, seeds: Iterable[int]) -> PatientSet:
    seconds = settings.low_count_seconds if case == "low counts" else settings.online_seconds
    config = settings.simulated(
        body_size="low",
        feature=FEATURES[case],
        fractions=(seconds / SCAN_SECONDS,),
        realisations=1,  # halves come with them
    )
    return _set(case, seeds, config)


def _of_seed(settings: Settings, seed: int) -> range:
    return range(seed * PER_SEED, seed * PER_SEED + settings.adapt)


def _set(name: str, numbers: Iterable[int], config: PatientConfig) -> PatientSet:
    return PatientSet(name, tuple(FIRST[name] + number for number in numbers), config)
