"""A CT scanner: HU and attenuation, line integrals, the noise of photons and electronics, reconstruction.

One X-ray energy; no scatter and no beam hardening, which scanners correct for. Arrays of lines are
(subset, angle, bin, z).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import poisson

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import SimulationError
from tgd_kit.simulation.fbp import FilteredBackProjection, Kernel
from tgd_kit.simulation.projector import ParallelBeam, Projector

WATER = 0.0193  # attenuation in 1/mm at 70 keV: 0.1929 cm2/g by NIST's XCOM, about the mean energy at 120 kV
AIR_HU = -1000.0
ELECTRONIC_VARIANCE = 10.0  # of a count, whatever the dose; about 11 in Ma et al., Med Phys 2012
FEWEST = 1.0  # counts: a line that sees less is taken to see as many, as nothing has no logarithm
VIEWS_AT_ONCE = 8  # their matrices are made one after the other, and need little memory at once
PHOTONS = 3e5  # of a ray at the normal dose: 13 HU of noise in the liver of an average patient


def to_attenuation(hu: FloatArray) -> FloatArray:
    """Attenuation in 1/mm of values in HU; nothing attenuates less than nothing."""
    attenuation: FloatArray = np.maximum(hu * np.float32(WATER / 1000) + np.float32(WATER), 0)
    return attenuation


def to_hu(attenuation: FloatArray) -> FloatArray:
    """HU of an attenuation in 1/mm."""
    hu: FloatArray = (attenuation / np.float32(WATER) - 1) * np.float32(1000)
    return hu


def variance_of_log(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of the logarithm of counts, of which so many are expected.

    To first order it is (n + electronics) / n^2. With few counts it is less, as none is taken as fewer than
    `FEWEST`; so it is computed from the distribution, and interpolated between 1e-3 and 1e3 counts.

    Example:
        >>> variance_of_log(np.array([1e4, 10.0, 1e-3])).round(4).tolist()
        [0.0001, 0.3423, 0.3522]
    """
    logarithms, table = _few_counts()
    expected = np.maximum(expected, np.exp(logarithms[0]))
    many = (expected + ELECTRONIC_VARIANCE) / np.square(expected)
    few = np.interp(np.log(expected), logarithms, table)
    found: NDArray[np.float64] = np.where(expected < np.exp(logarithms[-1]), few, many)
    return found


@lru_cache(maxsize=1)
def _few_counts() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of expected counts, and the variance of the logarithm of what is counted."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    logarithms, found = np.linspace(np.log(1e-3), np.log(1e3), 120), []
    for expected in np.exp(logarithms):
        counts = np.arange(int(expected + 10 * np.sqrt(expected)) + 20)
        chance = poisson.pmf(counts, expected)[:, None] * weights / weights.sum()
        values = np.log(np.maximum(counts[:, None] + np.sqrt(ELECTRONIC_VARIANCE) * nodes, FEWEST))
        found.append((chance * values**2).sum() - (chance * values).sum() ** 2)
    return logarithms, np.array(found)


def check_dose(dose: float) -> None:
    """Refuse what is no share of the normal dose.

    Raises:
        SimulationError: it is not in (0, 1].
    """
    if not 0 < dose <= 1:
        raise SimulationError(
            f"A dose of {dose:g} of the normal one does not exist.", "Take a share in (0, 1], such as 0.05."
        )


@dataclass(frozen=True)
class Scanner:
    """A scanner of parallel beams.

    Attributes:
        geometry: grid of the image, and lines.
        slice_mm: slice thickness.
        kernel: of the reconstruction.
        photons: that enter each ray at the normal dose, as wide as a bin and as thick as a slice.

    Raises:
        SimulationError: the slice thickness or the photons are not positive and finite.
    """

    geometry: ParallelBeam
    slice_mm: float
    kernel: Kernel = "standard"
    photons: float = PHOTONS

    def __post_init__(self) -> None:
        if not (np.isfinite([self.slice_mm, self.photons]).all() and min(self.slice_mm, self.photons) > 0):
            raise SimulationError("Slices and photons must be above zero.", "Check both numbers.")

    @classmethod
    def of_grid(
        cls,
        size: int,
        voxel_mm: float,
        slice_mm: float,
        *,
        kernel: Kernel = "standard",
        photons: float = PHOTONS,
    ) -> Scanner:
        """A scanner for square slices of `size` voxels: rays as wide as a voxel that see all of the square.

        The views are 3/2 times the voxels along a side, about the pi/2 that sampling asks for, in subsets of
        `VIEWS_AT_ONCE`.
        """
        bins, subsets = int(np.ceil(np.sqrt(2) * size)), int(np.ceil(1.5 * size / VIEWS_AT_ONCE))
        geometry = ParallelBeam(size, voxel_mm, subsets * VIEWS_AT_ONCE, bins, voxel_mm, subsets)
        return cls(geometry, slice_mm, kernel, photons)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) of the reconstructed image."""
        return self.slice_mm, self.geometry.voxel_mm, self.geometry.voxel_mm

    def lines(self, hu: FloatArray, *, finer: bool = False) -> FloatArray:
        """Line integrals of an image (z, y, x) in HU.

        Args:
            hu: the image.
            finer: it has pixels half as large, and each ray is a mean of two.
        """
        geometry = self.geometry.finer() if finer else self.geometry
        lines: FloatArray = Projector(geometry).forward(to_attenuation(hu))[..., 0, :]
        return lines

    def measured(self, rng: np.random.Generator, lines: FloatArray, dose: float) -> FloatArray:
        """The line integrals that counts tell of: Poisson noise of the photons, normal noise of the electronics.

        Raises:
            SimulationError: the dose is not in (0, 1].
        """
        check_dose(dose)
        entering = dose * self.photons
        counts = rng.poisson(entering * np.exp(-lines.astype(np.float64))).astype(np.float32)
        counts += np.float32(np.sqrt(ELECTRONIC_VARIANCE)) * rng.standard_normal(
            lines.shape, dtype=np.float32
        )
        found: FloatArray = (np.log(entering) - np.log(np.maximum(counts, FEWEST))).astype(np.float32)
        return found

    def variance(self, lines: FloatArray, dose: float) -> NDArray[np.float64]:
        """Variance of `measured`.

        Raises:
            SimulationError: the dose is not in (0, 1].
        """
        check_dose(dose)
        return variance_of_log(dose * self.photons * np.exp(-lines.astype(np.float64)))

    def image(self, lines: FloatArray) -> FloatArray:
        """The image (z, y, x) in HU of line integrals."""
        return to_hu(self.attenuation(lines))

    def attenuation(self, lines: FloatArray) -> FloatArray:
        """The image (z, y, x) in 1/mm of line integrals; linear in them."""
        return FilteredBackProjection(self.geometry, self.kernel)(lines)
