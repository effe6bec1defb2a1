"""How good a denoiser is: lesion bias, liver noise, and error against the full-count image.

All three need what only a simulation has: repeated scans, and full counts. Images are (z, y, x) in SUV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torchmetrics import MeanSquaredError

from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.simulation.grid import Grid
from tgd_pet.denoising import denoise
from tgd_pet.network import WIDTHS
from tgd_pet.training.patches import Scans

MARGIN = len(WIDTHS)  # pixels: each 3x3 convolution sees one further


class RepeatedScans(Scans, Protocol):
    """What evaluation needs of a patient besides what training does."""

    @property
    def true(self) -> FloatArray:
        """The activity itself."""

    def realisations(self, version: str) -> Sequence[FloatArray]:
        """Independent low-count images of the same patient; may be none."""

    def liver(self) -> Mask:
        """Liver without its edge and without lesions; may be empty."""

    def lesion_masks(self) -> Sequence[Mask]:
        """One mask per lesion."""

    def grid(self) -> Grid:
        """The voxels of all volumes."""


@dataclass(frozen=True)
class Scores:
    """Scores of one denoiser on one version of the images of a few patients.

    Args:
        rmse: root mean squared error in SUV against the full-count image, over the body, of low-count images.
        bias: mean over all lesions of `lesion_bias`, in %; None without realisations.
        bias_error: standard error of that mean, from the spread between lesions.
        cov: mean over the patients of `liver_cov`, in %; None without realisations or liver.
    """

    rmse: float
    bias: float | None = None
    bias_error: float | None = None
    cov: float | None = None


def evaluate(
    network: nn.Module | None,
    patients: Sequence[RepeatedScans],
    version: str,
    *,
    ensemble: bool = True,
    progress: Callable[[], None] | None = None,
) -> Scores:
    """Score a network, or the noisy images themselves where it is None.

    Args:
        network: maps triplets (B, 3, H, W) in SUV to denoised triplets.
        patients: test patients.
        version: which reconstruction, "v1" or "v2".
        ensemble: also denoise the realisations, for bias and CoV.
        progress: called after each image.
    """

    def denoised(images: Sequence[FloatArray]) -> list[FloatArray]:
        done = []
        for image in images:
            done.append(image if network is None else denoise(network, image))
            if progress:
                progress()
        return done

    error = MeanSquaredError(squared=False)
    biases: list[float] = []
    covs: list[float] = []
    for patient in patients:
        body = patient.body()
        window = around(body)
        target = patient.full(version)[window]
        for image in denoised([low[window] for low in patient.low(version)]):
            error.update(*(torch.from_numpy(volume[body[window]]) for volume in (image, target)))
        realisations = denoised([r[window] for r in patient.realisations(version)]) if ensemble else []
        if realisations:
            biases += [lesion_bias(realisations, target, mask[window]) for mask in patient.lesion_masks()]
        if len(realisations) > 1 and patient.liver().any():
            covs.append(liver_cov(realisations, patient.liver()[window]))
    return Scores(
        rmse=float(error.compute()),
        bias=float(np.mean(biases)) if biases else None,
        bias_error=float(np.std(biases, ddof=1) / len(biases) ** 0.5) if len(biases) > 1 else None,
        cov=float(np.mean(covs)) if covs else None,
    )


def lesion_bias(realisations: Sequence[FloatArray], target: FloatArray, lesion: Mask) -> float:
    """Ensemble bias of a lesion's mean SUV, in % of its mean in the target.

    ``100 ((1/R) sum_r mu_r - T) / T``, where mu_r and T are the means over the lesion in realisation r and in
    the full-count image of the same reconstruction.

    Reference: Chen, Asma and Chan, MICCAI 2021, supplement, equation 6.

    >>> target = np.full((1, 2, 2), 4.0, np.float32)
    >>> lesion_bias([target - 0.5, target], target, target > 0)
    -6.25
    """
    expected = np.mean([realisation[lesion].mean(dtype=np.float64) for realisation in realisations])
    true = target[lesion].mean(dtype=np.float64)
    return float(100.0 * (expected - true) / true)


def liver_cov(realisations: Sequence[FloatArray], liver: Mask) -> float:
    """Ensemble coefficient of variation in the liver, in %: noise from scan to scan, not from voxel to voxel.

    The standard deviation of each voxel over the realisations, averaged over the liver, divided by the mean
    of the liver. The paper does not say which standard deviation; this is the unbiased one (R - 1).

    Reference: Chen, Asma and Chan, MICCAI 2021, supplement, equation 7.

    >>> one = np.ones((1, 2, 2), np.float32)
    >>> liver_cov([one * 0.5, one, one * 1.5], one > 0)
    50.0
    """
    values = np.stack([realisation[liver] for realisation in realisations]).astype(np.float64)
    return float(100.0 * values.std(axis=0, ddof=1).mean() / values.mean())


def around(body: Mask) -> tuple[slice, slice, slice]:
    """The in-plane box around the body and all that the network sees from inside it; every slice.

    A denoised image is the same inside the body whether computed in this box or whole, and quicker.
    """
    box = [slice(None)]
    for axis in (1, 2):
        inside = np.flatnonzero(body.any(axis=(0, 3 - axis)))
        box.append(slice(max(0, inside[0] - MARGIN), inside[-1] + 1 + MARGIN))
    return box[0], box[1], box[2]
