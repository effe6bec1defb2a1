"""The jobs of a study: each makes one file, from files that earlier ones made.

Those after the first trainings depend on what the validation patients have decided: see `tgd_ct.experiment.choices`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tgd_ct.case import NORMAL, Case, Task
from tgd_ct.evaluation.compare import measure
from tgd_ct.evaluation.observer import detectability, pairs
from tgd_ct.experiment.patients import adaptation, load, measured, training, validation
from tgd_ct.experiment.recipes import JOINT, LOW, MSE, NLM, NORMAL_DOSE, RETRAINED, TOD, Change, Recipe
from tgd_ct.experiment.settings import Settings
from tgd_ct.inference import denoise, non_local_means
from tgd_ct.networks.extractors import Autoencoder, load_vgg, new_autoencoder
from tgd_ct.networks.files import load_generator, load_segmenter
from tgd_ct.networks.generator import Generator, new_generator
from tgd_ct.networks.segmenters import Architecture, Segmenter, new_segmenter
from tgd_ct.training.adapting import Method, adapt
from tgd_ct.training.denoiser import Judges, train_denoiser
from tgd_ct.training.extractor import train_extractor
from tgd_ct.training.joint import Joint, train_jointly
from tgd_ct.training.losses import Weights
from tgd_ct.training.samples import SampleSource
from tgd_ct.training.segmenter import train_segmenter
from tgd_ct.training.step_cost import step_costs
from tgd_kit.arrays import FloatArray
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.tgd import Flow
from tgd_kit.training.weights import read_weights

FLOW: Flow = "masked"  # of TGD: the paper's
AGAIN = "Delete it, and the same command makes it again."


@dataclass(frozen=True)
class OfTask:
    """One task of a study, and the networks and patients of it; the jobs below are work on one.

    Args:
        out: folder of the study.
        settings: of the study.
        task: the organ and its tumours.
    """

    out: Path
    settings: Settings
    task: Task

    def folder(self, *names: str) -> Path:
        """A folder of networks of this task."""
        return self.out.joinpath("networks", self.task, *names)

    def segmenter(self, architecture: Architecture) -> Segmenter:
        """The one that was trained on normal dose."""
        return load_segmenter(self.folder("segmenters", architecture) / NETWORK)

    def judges(self) -> Judges:
        """The segmenter of the task loss, and the extractor of the perceptual one."""
        extractor: nn.Module
        if self.settings.vgg:
            extractor = load_vgg(Path(self.settings.vgg))
        else:
            extractor = new_autoencoder(0)
            extractor.load_state_dict(read_weights(self.folder("extractor") / NETWORK, AGAIN))
        return Judges(self.segmenter(self.settings.architectures[0]), extractor)

    def training_cases(self) -> list[Case]:
        """For segmenters and denoisers."""
        return load(self.out, training(self.settings))


@dataclass(frozen=True)
class Pretrain(OfTask):
    """Train a segmenter on normal dose."""

    architecture: Architecture

    @property
    def path(self) -> Path:
        """The network."""
        return self.folder("segmenters", self.architecture) / NETWORK

    def do(self) -> None:
        """`train_segmenter` resumes by itself."""
        network = new_segmenter(0, self.architecture, self.settings.segmenter_width)
        schedule = self.settings.pretraining[self.architecture]
        train_segmenter(network, self.training_cases(), self.task, self.path.parent, schedule, progress=False)


@dataclass(frozen=True)
class Extract(OfTask):
    """Train the autoencoder of the perceptual loss."""

    @property
    def path(self) -> Path:
        """The network."""
        return self.folder("extractor") / NETWORK

    def do(self) -> None:
        """`train_extractor` resumes by itself."""
        network: Autoencoder = new_autoencoder(0)
        schedule = self.settings.extraction
        train_extractor(network, self.training_cases(), self.task, self.path.parent, schedule, progress=False)


@dataclass(frozen=True)
class Begin(OfTask):
    """Train a denoiser by MSE, from which others go on."""

    dose: float
    seed: int
    attention: bool = False

    @property
    def path(self) -> Path:
        """The network."""
        return begun(self, self.dose, self.seed, attention=self.attention) / NETWORK

    def do(self) -> None:
        """`train_denoiser` resumes by itself."""
        settings = self.settings
        network = new_generator(self.seed, settings.kind, settings.widths, attention=self.attention)
        train_denoiser(
            network,
            self.training_cases(),
            self.dose,
            self.task,
            self.path.parent,
            replace(settings.training, seed=self.seed),
            weights=Weights(),
            progress=False,
        )


def begun(job: OfTask, dose: float, seed: int, *, attention: bool = False) -> Path:
    """The folder of a denoiser by MSE that others go on from."""
    return job.folder("begun", f"{dose:g}", f"{seed}{' with attention' * attention}")


@dataclass(frozen=True)
class Validate(OfTask):
    """Dice of the first segmenter on the validation patients: at normal dose, at a low one, and denoised by MSE."""

    dose: float

    @property
    def path(self) -> Path:
        """Per image: "organ" and "tumour" of every patient."""
        return self.out / "validation" / self.task / f"dose {self.dose:g}.json"

    def do(self) -> dict[str, Any]:
        """By the network of the first seed."""
        cases = load(self.out, validation(self.settings))
        network = load_generator(begun(self, self.dose, self.settings.seeds[0]) / NETWORK)
        volumes = {
            NORMAL_DOSE: [case.image(NORMAL) for case in cases],
            LOW: [case.image(self.dose) for case in cases],
            MSE: [denoise(network, case.image(self.dose)) for case in cases],
        }
        return {name: first_dice(self, cases, images) for name, images in volumes.items()}


def first_dice(
    job: OfTask, cases: Sequence[Case], images: Sequence[FloatArray]
) -> list[Mapping[str, float | None]]:
    """Dice of the first segmenter, per patient."""
    name = job.settings.architectures[0]
    segmenters: dict[str, Segmenter] = {name: job.segmenter(name)}
    return [
        measure(case, job.task, image, segmenters, of_normal=True).dice[name]
        for case, image in zip(cases, images, strict=True)
    ]


@dataclass(frozen=True)
class Weigh(OfTask):
    """Train TOD-Net with one weight of the task loss, and measure it on the validation patients."""

    dose: float
    recipe: Recipe

    @property
    def path(self) -> Path:
        """Dice of the first segmenter, and RMSE in the body in HU, of every patient."""
        weight = f"task weight {self.recipe.weights.task:g}.json"
        return self.out / "validation" / self.task / weight

    def do(self) -> dict[str, Any]:
        """By the network of the first seed."""
        folder = self.folder("weighed", f"{self.recipe.weights.task:g}")
        network = go_on(self, self.dose, self.settings.seeds[0], self.recipe, folder)
        cases = load(self.out, validation(self.settings))
        images = [denoise(network, case.image(self.dose)) for case in cases]
        rmse = [
            measure(case, self.task, image, {}).quality["body"].rmse
            for case, image in zip(cases, images, strict=True)
        ]
        return {"dice": first_dice(self, cases, images), "rmse": rmse}


def go_on(job: OfTask, dose: float, seed: int, recipe: Recipe, folder: Path) -> Generator:
    """A denoiser that goes on from the one by MSE by a recipe."""
    network = load_generator(begun(job, dose, seed, attention=recipe.attention) / NETWORK)
    train_denoiser(
        network,
        job.training_cases(),
        dose,
        job.task,
        folder,
        replace(job.settings.hybrid, seed=seed),
        weights=recipe.weights,
        judges=job.judges(),
        purpose=recipe.name,
        progress=False,
    )
    return network


@dataclass(frozen=True)
class Train(OfTask):
    """Train a denoiser of the tables."""

    dose: float
    seed: int
    recipe: Recipe

    @property
    def path(self) -> Path:
        """The network."""
        return self.folder(str(self.seed), self.recipe.name) / NETWORK

    def do(self) -> None:
        """`train_denoiser` resumes by itself."""
        go_on(self, self.dose, self.seed, self.recipe, self.path.parent)


@dataclass(frozen=True)
class Retrain(OfTask):
    """Train the first segmenter on at the low dose, instead of denoising."""

    dose: float
    seed: int

    @property
    def path(self) -> Path:
        """The network."""
        return self.folder(str(self.seed), RETRAINED) / NETWORK

    def do(self) -> None:
        """From the one of normal dose."""
        schedule = replace(self.settings.retraining, seed=self.seed)
        network = self.segmenter(self.settings.architectures[0])
        cases = self.training_cases()
        train_segmenter(network, cases, self.task, self.path.parent, schedule, dose=self.dose, progress=False)


@dataclass(frozen=True)
class TrainJointly(OfTask):
    """Train denoiser and segmenter together, from the denoiser by MSE and the segmenter of normal dose."""

    dose: float
    seed: int
    task_weight: float

    @property
    def path(self) -> Path:
        """Both networks."""
        return self.folder(str(self.seed), JOINT) / NETWORK

    def do(self) -> None:
        """By the schedule of the other denoisers."""
        both = self.networks()
        schedule = replace(self.settings.hybrid, seed=self.seed)
        cases, folder = self.training_cases(), self.path.parent
        train_jointly(
            both.denoiser,
            both.segmenter,
            cases,
            self.dose,
            self.task,
            folder,
            schedule,
            task_weight=self.task_weight,
            progress=False,
        )

    def networks(self) -> Joint:
        """As they are before."""
        denoiser = load_generator(begun(self, self.dose, self.seed) / NETWORK)
        return Joint(denoiser, self.segmenter(self.settings.architectures[0]))


@dataclass(frozen=True)
class Measure(OfTask):
    """Measure one row of the tables on the test patients: at the low dose, and on the images of normal dose.

    The rows that do not depend on a seed are measured for the first one only.
    """

    dose: float
    seed: int
    name: str

    @property
    def path(self) -> Path:
        """Lists of patients, and the detectability of each signal."""
        return self.out / "measures" / self.task / str(self.seed) / f"{self.name}.json"

    def do(self) -> dict[str, Any]:
        """A segmenter of its own counts as the first one."""
        cases = load(self.out, measured(self.settings))
        segmenters: dict[str, Segmenter] = {
            name: self.segmenter(name) for name in self.settings.architectures
        }
        first = self.settings.architectures[0]
        network: Generator | None = None
        if self.name == RETRAINED:
            segmenters = {first: load_segmenter(self.folder(str(self.seed), RETRAINED) / NETWORK)}
        elif self.name == JOINT:
            both = TrainJointly(self.out, self.settings, self.task, self.dose, self.seed, 0.0).networks()
            both.load_state_dict(read_weights(self.folder(str(self.seed), JOINT) / NETWORK, AGAIN))
            network, segmenters = both.denoiser.eval(), {first: both.segmenter.eval()}
        elif self.name not in (LOW, NLM, NORMAL_DOSE):
            network = load_generator(self.folder(str(self.seed), self.name) / NETWORK)

        def applied(image: FloatArray) -> FloatArray:
            if network is not None:
                return denoise(network, image)
            return non_local_means(image, self._noise()) if self.name == NLM else image

        dose = NORMAL if self.name == NORMAL_DOSE else self.dose
        return {
            "low": [
                asdict(
                    measure(case, self.task, applied(case.image(dose)), segmenters, of_normal=dose == NORMAL)
                )
                for case in cases
            ],
            "normal": [
                asdict(measure(case, self.task, applied(case.image(NORMAL)), segmenters, of_normal=True))
                for case in cases
            ],
            "detectability": {
                f"{diameter:g}": self._detectability(cases, dose, applied, diameter)
                for diameter in self.settings.signals_mm
            },
        }

    def _noise(self) -> float:
        """Standard deviation of the noise in the body, in HU, of the validation patients."""
        cases = load(self.out, validation(self.settings))
        return float(np.mean([(c.image(self.dose) - c.image(NORMAL))[c.body].std() for c in cases]))

    def _detectability(self, cases: Sequence[Case], dose: float, applied: Any, diameter: float) -> float:
        regions = pairs(
            cases,
            self.task,
            dose,
            applied,
            diameter_mm=diameter,
            contrast_hu=self.settings.signal_hu,
            blur_mm=self.settings.blur_mm,
        )
        return detectability(*regions, diameter / cases[0].spacing_mm[-1])


@dataclass(frozen=True)
class Adapt(OfTask):
    """Adapt TOD-Net of the first task, and measure what it does to new and old images."""

    dose: float
    seed: int
    change: Change
    method: Method | None
    weights: Weights

    @property
    def path(self) -> Path:
        """Share and kept, and lists of patients: "new" and "old"."""
        return self.out / "adapted" / str(self.seed) / self.change.name / f"{self.method or TOD}.json"

    def do(self) -> dict[str, Any]:
        """Where there is no method, TOD-Net is measured as it is."""
        change, settings = self.change, self.settings
        network = load_generator(self.folder(str(self.seed), TOD) / NETWORK)
        of_change = replace(self, task=change.task)
        outcome: dict[str, Any] = {"share": 0.0, "kept": None}
        if self.method is not None:
            tuned = adapt(
                network,
                load(self.out, adaptation(settings, [self.seed], change.kernel)),
                change.dose,
                change.task,
                self.folder(str(self.seed), "adapted", change.name, self.method),
                replace(settings.tuning, seed=self.seed),
                weights=self.weights,
                judges=of_change.judges(),
                method=self.method,
                phi=settings.phi,
                flow=FLOW,
                progress=False,
            )
            network, outcome = tuned.network, {"share": tuned.share, "kept": tuned.kept}
        new = _measured(of_change, network, load(self.out, measured(settings, change.kernel)), change.dose)
        old = _measured(self, network, load(self.out, measured(settings)), self.dose)
        return {**outcome, "new": new, "old": old}


@dataclass(frozen=True)
class TimeSteps(OfTask):
    """Time a training step of TOD-Net in each way of adapting, on patients to adapt to."""

    dose: float
    weights: Weights

    @property
    def path(self) -> Path:
        """Method to the time of its step over that of full fine-tuning."""
        return self.out / "step costs.json"

    def do(self) -> dict[str, float]:
        """On one batch, in one process."""
        settings, seed = self.settings, self.settings.seeds[0]
        network = load_generator(self.folder(str(seed), TOD) / NETWORK)
        cases = load(self.out, adaptation(settings, [seed]))
        source = SampleSource(cases, settings.kind, self.dose, self.task, settings.tuning)
        sample = next(iter(source.train_dataloader()))
        return step_costs(network, sample, self.weights, self.judges(), phi=settings.phi, flow=FLOW)


def _measured(job: OfTask, network: Generator, cases: Sequence[Case], dose: float) -> list[dict[str, Any]]:
    first = job.settings.architectures[0]
    segmenters: dict[str, Segmenter] = {first: job.segmenter(first)}
    return [asdict(measure(case, job.task, denoise(network, case.image(dose)), segmenters)) for case in cases]
