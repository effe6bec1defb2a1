"""Two half-count images of one patient as training data, with a slab of slices held out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter
from torch import nn

from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.errors import RunError
from tgd_pet.denoising import denoise

SMALLEST_ACTIVE_SUV = 0.1  # far below any tissue, above the mean of the noise in air
SMOOTHING_VOXELS = 2.0  # standard deviation of the Gaussian before the comparison
HELD_OUT_SHARE = 1 / 4  # of the slices
LEAST_HELD_OUT, MOST_HELD_OUT = 3, 16  # slices; a single one is mostly noise
GAP = 2  # slices on either side: a triplet reaches one slice beyond its centre, as does a held-out one
LARGEST_DIFFERENCE_OF_TOTALS = 0.25  # relative: the totals of halves of one scan differ far less, by noise
SMALLEST_DIFFERENCE_OF_VOXELS = 0.01  # relative: one image stored twice differs less, by rounding


@dataclass(frozen=True)
class HeldOut:
    """Two halves, the voxels with activity, and the slices that training does not see.

    Args:
        scan_a: (z, y, x) in SUV.
        scan_b: the other half.
        active: where to train and to measure.
        slices: what is held out.
    """

    scan_a: FloatArray
    scan_b: FloatArray
    active: Mask
    slices: slice

    def trained(self) -> Mask:
        """The active voxels that patches are centred on: none in a held-out slice or in the gap around."""
        trained: Mask = self.active.copy()
        trained[max(self.slices.start - GAP, 0) : self.slices.stop + GAP] = False
        return trained

    def error(self, network: nn.Module) -> float:
        """Root mean squared difference of one half, denoised, and the other, in SUV, both ways."""
        reach = slice(max(self.slices.start - 1, 0), self.slices.stop + 1)
        inside = slice(self.slices.start - reach.start, self.slices.stop - reach.start)
        where, squares = self.active[self.slices], []
        for noisy, other in ((self.scan_a, self.scan_b), (self.scan_b, self.scan_a)):
            denoised = denoise(network, noisy[reach])[inside]
            squares.append(np.square(denoised - other[self.slices], dtype=np.float64)[where].mean())
        return float(np.sqrt(np.mean(squares)))


def hold_out(scan_a: FloatArray, scan_b: FloatArray, *, patch: int) -> HeldOut:
    """Two halves as they can be trained on; the slab is in the middle of the slices with activity.

    Args:
        scan_a: (z, y, x) in SUV.
        scan_b: the other half.
        patch: edge length of a training patch in pixels.

    Raises:
        RunError: the images differ in shape or total, are the same image, or are too small.
    """
    _check(scan_a, scan_b, patch)
    scan_a, scan_b = (np.ascontiguousarray(scan) for scan in (scan_a, scan_b))
    active = gaussian_filter((scan_a + scan_b) / 2, SMOOTHING_VOXELS) > SMALLEST_ACTIVE_SUV
    filled = np.flatnonzero(active.any(axis=(1, 2)))
    spare = len(filled) - 2 * GAP - 1  # one at least is to train on
    count = max(1, min(max(int(len(filled) * HELD_OUT_SHARE), LEAST_HELD_OUT), MOST_HELD_OUT, spare))
    start = int(filled[(len(filled) - count) // 2]) if len(filled) else 0
    held_out = HeldOut(scan_a, scan_b, active, slice(start, start + count))
    if not held_out.trained().any():
        raise RunError(
            f"{len(filled)} slices with activity are too few to train on some and to hold out others.",
            "Pass images of at least 6 such slices.",
        )
    return held_out


def _check(scan_a: FloatArray, scan_b: FloatArray, patch: int) -> None:
    if scan_a.shape != scan_b.shape:
        raise RunError(
            f"The halves have shapes {scan_a.shape} and {scan_b.shape}.", "Pass images on one grid."
        )
    if min(scan_a.shape[1:]) < patch:
        raise RunError(
            f"Slices of {scan_a.shape[2]} x {scan_a.shape[1]} pixels hold no patch of {patch} x {patch}.",
            "Pass larger images, or a Schedule of smaller patches.",
        )
    if np.linalg.norm(scan_a - scan_b) <= SMALLEST_DIFFERENCE_OF_VOXELS * np.linalg.norm(scan_a):
        raise RunError(
            "The two images are the same except for rounding.",
            "Pass independent halves: what they share is taken for signal.",
        )
    totals = [float(scan.sum(dtype=np.float64)) for scan in (scan_a, scan_b)]
    if abs(totals[0] - totals[1]) > LARGEST_DIFFERENCE_OF_TOTALS * max(map(abs, totals)):
        raise RunError(
            f"The mean of one image is {totals[0] / scan_a.size:.3g}, of the other {totals[1] / scan_a.size:.3g}.",
            "Pass two halves of one scan, both in SUV.",
        )


@dataclass(frozen=True)
class _Direction:
    """One half as the noisy image and the other as its target, as `tgd_pet.training.patches.Scans`."""

    noisy: FloatArray
    target: FloatArray
    centres: Mask

    def full(self, version: str) -> FloatArray:
        return self.target

    def low(self, version: str) -> list[FloatArray]:
        return [self.noisy]

    def body(self) -> Mask:
        return self.centres


def swapped(held_out: HeldOut) -> list[_Direction]:
    """Both directions: A to B and B to A."""
    forth = _Direction(held_out.scan_a, held_out.scan_b, held_out.trained())
    return [forth, replace(forth, noisy=forth.target, target=forth.noisy)]
