"""Low dose inserted into a CT of normal dose: the noise that is missing, reconstructed, is added to the image.

The image is projected only to learn how many photons each ray would have. It is not reconstructed again, so it keeps
its resolution. The noise has the texture of this package's kernels, not of the scanner's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tgd_ct.scanner import AIR_HU, WATER, Scanner, check_dose, to_attenuation
from tgd_kit.arrays import FloatArray
from tgd_kit.errors import ImageError
from tgd_kit.imaging.slabs import scratch
from tgd_kit.simulation.fbp import FilteredBackProjection, interpolation_matrix
from tgd_kit.simulation.grid import Vector
from tgd_kit.simulation.projector import subset_matrix

SLICES_AT_ONCE = 64  # share the making of the matrices
LARGEST_STRETCH = 1e-3  # of a pixel that counts as square
PADDING_HU = -1024.0  # what lies below was never measured: corners that the scanner filled in


def insert_low_dose(
    volume: FloatArray,
    spacing_mm: Vector,
    dose: float,
    *,
    photons: float,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> FloatArray:
    """The image that a scan of lower dose would have given.

    Each ray's variance at the lower dose, less the one that it has at the normal dose already, becomes normal noise
    of the line integrals; its filtered back-projection is added (Zabic et al., Med Phys 2013, do the same with a
    scanner's raw data).

    Args:
        volume: (z, y, x) in HU, at the normal dose, with the whole field of view; voxels below -1024 HU stay as they
            are.
        spacing_mm: voxel size (z, y, x); pixels are square.
        dose: share of the normal dose.
        photons: that enter each ray at the normal dose, a ray being as wide as a pixel and as thick as a slice.
        seed: of the noise.
        progress: called with the number of slices done.

    Returns:
        (z, y, x) in HU.

    Raises:
        ImageError: pixels are not square.
        SimulationError: the dose is not in (0, 1], or the photons are not positive.

    Example:
        >>> image = np.full((2, 20, 24), -1000, np.float32)
        >>> image[:, 5:15, 5:19] = 60
        >>> low = insert_low_dose(image, (5.0, 8.0, 8.0), 0.1, photons=1e4)
        >>> low.shape, bool(abs((low - image).mean()) < 5)
        ((2, 20, 24), True)
    """
    check_dose(dose)
    depth, height, width = volume.shape
    slice_mm, voxel_mm, across = spacing_mm
    if abs(across / voxel_mm - 1) > LARGEST_STRETCH:
        raise ImageError(f"Pixels are {voxel_mm:g} x {across:g} mm.", "Resample the image to square pixels.")
    scanner = Scanner.of_grid(max(height, width), voxel_mm, slice_mm, photons=photons)
    rng = np.random.default_rng(seed)
    result: FloatArray = scratch((width, height, depth)).transpose()
    top, left = (scanner.geometry.size - height) // 2, (scanner.geometry.size - width) // 2
    for start in range(0, depth, SLICES_AT_ONCE):
        part = slice(start, min(start + SLICES_AT_ONCE, depth))
        square = np.full(
            (part.stop - start, scanner.geometry.size, scanner.geometry.size), AIR_HU, np.float32
        )
        inside = slice(None), slice(top, top + height), slice(left, left + width)
        square[inside] = volume[part]
        noise = _missing_noise(rng, square, scanner, dose)[inside]
        result[part] = np.where(volume[part] < PADDING_HU, volume[part], volume[part] + noise)
        if progress:
            progress(part.stop)
    return result


def _missing_noise(rng: np.random.Generator, volume: FloatArray, scanner: Scanner, dose: float) -> FloatArray:
    """In HU; the matrices of a few views at a time, as those of all would not fit into memory."""
    geometry, reconstruction = scanner.geometry, FilteredBackProjection(scanner.geometry, scanner.kernel)
    columns = np.ascontiguousarray(to_attenuation(volume).reshape(len(volume), -1).T)
    noise = np.zeros_like(volume)
    for subset in range(geometry.subsets):
        lines = (subset_matrix(geometry, subset) @ columns).reshape(-1, geometry.bins, len(volume))
        missing = np.maximum(scanner.variance(lines, dose) - scanner.variance(lines, 1.0), 0)
        drawn = np.sqrt(missing).astype(np.float32) * rng.standard_normal(lines.shape, dtype=np.float32)
        noise += reconstruction.back(interpolation_matrix(geometry, subset), drawn)
    noise *= np.float32(1000 / WATER)
    return noise
