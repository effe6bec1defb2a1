"""The lines of response of a PET scanner, divided by time of flight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from tgd_kit.errors import SimulationError
from tgd_kit.simulation.projector import FWHM_PER_SIGMA, ParallelBeam

SMALLEST_SHARE = 1e-3  # of a voxel's emissions in one TOF bin; the matrix does not store less


@dataclass(frozen=True)
class TimeOfFlight:
    """Time-of-flight binning along the line of response.

    Attributes:
        bins: number of bins, centred on the middle of the line; the outermost two are open-ended, so that
            the sum over the bins is exactly the line integral without time of flight.
        bin_mm: width of a bin.
        fwhm_mm: spatial resolution, `c * t / 2`; 75 mm is a coincidence resolution of 500 ps.
    """

    bins: int = 9
    bin_mm: float = 50.0
    fwhm_mm: float = 75.0


@dataclass(frozen=True)
class Geometry(ParallelBeam):
    """Image grid and lines of response; the data are rebinned, so every slice has the same lines.

    Attributes:
        subsets: of OSEM.
        tof: time-of-flight binning, or None. Its bins are the parts of a line.

    Raises:
        SimulationError: a length or number is not positive, or `subsets` does not divide `angles`.
    """

    subsets: int = 12
    tof: TimeOfFlight | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tof and min(self.tof.bins, self.tof.bin_mm, self.tof.fwhm_mm) <= 0:
            raise SimulationError(
                "A time-of-flight binning has a size or number that is not positive.", "Check it."
            )

    def without_tof(self) -> Geometry:
        """The same geometry without time of flight."""
        return replace(self, tof=None)

    @property
    def parts(self) -> int:
        """The number of TOF bins; one without time of flight."""
        return self.tof.bins if self.tof else 1

    def shares(self, angle: float) -> NDArray[np.float64]:
        """Share of each pixel's emissions that each TOF bin records, (TOF bin, pixel); they sum to 1."""
        if self.tof is None:
            return super().shares(angle)
        tof = self.tof
        position = (np.arange(self.size) - (self.size - 1) / 2) * self.voxel_mm
        along_ray = (position[:, None] * np.cos(angle) - position[None, :] * np.sin(angle)).ravel()
        inner_edges = (np.arange(1, tof.bins) - tof.bins / 2) * tof.bin_mm
        below = ndtr((inner_edges[:, None] - along_ray) * FWHM_PER_SIGMA / tof.fwhm_mm)
        shares = np.diff(below, axis=0, prepend=0.0, append=1.0)
        shares[shares < SMALLEST_SHARE] = 0.0
        found: NDArray[np.float64] = shares / shares.sum(axis=0)
        return found
