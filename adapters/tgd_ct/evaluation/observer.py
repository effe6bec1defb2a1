"""How well a small signal can be detected: a channelised Hotelling observer.

RMSE and Dice of large organs hardly notice what a denoiser does to a faint spot of a few millimetres. This observer
does: it knows the signal and its place, sees the image through a few smooth channels, and decides as well as a linear
rule can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.special import eval_laguerre
from scipy.stats import mannwhitneyu

from tgd_ct.case import ORGAN, Case, Task
from tgd_kit.arrays import FloatArray
from tgd_kit.errors import RunError

CHANNELS = 6
FOLDS = 2
MARGIN_MM = 12.0  # between a signal and the edge of the organ or a tumour

Denoiser = Callable[[FloatArray], FloatArray]  # volumes (z, y, x) in HU


def laguerre_gauss(size: int, width: float, count: int = CHANNELS) -> NDArray[np.float64]:
    """Smooth, round, orthonormal channels, (count, size * size).

    ``u_j(r) = sqrt(2) / a exp(-pi r^2 / a^2) L_j(2 pi r^2 / a^2)``

    Args:
        size: of a region, in pixels; odd, so that it has a centre.
        width: a, in pixels.
        count: how many.

    Reference: Gallas and Barrett, "Validating the use of channels to estimate the ideal linear observer", J Opt Soc Am
    A 2003, equation 19.
    """
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    squares = 2 * np.pi * (y**2 + x**2) / width**2
    channels = [np.sqrt(2) / width * np.exp(-squares / 2) * eval_laguerre(j, squares) for j in range(count)]
    return np.stack(channels).reshape(count, -1)


def detectability(present: FloatArray, absent: FloatArray, width: float) -> float:
    """Area under the ROC curve of the observer; 0.5 is chance, 1 is certainty.

    The observer learns from one half of the pairs and is tested on the other, in turns: tested on what it has learnt
    from, it would look better than it is.

    Args:
        present: (pairs, size, size) regions around the centre of a signal, in HU.
        absent: the same regions without it.
        width: of the channels, in pixels; about the signal's diameter.

    Raises:
        RunError: there are fewer pairs than twice the channels in each half.
    """
    if len(present) < FOLDS * 2 * CHANNELS:
        raise RunError(
            f"An observer cannot learn from {len(present)} pairs of regions.",
            f"Pass {FOLDS * 2 * CHANNELS} or more.",
        )
    channels = laguerre_gauss(present.shape[-1], width)
    seen = [regions.reshape(len(regions), -1) @ channels.T for regions in (present, absent)]
    tested: tuple[list[NDArray[np.float64]], ...] = [], []
    for fold in range(FOLDS):
        out = np.arange(len(present)) % FOLDS == fold
        with_signal, without = (outputs[~out] for outputs in seen)
        scatter = np.cov(with_signal.T) + np.cov(without.T)
        template = np.linalg.solve(scatter / 2, with_signal.mean(0) - without.mean(0))
        # Each half has an observer of its own, whose scores have another zero.
        zero = (with_signal.mean(0) + without.mean(0)) @ template / 2
        for scores, outputs in zip(tested, seen, strict=True):
            scores.append(outputs[out] @ template - zero)
    scores = [np.concatenate(parts) for parts in tested]
    return float(mannwhitneyu(*scores).statistic / len(present) ** 2)


def signal(diameter_mm: float, contrast_hu: float, case: Case, blur_mm: float) -> FloatArray:
    """A disc as the scanner would show it, in a region of odd size, in HU.

    Args:
        diameter_mm: of the disc, in the slice.
        contrast_hu: above what is around it.
        case: whose voxels it is for.
        blur_mm: standard deviation of the scanner's blur.
    """
    finer, voxel = 25, case.spacing_mm[-1]
    half = int(np.ceil((diameter_mm / 2 + 4 * blur_mm) / voxel))
    size = finer * (2 * half + 1)
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) * voxel / finer
    disc = contrast_hu * (np.hypot(y, x) <= diameter_mm / 2)
    blurred = gaussian_filter(disc.astype(np.float64), blur_mm / voxel * finer)
    coarse: FloatArray = (
        blurred.reshape(2 * half + 1, finer, 2 * half + 1, finer).mean(axis=(1, 3)).astype(np.float32)
    )
    return coarse


def pairs(
    cases: Sequence[Case],
    task: Task,
    dose: float,
    denoise: Denoiser,
    *,
    diameter_mm: float,
    contrast_hu: float,
    blur_mm: float,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """Regions with and without a signal, denoised: one place in each slice of each case whose organ has room.

    The signal is added to the noisy image before it is denoised. A scan is nearly linear in so faint a signal, so this
    is what a scan of a patient with it would show.

    Args:
        cases: patients.
        task: in whose organ the signals are.
        dose: of the images, as a share of the normal one.
        denoise: what is to be judged.
        diameter_mm: of the signals.
        contrast_hu: of the signals, before blur.
        blur_mm: standard deviation of the scanner's blur.
        seed: of the places.

    Returns:
        Two arrays (pairs, size, size) in HU.
    """
    present, absent = [], []
    for number, case in enumerate(cases):
        added = signal(diameter_mm, contrast_hu, case, blur_mm)
        regions = list(_places(case, task, len(added), np.random.default_rng((seed, number))))
        noisy = case.image(dose)
        marked = noisy.copy()
        for region in regions:
            marked[region] += added
        without, with_signal = denoise(noisy), denoise(marked)
        present += [with_signal[region] for region in regions]
        absent += [without[region] for region in regions]
    return np.array(present), np.array(absent)


def _places(
    case: Case, task: Task, size: int, random: np.random.Generator
) -> Iterator[tuple[int, slice, slice]]:
    """A region of each slice, centred deep in the organ."""
    target, half = case.target(task), size // 2
    for z, organ in enumerate(target == ORGAN):
        depth = distance_transform_edt(organ, sampling=case.spacing_mm[1:])
        depth[:half], depth[-half:], depth[:, :half], depth[:, -half:] = 0, 0, 0, 0
        inside = np.argwhere(depth > MARGIN_MM)
        if len(inside):
            y, x = inside[random.integers(len(inside))]
            yield z, slice(y - half, y + half + 1), slice(x - half, x + half + 1)
