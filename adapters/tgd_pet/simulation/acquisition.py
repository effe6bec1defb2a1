"""From a phantom to counts: resolution, attenuation, scatter, randoms and Poisson noise; and thinning.

The reconstruction knows the exact attenuation, scatter and randoms (a perfect CT and perfect estimates). It does
not know the noise, nor anything finer than its grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import SimulationError
from tgd_kit.simulation.grid import Grid
from tgd_kit.simulation.projector import Projector, blur
from tgd_pet.simulation.geometry import Geometry
from tgd_pet.simulation.phantom import Phantom

CountArray = NDArray[np.int32]
Scalar = TypeVar("Scalar", np.int32, np.float32)


@dataclass(frozen=True)
class Scanner:
    """A scanner and the physics that its data suffer.

    Attributes:
        geometry: reconstruction grid and lines of response.
        slice_mm: slice thickness.
        resolution_mm: FWHM of the detectors' Gaussian blur in image space.
        scatter_fraction: scattered share of trues plus scatter.
        scatter_mm: FWHM of the Gaussian that turns the trues into scatter, radially, axially and along the
            time-of-flight axis.
        randoms_fraction: share of the prompts that are randoms, uniform over all bins.
    """

    geometry: Geometry
    slice_mm: float
    resolution_mm: float = 5.0
    scatter_fraction: float = 0.3
    scatter_mm: float = 120.0
    randoms_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not (0 <= self.scatter_fraction < 1 and 0 <= self.randoms_fraction < 1):
            raise SimulationError("Scatter and randoms fractions must lie in [0, 1).", "Check them.")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) of the reconstructed image."""
        return self.slice_mm, self.geometry.voxel_mm, self.geometry.voxel_mm

    def phantom_grid(self, slices: int) -> Grid:
        """The grid the data are simulated on: twice as fine as that of `slices` reconstructed slices."""
        size = 2 * self.geometry.size
        dz, dy, dx = self.spacing_mm
        return Grid((2 * slices, size, size), (dz / 2, dy / 2, dx / 2))


@dataclass(frozen=True)
class Acquisition:
    """Counts and what the reconstruction knows about them; arrays are (subset, angle, bin, TOF bin, slice).

    The expected counts are `factors * forward(activity) + background`.

    Attributes:
        counts: prompts.
        factors: counts per SUV mm of a line integral: duration, sensitivity and attenuation. No TOF
            dependence: that axis has length 1.
        background: expected scatter and randoms, in counts.
    """

    counts: CountArray
    factors: FloatArray
    background: FloatArray

    def without_tof(self) -> Acquisition:
        """The same events summed over the TOF bins."""
        return replace(self, counts=_sum_tof(self.counts), background=_sum_tof(self.background))

    def thinned(self, fraction: float, rng: np.random.Generator) -> Acquisition:
        """A random `fraction` of the events: a scan that is shorter by that factor."""
        return self._part(thin(self.counts, fraction, rng), fraction)

    def halves(self, rng: np.random.Generator) -> tuple[Acquisition, Acquisition]:
        """The events dealt out at random into two independent scans of half the duration."""
        first, second = split_halves(self.counts, rng)
        return self._part(first, 0.5), self._part(second, 0.5)

    def realisations(self, number: int, fraction: float, rng: np.random.Generator) -> list[Acquisition]:
        """`number` disjoint, hence independent, short scans with `fraction` of the events each.

        Raises:
            SimulationError: there are not that many events, `number * fraction > 1`.
        """
        if number * fraction > 1.0 + 1e-9:
            raise SimulationError(
                f"{number} disjoint scans cannot each have {fraction:.0%} of the counts.",
                "Take fewer or shorter ones.",
            )
        rest, scans = self.counts, []
        for i in range(number):
            counts = thin(rest, min(1.0, fraction / (1.0 - i * fraction)), rng)
            rest = rest - counts
            scans.append(self._part(counts, fraction))
        return scans

    def _part(self, counts: CountArray, fraction: float) -> Acquisition:
        scale = np.float32(fraction)
        return Acquisition(counts, self.factors * scale, self.background * scale)


def acquire(
    rng: np.random.Generator, phantom: Phantom, scanner: Scanner, *, prompts_per_slice: float
) -> Acquisition:
    """Scan a phantom.

    Args:
        rng: source of the Poisson noise.
        phantom: on the grid `scanner.phantom_grid(slices)`.
        scanner: geometry and physics.
        prompts_per_slice: expected prompts (trues, scatter and randoms) of an average slice.

    Raises:
        SimulationError: the phantom is on another grid, or has no activity.
    """
    slices = len(phantom.activity) // 2
    if Grid(phantom.activity.shape, phantom.spacing_mm) != scanner.phantom_grid(slices):
        raise SimulationError(
            "The phantom is not on the scanner's simulation grid.", "Make it on scanner.phantom_grid(slices)."
        )
    fine = scanner.geometry.finer()
    seen = _average_slice_pairs(blur(phantom.activity, scanner.resolution_mm, phantom.spacing_mm))
    attenuation = np.exp(-Projector(fine.without_tof()).forward(_average_slice_pairs(phantom.mu)))
    trues = Projector(fine).forward(seen) * attenuation
    if not trues.any():
        raise SimulationError("The phantom has no activity in the field of view.", "Use another phantom.")

    prompts = prompts_per_slice * slices
    scatter_and_trues = prompts * (1.0 - scanner.randoms_fraction)
    scale = np.float32(scatter_and_trues * (1.0 - scanner.scatter_fraction) / trues.sum(dtype=np.float64))
    scatter = _scatter(trues, scanner)
    scatter *= scatter_and_trues * scanner.scatter_fraction / scatter.sum(dtype=np.float64)
    background = scatter + np.float32(prompts * scanner.randoms_fraction / trues.size)
    counts = rng.poisson(scale * trues + background).astype(np.int32)
    return Acquisition(counts, scale * attenuation, background)


def thin(counts: CountArray, fraction: float, rng: np.random.Generator) -> CountArray:
    """Keep every event with probability `fraction`: exact, as thinned Poisson counts are Poisson counts.

    Raises:
        SimulationError: `fraction` is not in [0, 1].

    Example:
        >>> counts = np.full(10_000, 100, np.int32)
        >>> float(thin(counts, 0.2, np.random.default_rng(0)).mean().round())
        20.0
    """
    if not 0.0 <= fraction <= 1.0:
        raise SimulationError(
            f"A fraction of {fraction} of the counts does not exist.", "Take one in [0, 1]."
        )
    return rng.binomial(counts, fraction).astype(np.int32)


def split_halves(counts: CountArray, rng: np.random.Generator) -> tuple[CountArray, CountArray]:
    """Deal the events out at random into two independent halves that sum to `counts`."""
    first = thin(counts, 0.5, rng)
    return first, counts - first


def _scatter(trues: FloatArray, scanner: Scanner) -> FloatArray:
    """Shape of the scatter: the trues, blurred so widely that no organ is left in them."""
    geometry = scanner.geometry
    tof_mm = geometry.tof.bin_mm if geometry.tof else np.inf
    return blur(trues, scanner.scatter_mm, (np.inf, np.inf, geometry.bin_mm, tof_mm, scanner.slice_mm))


def _sum_tof(sinogram: NDArray[Scalar]) -> NDArray[Scalar]:
    summed: NDArray[Scalar] = sinogram.sum(axis=3, keepdims=True, dtype=sinogram.dtype)
    return summed


def _average_slice_pairs(volume: FloatArray) -> FloatArray:
    averaged: FloatArray = volume.reshape(-1, 2, *volume.shape[1:]).mean(axis=1)
    return averaged
