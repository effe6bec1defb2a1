"""Denoisers on the same cases: image quality, and Dice of segmenters on what they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich import box
from rich.table import Table
from torch import nn

from tgd_ct.case import NORMAL, ORGAN, Case, Task
from tgd_ct.evaluation.measures import Quality, organ_and_tumour, quality
from tgd_ct.inference import denoise, segment
from tgd_ct.networks.segmenters import Segmenter
from tgd_kit.arrays import FloatArray
from tgd_kit.progress import progress as shown

LOW, FULL = "as it is", "normal dose"
REGIONS = ("image", "body", "ROI")


@dataclass(frozen=True)
class Patient:
    """What was found of one denoiser on one patient.

    Args:
        quality: per region; empty for the image of normal dose itself.
        dice: per segmenter, of "organ" and "tumour"; None where there is none.
    """

    quality: Mapping[str, Quality]
    dice: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Comparison:
    """What was found of all denoisers on all patients, in the order of the cases."""

    task: Task
    dose: float
    patients: Mapping[str, Sequence[Patient]]

    def table(self) -> Table:
        """Means and standard deviations over the patients, as a `rich` table."""
        title = (
            f"Mean ± standard deviation over the patients, {self.task} at {100 * self.dose:g} % of the dose"
        )
        caption = (
            "RMSE in HU, PSNR in dB and SSIM against the image of normal dose; PSNR and\n"
            "SSIM in the window of -160 to 240 HU. ROI: the organ with its tumours."
        )
        table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, caption_justify="left")
        segmenters = next(iter(self.patients.values()))[0].dice
        columns = ["", "RMSE body", "RMSE ROI", "PSNR body", "SSIM body"]
        columns += [f"{name} {part}" for name in segmenters for part in ("organ", "tumour")]
        for column in columns:
            table.add_column(column, justify="right" if column else "left")
        for denoiser in self.patients:
            table.add_row(denoiser, *self._cells(denoiser, list(segmenters)))
        return table

    def _cells(self, denoiser: str, segmenters: Sequence[str]) -> list[str]:
        measures = ("body", "rmse", 1), ("ROI", "rmse", 1), ("body", "psnr", 1), ("body", "ssim", 3)
        cells = []
        for region, measure, digits in measures:
            found = [getattr(one.quality.get(region), measure, None) for one in self.patients[denoiser]]
            cells.append(spread(found, digits))
        for name in segmenters:
            for part in ("organ", "tumour"):
                cells.append(spread([one.dice[name][part] for one in self.patients[denoiser]], 3))
        return cells

    def record(self) -> dict[str, object]:
        """All values, as plain data."""
        return asdict(self)


def mean(values: Sequence[float | None], digits: int) -> str:
    """Mean of what there is.

    >>> mean([1.0, None, 2.0], 1)
    '1.5'
    """
    found = [value for value in values if value is not None]
    return f"{np.mean(found):.{digits}f}" if found else ""


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean and standard deviation of what there is.

    >>> spread([1.0, None, 2.0], 1)
    '1.5 ± 0.7'
    """
    found = [value for value in values if value is not None]
    deviation = f" ± {np.std(found, ddof=1):.{digits}f}" if len(found) > 1 else ""
    return mean(found, digits) + deviation


def compare(
    cases: Sequence[Case],
    task: Task,
    dose: float,
    denoisers: Mapping[str, nn.Module | Callable[[FloatArray], FloatArray]],
    segmenters: Mapping[str, Segmenter],
    *,
    progress: bool = True,
) -> Comparison:
    """Measure denoisers, and the images as they are, against normal dose.

    Args:
        cases: patients to measure on.
        task: the organ and its tumours.
        dose: of the images, as a share of the normal one.
        denoisers: name to network, or to a function of a volume (z, y, x) in HU.
        segmenters: name to network.
        progress: show how far it is.

    Raises:
        ImageError: a case lacks the dose or the task.
    """
    named = {LOW: None, **denoisers, FULL: None}
    found: dict[str, list[Patient]] = {name: [] for name in named}
    with shown("measured volumes", len(named) * len(cases), show=progress) as task_shown:
        for case in cases:
            for name, denoiser in named.items():
                volume = case.image(NORMAL if name == FULL else dose)
                if denoiser is not None:
                    volume = (
                        denoise(denoiser, volume) if isinstance(denoiser, nn.Module) else denoiser(volume)
                    )
                found[name].append(measure(case, task, volume, segmenters, of_normal=name == FULL))
                task_shown.advance()
    return Comparison(task, dose, found)


def measure(
    case: Case,
    task: Task,
    volume: FloatArray,
    segmenters: Mapping[str, Segmenter],
    *,
    of_normal: bool = False,
) -> Patient:
    """Measure one volume of a case.

    Args:
        case: the patient.
        task: the organ and its tumours.
        volume: (z, y, x) in HU.
        segmenters: name to network.
        of_normal: it is that of normal dose itself, which has nothing to be compared with.
    """
    target = case.target(task)
    regions = {"image": np.ones_like(case.body), "body": case.body, "ROI": target >= ORGAN}
    dice = {name: organ_and_tumour(segment(network, volume), target) for name, network in segmenters.items()}
    return Patient({} if of_normal else quality(volume, case.image(NORMAL), regions), dice)
