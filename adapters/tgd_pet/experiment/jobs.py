"""The jobs of a study: each makes one file, from files that earlier ones made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tgd_kit.training.fit import NETWORK
from tgd_pet.evaluation.measures import around_hot_object, denoised, measure, measure_images
from tgd_pet.experiment.patients import adaptation, testing, training, unseen
from tgd_pet.experiment.recipes import BASES, Recipe, Variant, adapt
from tgd_pet.experiment.settings import Settings
from tgd_pet.network import DnCNN, load_network, new_network
from tgd_pet.simulation.files import load_patient
from tgd_pet.simulation.patient import SimulatedPatient
from tgd_pet.training.fit import fit
from tgdsurgery import sweep_phi

LARGEST_RISE = 0.05  # relative, of the old task's error, that the proposed phi may cause
SWEEP_SCANS = 2  # of each patient


@dataclass(frozen=True)
class Job:
    """A piece of work for one seed.

    Args:
        out: folder of the study.
        settings: of the study.
        seed: of networks, patches and adaptation patients.
    """

    out: Path
    settings: Settings
    seed: int

    @property
    def path(self) -> Path:
        """The file that is there when the job is done."""
        raise NotImplementedError

    def do(self) -> dict[str, Any] | None:
        """Do the work; what is returned becomes the file, as JSON."""
        raise NotImplementedError

    def run_folder(self, name: str) -> Path:
        """Where the network of this name is trained."""
        return self.out / "networks" / owner(self.settings, self.seed, name) / name

    def network(self, name: str) -> DnCNN:
        """The trained network of this name."""
        return load_network(self.run_folder(name) / NETWORK)


def owner(settings: Settings, seed: int, name: str) -> str:
    """The folder of a seed's networks; seeds may share the two that they start from."""
    return f"base-{settings.base(seed)}" if name in BASES else str(seed)


def measures_path(out: Path, settings: Settings, seed: int, name: str | None) -> Path:
    """The measures of a network, or of the noisy images, which are the same for all seeds."""
    folder = out / "measures"
    return folder / "input.json" if name is None else folder / owner(settings, seed, name) / f"{name}.json"


@dataclass(frozen=True)
class Train(Job):
    """Train v1-net or v2-net."""

    name: str

    @property
    def path(self) -> Path:
        """The network."""
        return self.run_folder(self.name) / NETWORK

    def do(self) -> None:
        """`fit` resumes by itself."""
        number = self.settings.base(self.seed)
        network = new_network(number, self.settings.widths, self.settings.suv_limit)
        schedule = replace(self.settings.training, seed=number)
        patients = _load(training(self.out, self.settings))
        fit(network, patients, BASES[self.name], self.run_folder(self.name), schedule, progress=False)


@dataclass(frozen=True)
class Adapt(Job):
    """Adapt v1-net to v2 images."""

    recipe: Recipe

    @property
    def path(self) -> Path:
        """What trained, and whether the rest was kept."""
        return self.out / "adapted" / str(self.seed) / f"{self.recipe.name}.json"

    def do(self) -> dict[str, Any]:
        """The network is left in its run's folder."""
        schedule = replace(self.settings.tuning, seed=self.seed)
        patients = _load(adaptation(self.out, self.settings, self.seed))
        share, kept = adapt(
            self.network("v1-net"), patients, self.run_folder(self.recipe.name), schedule, self.recipe
        )
        return {"share": share, "kept": kept}


@dataclass(frozen=True)
class Measure(Job):
    """Measure a network, or the noisy images where it is None, on every test patient and both versions."""

    name: str | None

    @property
    def path(self) -> Path:
        """One list of patients for each version."""
        return measures_path(self.out, self.settings, self.seed, self.name)

    def do(self) -> dict[str, Any]:
        """Thin patients first, then large ones."""
        network = None if self.name is None else self.network(self.name)
        patients = _load(testing(self.out, self.settings))
        images = {"v1": self.settings.old_realisations, "v2": self.settings.realisations}
        return {
            version: [asdict(measure(network, patient, version, images=count)) for patient in patients]
            for version, count in images.items()
        }


@dataclass(frozen=True)
class Sweep(Job):
    """The threshold study of v1-net, on v1 images."""

    @property
    def path(self) -> Path:
        """The rows of `tgdsurgery.SweepResult`."""
        return self.out / "sweep" / f"{owner(self.settings, self.seed, 'v1-net')}.json"

    def do(self) -> dict[str, Any]:
        """The value is the mean over patients of the RMSE in the body, in SUV; a phi is proposed, or None."""
        patients = _load(testing(self.out, self.settings)[: self.settings.sweep_patients])

        def error(changed: nn.Module) -> float:
            found = [measure(changed, patient, "v1", images=SWEEP_SCANS).body.rmse for patient in patients]
            return sum(found) / len(found)

        example = torch.zeros(1, self.settings.widths[-1], 32, 32)
        network = self.network("v1-net")
        found = sweep_phi(network, error, self.settings.sweep, example, tolerance=LARGEST_RISE)
        return {**asdict(found), "proposed": found.proposed}


@dataclass(frozen=True)
class Learn(Job):
    """Online learning from one scan of an unseen case, and its measures; every seed has its own patient."""

    case: str
    variant: Variant

    @property
    def path(self) -> Path:
        """The measures."""
        return self.out / "unseen" / str(self.seed) / self.case / f"{self.variant.name}.json"

    def do(self) -> dict[str, Any]:
        """The network sees the two halves, and is then applied to the whole scan."""
        (patient,) = _load([unseen(self.out, self.settings, self.case, self.seed)])
        network, learning = learned(self, patient)
        return {"online": learning, **measure_unseen(network, patient)}


def learned(job: Learn, patient: SimulatedPatient) -> tuple[DnCNN | None, dict[str, Any] | None]:
    """The network for an unseen case, and how it learnt; it is trained if it is not there yet.

    No network for the noisy image; nothing learnt where a network is applied as it is.
    """
    variant = job.variant
    network = None if variant.base is None else job.network(variant.base)
    if network is None or variant.method is None:
        return network, None
    folder = job.out / "online" / str(job.seed) / job.case / variant.name
    found = variant.learn(network, patient, folder, replace(job.settings.online, seed=job.seed))
    learning = {key: getattr(found, key) for key in ("share", "before", "after", "learnt")}
    return found.network, learning


def measure_unseen(network: DnCNN | None, patient: SimulatedPatient) -> dict[str, Any]:
    """The measures of the denoised scan of an unseen case, as JSON.

    There is one scan only, so the noise of the liver is that from voxel to voxel, as in the paper's
    supplement for its catheter patient. The hot object does not count as body.
    """
    (done,) = denoised(network, patient.low("v2"))
    target, hot, liver = patient.full("v2"), patient.hot(), patient.liver()
    body = patient.body() & ~hot
    voxel = float(patient.spacing.prod())
    found = asdict(measure_images([done], target, patient.true, body, patient.lesion_masks(), liver, voxel))
    if liver.any():
        found["cov"] = float(100 * done[liver].std() / done[liver].mean())
    if hot.any():
        found["artefacts"] = asdict(around_hot_object(done, target, hot, body, patient.grid()))
    return found


def _load(paths: Iterable[Path]) -> list[SimulatedPatient]:
    return [_cached(path) for path in paths]


@lru_cache(maxsize=64)
def _cached(path: Path) -> SimulatedPatient:
    """A process does many jobs on the same patients."""
    return load_patient(path)
