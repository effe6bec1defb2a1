"""Parallel-beam projector: Joseph line integrals as sparse matrices.

Every slice is seen by the same lines: one sparse matrix per subset projects the whole volume as one
sparse-times-dense product, and its transpose is the exact adjoint. Images are `(z, y, x)` on a square grid
centred on the scanner axis; lengths are in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import SimulationError

if TYPE_CHECKING:
    from typing_extensions import Self

FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
_GOLDEN_RATIO = (np.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class ParallelBeam:
    """Image grid and lines of a parallel-beam scanner; hashable, so that its matrices are cached.

    A subclass may divide each line into parts, such as bins of the time of flight: `parts` and `shares`.

    Attributes:
        size: voxels along x and along y.
        voxel_mm: their side.
        angles: projection angles, evenly over 180 degrees.
        bins: radial bins per angle, centred on the axis.
        bin_mm: width of a radial bin.
        subsets: number of ordered subsets; divides `angles`.
        rays_per_bin: parallel rays averaged into one radial bin.

    Raises:
        SimulationError: a length or number is not positive, or `subsets` does not divide `angles`.
    """

    size: int
    voxel_mm: float
    angles: int
    bins: int
    bin_mm: float
    subsets: int = 1
    rays_per_bin: int = 1

    def __post_init__(self) -> None:
        sizes = self.size, self.voxel_mm, self.angles, self.bins, self.bin_mm, self.subsets, self.rays_per_bin
        if min(sizes) <= 0:
            raise SimulationError(
                "A scanner geometry has a size or number that is not positive.", "Check it."
            )
        if self.angles % self.subsets:
            raise SimulationError(
                f"{self.angles} angles cannot be divided into {self.subsets} equal subsets.",
                "Choose a number of angles that is a multiple of the number of subsets.",
            )

    @property
    def parts(self) -> int:
        """Into how many parts each line is divided."""
        return 1

    def shares(self, angle: float) -> NDArray[np.float64]:
        """Share of each pixel that each part of its lines at this angle records: (part, pixel); they sum to 1."""
        return np.ones((self.parts, self.size**2))

    @property
    def sinogram_shape(self) -> tuple[int, int, int, int]:
        """`(subset, angle in subset, radial bin, part)`; sinograms have one more axis, the slice."""
        return self.subsets, self.angles // self.subsets, self.bins, self.parts

    @property
    def subset_angles(self) -> NDArray[np.float64]:
        """Angles in radians, `(subset, angle in subset)`.

        Consecutive subsets are a golden-section step apart, so that each brings directions far from the ones
        just used (Kohler, IEEE NSS 2004).
        """
        order = np.argsort(np.argsort(np.arange(self.subsets) * _GOLDEN_RATIO % 1.0))
        steps: NDArray[np.int64] = order[:, None] + np.arange(0, self.angles, self.subsets)
        return np.multiply(np.pi / self.angles, steps, dtype=np.float64)

    def finer(self) -> Self:
        """The same lines seen from a grid twice as fine, two rays for each ray."""
        return replace(
            self, size=2 * self.size, voxel_mm=self.voxel_mm / 2, rays_per_bin=2 * self.rays_per_bin
        )


class Projector:
    """Forward and back projection of stacks of slices.

    Args:
        geometry: the scanner; its matrices are built once per process and shared by all projectors.

    Example:
        >>> geometry = ParallelBeam(size=8, voxel_mm=4.0, angles=4, bins=8, bin_mm=4.0, subsets=2)
        >>> Projector(geometry).forward(np.ones((3, 8, 8), np.float32)).shape
        (2, 2, 8, 1, 3)
    """

    def __init__(self, geometry: ParallelBeam) -> None:
        self.geometry = geometry
        self._matrices = system_matrices(geometry)

    def forward(self, image: FloatArray) -> FloatArray:
        """Line integrals of `image` (z, y, x) in its unit times mm: (subset, angle, bin, part, z)."""
        return np.stack([self.forward_subset(image, s) for s in range(self.geometry.subsets)])

    def forward_subset(self, image: FloatArray, subset: int) -> FloatArray:
        """The part of `forward` that one subset sees: (angle, bin, part, z)."""
        columns = np.ascontiguousarray(image.reshape(len(image), -1).T, dtype=np.float32)
        sums: FloatArray = self._matrices[subset] @ columns
        return sums.reshape(*self.geometry.sinogram_shape[1:], len(image))

    def back_subset(self, data: FloatArray, subset: int) -> FloatArray:
        """The adjoint of `forward_subset`: (angle, bin, part, z) to (z, y, x)."""
        slices, size = data.shape[-1], self.geometry.size
        columns = self._matrices[subset].T @ data.reshape(-1, slices).astype(np.float32, copy=False)
        return np.ascontiguousarray(columns.T).reshape(slices, size, size)


def blur(values: FloatArray, fwhm_mm: float, spacing_mm: Sequence[float]) -> FloatArray:
    """Gaussian blur of the axes given a spacing; an infinite spacing leaves its axis alone.

    Mirrored at the borders, so the operator keeps sums and is its own adjoint.
    """
    if fwhm_mm == 0:
        return values
    sigma = [fwhm_mm / FWHM_PER_SIGMA / spacing for spacing in spacing_mm]
    blurred: FloatArray = gaussian_filter(values, sigma, mode="reflect", truncate=3.5)
    return blurred


@lru_cache(maxsize=8)
def system_matrices(geometry: ParallelBeam) -> tuple[sparse.csr_array, ...]:
    """The system matrix of each subset: rows (angle, radial bin, part), columns (y, x), values in mm."""
    return tuple(subset_matrix(geometry, subset) for subset in range(geometry.subsets))


def subset_matrix(geometry: ParallelBeam, subset: int) -> sparse.csr_array:
    """The system matrix of one subset, made anew: for geometries whose matrices do not fit into memory together."""
    angles = geometry.subset_angles[subset]
    rows, columns, values = [], [], []
    for a, angle in enumerate(angles):
        radial_bin, pixel, length = _joseph(geometry, angle)
        for part, share in enumerate(geometry.shares(angle)):
            seen = np.flatnonzero(share[pixel])
            rows.append(((a * geometry.bins + radial_bin[seen]) * geometry.parts + part).astype(np.int32))
            columns.append(pixel[seen].astype(np.int32))
            values.append((length[seen] * share[pixel[seen]]).astype(np.float32))
    shape = (len(angles) * geometry.bins * geometry.parts, geometry.size**2)
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.coo_array(entries, shape=shape).tocsr()


def _joseph(
    geometry: ParallelBeam, angle: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Joseph's line integrals (IEEE Trans Med Imaging 1982) at one angle.

    The ray `x cos + y sin = s` is followed row by row, or column by column if it is closer to the x axis,
    and the image is interpolated linearly between the two voxels on either side.

    Returns:
        radial bin, pixel `y * size + x` and length in mm of every entry.
    """
    size, centre = geometry.size, (geometry.size - 1) / 2
    rays = geometry.bins * geometry.rays_per_bin
    offsets = (np.arange(rays) - (rays - 1) / 2) * geometry.bin_mm / geometry.rays_per_bin
    steps = np.arange(size)
    cos, sin = np.cos(angle), np.sin(angle)
    by_rows = abs(cos) >= abs(sin)
    major, minor = (sin, cos) if by_rows else (cos, sin)
    crossing = (
        offsets[:, None] - (steps - centre) * geometry.voxel_mm * major
    ) / minor / geometry.voxel_mm + centre
    length = geometry.voxel_mm / abs(minor) / geometry.rays_per_bin

    entries = []
    for neighbour in (0, 1):
        index = np.floor(crossing).astype(np.intp) + neighbour
        weight = 1.0 - np.abs(crossing - index)
        ray, step = np.nonzero((index >= 0) & (index < size) & (weight > 0))
        across = index[ray, step]
        pixel = step * size + across if by_rows else across * size + step
        entries.append((ray // geometry.rays_per_bin, pixel, weight[ray, step] * length))
    radial_bin, pixel, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    return radial_bin, pixel, values
