"""Simulated patients on disk: one `.npz` file each, made in parallel, kept when already there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tgd_kit.errors import PatientError, RunError, printable, reason
from tgd_kit.progress import progress as shown
from tgd_kit.runs.files import replacing, there, write_json
from tgd_kit.runs.jobs import run_jobs
from tgd_kit.runs.npz import read_npz
from tgd_kit.runs.settings import checked
from tgdsurgery import TGDError

if TYPE_CHECKING:
    from typing_extensions import Self

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Configured:
    """Base of the dataclasses that say how patients are simulated."""

    FORMAT: ClassVar[int]  # raise it whenever the same configuration and seed would give another patient

    def to_json(self) -> str:
        """The configuration and the simulator's version as JSON."""
        return json.dumps({"format": self.FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`.

        Raises:
            PatientError: the text was written by another version of the simulator.
            RunError: it is no configuration.
            ValueError: it is not JSON.
        """
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("format", None) != cls.FORMAT:
            raise PatientError(
                "The patient was made by another version of the simulator.", "Simulate it again."
            )
        found: Self = checked(cls, fields, "The configuration", "Simulate the patient again.")
        return found

    def hash(self) -> str:
        """Identifies the configuration and the simulator's version."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


class Patient(Protocol):
    """What every simulated patient knows: how it was made."""

    @property
    def config(self) -> Any:
        """How it was simulated."""

    @property
    def seed(self) -> int:
        """The seed; with the configuration it determines everything else."""


Config = TypeVar("Config", bound=Configured)
Simulated = TypeVar("Simulated", bound=Patient)


@dataclass(frozen=True)
class PatientFiles(Generic[Simulated, Config]):
    """The files of one kind of simulated patients.

    Args:
        simulate: write the file of a patient with this seed and configuration; importable, as other processes call
            it.
        build: a patient from the arrays of its file; raises anything where they are not those of a patient.
        command: makes such files, for messages.
    """

    simulate: Callable[[int, Path, Config], None]
    build: Callable[[dict[str, NDArray[Any]]], Simulated]
    command: str

    def load(self, path: str | Path) -> Simulated:
        """Read a patient file.

        Raises:
            PatientError: the file is missing, damaged, or not a patient.
        """
        path, name = Path(path), printable(path)
        if not there(path):
            raise PatientError(f"There is no patient file {name}.", "Simulate it first, or check the path.")
        try:
            return self.build(read_npz(path))
        except TGDError as error:
            raise PatientError(f"{name} cannot be used: {error.problem}", error.remedy) from error
        except Exception as error:  # numpy and zipfile raise anything on damaged bytes
            raise PatientError(
                f"{name} is not a whole patient file: {reason(error)}.", "Simulate it again."
            ) from error

    def load_set(self, folder: Path) -> list[Simulated]:
        """All patients of a folder, by name.

        Raises:
            RunError: there is none.
            PatientError: a file is damaged.
        """
        patients = [self.load(path) for path in sorted(folder.glob("patient_*.npz"))]
        if not patients:
            raise RunError(f"{folder} holds no patient.", f"Make some with `{self.command}`.")
        return patients

    def simulate_set(
        self,
        folder: str | Path,
        seeds: Iterable[int],
        config: Config,
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
        self.simulate_files(wanted, workers=workers, progress=progress)
        return list(wanted)

    def simulate_files(
        self, wanted: Mapping[Path, tuple[int, Config]], *, workers: int = 1, progress: bool = True
    ) -> None:
        """Simulate patients of one or several sets; each process builds the projector once for all of them.

        Files that are already there and of this seed and configuration are kept, so the same call continues an
        interrupted one; others are replaced. `manifest.json` lists all patients of the last configuration in a
        folder.

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
            if self._seed_of_current(path, config) != seed
        ]
        with shown("simulated patients", len(wanted), done=len(wanted) - len(missing), show=progress) as task:
            for _ in run_jobs(self.simulate, missing, workers):
                task.advance()
        for folder, config in {path.parent: config for path, (_, config) in wanted.items()}.items():
            self._write_manifest(folder, config)

    def _seed_of_current(self, path: Path, config: Config) -> int | None:
        """The seed of a whole patient of this configuration, None for any other file."""
        try:
            patient = self.load(path)
        except PatientError:
            return None
        return patient.seed if patient.config == config else None

    def _write_manifest(self, folder: Path, config: Config) -> None:
        paths = sorted(folder.glob("patient_*.npz"))
        seeds = {path.name: self._seed_of_current(path, config) for path in paths}
        patients = [{"file": name, "seed": seed} for name, seed in seeds.items() if seed is not None]
        manifest = {
            "config_hash": config.hash(),
            "config": json.loads(config.to_json()),
            "patients": patients,
        }
        write_json(folder / MANIFEST, manifest)


def patient_file(folder: Path, seed: int) -> Path:
    """Where a set in this folder has the patient of this seed."""
    return folder / f"patient_{seed:06d}.npz"


def write_patient(path: str | Path, fields: Mapping[str, Any]) -> None:
    """Write the arrays of a patient; the file appears under its name only when it is complete."""
    with replacing(Path(path)) as temporary:
        np.savez(temporary, **fields)
