"""The denoisers and adaptations of the study by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tgd_ct.case import Task
from tgd_ct.experiment.patients import Kernel
from tgd_ct.experiment.settings import Settings
from tgd_ct.training.losses import Weights

MSE, MSE_WGAN, SA_WGAN, TOD = "MSE", "MSE-WGAN", "SA-WGAN", "TOD-Net"
LOW, NLM, NORMAL_DOSE = "low dose", "non-local means", "normal dose"
RETRAINED, JOINT = "segmenter retrained at low dose", "trained jointly"


@dataclass(frozen=True)
class Recipe:
    """A denoiser that goes on from the one by MSE.

    Args:
        name: in tables and of its folder.
        weights: of its losses.
        attention: with self-attention, from the first step on.
    """

    name: str
    weights: Weights
    attention: bool = False


def perceptual_wgan(settings: Settings) -> str:
    """VGG-WGAN, or the same with the autoencoder that stands in for VGG."""
    return "VGG-WGAN" if settings.vgg else "autoencoder-WGAN"


def recipes(settings: Settings, task_weight: float) -> list[Recipe]:
    """All trained denoisers of a study, in the order of its tables."""
    critic = Weights(gan=settings.gan, lipschitz=settings.lipschitz)
    return [
        Recipe(MSE, Weights()),
        Recipe(MSE_WGAN, critic),
        Recipe(perceptual_wgan(settings), replace(critic, perceptual=settings.perceptual)),
        Recipe(SA_WGAN, critic, attention=True),
        Recipe(TOD, replace(critic, task=task_weight)),
    ]


def denoisers(settings: Settings) -> list[str]:
    """The rows of the tables of denoisers."""
    return [LOW, NLM, *(recipe.name for recipe in recipes(settings, 1.0))]


@dataclass(frozen=True)
class Change:
    """What TOD-Net is adapted to.

    Args:
        name: in tables and of its folder.
        dose: of the new images.
        task: of the new images.
        kernel: of the new images.
    """

    name: str
    dose: float
    task: Task
    kernel: Kernel = "standard"


def changes(settings: Settings, dose: float) -> list[Change]:
    """All changes: to the next lower dose, to a sharper kernel, and to the other task where there is one.

    Args:
        settings: of the study.
        dose: that TOD-Net was trained at.
    """
    first = settings.tasks[0]
    lower = [other for other in settings.doses if other < dose]
    found = [Change("lower dose", lower[0], first)] if lower else []
    found.append(Change("sharper kernel", dose, first, "sharp"))
    return found + [Change("other task", dose, task) for task in settings.tasks[1:2]]
