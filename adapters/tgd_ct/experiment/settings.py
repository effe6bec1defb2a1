"""The settings of `tgd ct study`, read from one YAML file; three come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tgd_ct.case import DOSES, Task
from tgd_ct.networks.critic import Lipschitz
from tgd_ct.networks.generator import Kind
from tgd_ct.networks.segmenters import Architecture
from tgd_ct.simulation.config import PatientConfig
from tgd_kit.errors import RunError, printable
from tgd_kit.runs.settings import Count, Phi, Positive, checked, read_yaml
from tgd_kit.training.schedule import Schedule

PROFILES = Path(__file__).parent / "profiles"
REMEDY = f"Start from one in {PROFILES}."
GROWING = ("seeds", "workers")  # more of these add work, and change no result that is there
SIZES = {"quick": PatientConfig.quick, "full": PatientConfig.full, "tiny": PatientConfig.tiny}

Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Settings:
    """Everything a study depends on.

    Args:
        images: "quick", "full" or "tiny": how patients are simulated (`tgd_ct.simulation.config.PatientConfig`).
        train: patients for segmenters and denoisers.
        validation: patients that decide dose and weight of the task loss.
        adapt: other patients for each seed, to adapt to.
        test: patients to measure.
        tasks: organs with tumours.
        pretraining: segmenter to its schedule; the first one is that of the task loss.
        segmenter_width: channels of a segmenter's first layer.
        least_organ: Dice of the organ that a segmenter must reach at normal dose.
        least_tumour: Dice of the tumours that the first segmenter must reach there.
        doses: candidates, highest first, as shares of the normal one.
        headroom: Dice that must be left between normal dose and the denoiser by MSE.
        kind: of the denoisers.
        widths: output channels of their first four convolutions.
        training: schedule of the denoisers by MSE, from which all others start.
        hybrid: schedule of all denoisers from there on.
        retraining: schedule of the first segmenter at the low dose, from the one of normal dose on.
        tuning: schedule of every adaptation.
        gan: weight of the critic.
        lipschitz: how the critic is kept smooth.
        perceptual: weight of the perceptual loss.
        vgg: file of VGG-19's weights; an autoencoder is trained where there is none.
        extraction: schedule of the autoencoder.
        task_weights: candidates for the weight of the task loss.
        phi: threshold of TGD.
        signals_mm: diameters of the signals to detect.
        signal_hu: their contrast.
        blur_mm: standard deviation of the scanner's blur.
        seeds: of denoisers and adaptation patients.
        workers: processes of one thread.
    """

    images: Literal["quick", "full", "tiny"]
    train: Annotated[int, Field(ge=1, le=10_000)]
    validation: Annotated[int, Field(ge=2, le=1_000)]
    adapt: Annotated[int, Field(ge=1, le=100)]
    test: Annotated[int, Field(ge=2, le=1_000)]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    pretraining: Annotated[dict[Architecture, Schedule], Field(min_length=1)]
    segmenter_width: Count
    least_organ: Annotated[float, Field(ge=0, le=1)]
    least_tumour: Annotated[float, Field(ge=0, le=1)]
    doses: Annotated[tuple[Share, ...], Field(min_length=1)]
    headroom: Annotated[float, Field(ge=0, le=1)]
    kind: Kind
    widths: Annotated[tuple[Count, ...], Field(min_length=2, max_length=8)]
    training: Schedule
    hybrid: Schedule
    retraining: Schedule
    tuning: Schedule
    gan: Positive
    lipschitz: Lipschitz
    perceptual: Positive
    vgg: str | None
    extraction: Schedule
    task_weights: Annotated[tuple[Positive, ...], Field(min_length=1)]
    phi: Phi
    signals_mm: tuple[Positive, ...]
    signal_hu: float
    blur_mm: Positive
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=99)], ...], Field(min_length=1)]
    workers: Annotated[int, Field(ge=1, le=1024)]

    @property
    def architectures(self) -> list[Architecture]:
        """The segmenters; the first is that of the task loss."""
        return list(self.pretraining)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """All schedules by name."""
        named = {
            name: getattr(self, name) for name in ("training", "hybrid", "retraining", "tuning", "extraction")
        }
        return {**named, **{f"pretraining of {name}": one for name, one in self.pretraining.items()}}


def read_settings(path: Path) -> Settings:
    """Read a YAML file; its keys are the arguments of `Settings`.

    Raises:
        RunError: the file is missing or not YAML, or its keys or values are not those of `Settings`.
    """
    return settings_from(read_yaml(path, REMEDY), str(path))


def settings_from(given: object, where: str) -> Settings:
    """Settings from a mapping, as YAML or JSON hold them.

    Args:
        given: names and values of the arguments.
        where: they come from, for messages.

    Raises:
        RunError: names or values are not those of `Settings`.
    """
    found: Settings = checked(Settings, given, where, REMEDY)
    faults = {
        "doses do not fall": list(found.doses) != sorted(set(found.doses), reverse=True),
        f"doses are not among {DOSES}": not set(found.doses) < set(DOSES),
        "a schedule has several devices, but a study trains each network on one": any(
            one.processes > 1 for one in found.schedules.values()
        ),
        "vgg is no file": found.vgg is not None and not Path(found.vgg).is_file(),
        "seeds has one twice": len(set(found.seeds)) < len(found.seeds),
        "tasks has one twice": len(set(found.tasks)) < len(found.tasks),
    }
    for fault, found_so in faults.items():
        if found_so:
            raise RunError(f"{printable(where)}: {fault}.", REMEDY)
    return found
