"""What the validation patients decide: whether segmenters are good enough, the dose, the weight of the task loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tgd_ct.experiment.jobs import AGAIN, OfTask, Validate, Weigh
from tgd_ct.experiment.recipes import MSE, NORMAL_DOSE
from tgd_kit.errors import RunError
from tgd_kit.runs.settings import read_record

PARTS = ("organ", "tumour")
Dices = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class Choice:
    """The dose of a task.

    Args:
        dose: as a share of the normal one.
        parts: of `PARTS`, those with head-room at this dose; all where none has any at any dose.
        headroom: whether there is any.
    """

    dose: float
    parts: tuple[str, ...]
    headroom: bool


def mean_dice(found: Dices, part: str) -> float:
    """Mean over the patients that have it."""
    values = [value for patient in found if (value := patient[part]) is not None]
    return float(np.mean(values)) if values else float("nan")


def check_segmenter(job: OfTask) -> None:
    """Refuse to go on with a segmenter that is not good at normal dose.

    Raises:
        RunError: its Dice is below the limit of the settings.
    """
    settings = job.settings
    found = validated(job, settings.doses[0])[NORMAL_DOSE]
    for part, least in zip(PARTS, (settings.least_organ, settings.least_tumour), strict=True):
        reached = mean_dice(found, part)
        if not reached >= least:
            raise RunError(
                f"The segmenter of the {job.task} reaches a Dice of {reached:.2f} for the {part} at normal dose, not "
                f"{least:.2f}: a task loss by it would mean nothing.",
                "Train it with more patients or steps (train, pretraining), in another folder.",
            )


def validated(job: OfTask, dose: float) -> dict[str, Dices]:
    """Dice of normal dose, low dose and denoised by MSE, of every validation patient."""
    path = Validate(job.out, job.settings, job.task, dose).path
    found: dict[str, Dices] = read_record(path, dict[str, list[dict[str, float | None]]], AGAIN)
    return found


def choose_dose(job: OfTask) -> Choice:
    """The highest dose with head-room: where MSE leaves enough Dice to be won, for the organ or its tumours."""
    for dose in job.settings.doses:
        found = validated(job, dose)
        left = {part: mean_dice(found[NORMAL_DOSE], part) - mean_dice(found[MSE], part) for part in PARTS}
        parts = tuple(part for part in PARTS if left[part] >= job.settings.headroom)
        if parts:
            return Choice(dose, parts, headroom=True)
    return Choice(job.settings.doses[-1], PARTS, headroom=False)


def choose_weight(jobs: Sequence[Weigh], parts: Sequence[str]) -> float:
    """The weight of the task loss with the best mean Dice of these parts; the smaller one of equals."""
    dices = {job.recipe.weights.task: weighed(job) for job in jobs}
    means = {
        weight: np.mean([mean_dice(found["dice"], part) for part in parts]) for weight, found in dices.items()
    }
    return max(sorted(means), key=lambda weight: float(means[weight]))


def weighed(job: Weigh) -> dict[str, Any]:
    """What a job of weighing found."""
    found: dict[str, Any] = read_record(job.path, dict[str, Any], AGAIN)
    return found
