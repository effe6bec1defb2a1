"""Filtered back-projection of parallel beams: a windowed ramp filter, and linear interpolation between the bins."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import fft, sparse

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import SimulationError
from tgd_kit.simulation.projector import ParallelBeam

Kernel = Literal["standard", "sharp"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


def window(kernel: Kernel, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the ramp is multiplied with; 1 at frequency 0.

    "standard" is a cosine, which ends at the Nyquist frequency; "sharp" leaves the ramp as it is (Ramachandran and
    Lakshminarayanan, PNAS 1971).

    Args:
        kernel: its name.
        frequency: in cycles per bin, from -0.5 to 0.5.
    """
    return np.cos(np.pi * frequency) if kernel == "standard" else np.ones_like(frequency)


def ramp(bins: int) -> NDArray[np.float64]:
    """The ramp filter's response at the frequencies of `scipy.fft.rfftfreq`, in cycles per bin.

    It is the transform of the ramp's kernel in space, cut to the detector: sampling the ramp in frequency would
    shift the whole image (Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, section 3.3.3).

    Args:
        bins: length of the filter, even.
    """
    place = fft.fftfreq(bins, 1 / bins)
    odd = place % 2 == 1
    kernel = np.zeros(bins)
    kernel[odd] = -1 / (np.pi * place[odd]) ** 2
    kernel[0] = 0.25
    response: NDArray[np.float64] = fft.rfft(kernel).real
    return response


class FilteredBackProjection:
    """The reconstruction of line integrals; linear in them.

    Args:
        geometry: the image grid and the lines; one part to a line. Its subsets only share out the angles.
        kernel: of the reconstruction.

    Raises:
        SimulationError: there is no such kernel, or the geometry divides lines into parts.

    Example:
        >>> geometry = ParallelBeam(size=8, voxel_mm=4.0, angles=12, bins=8, bin_mm=4.0)
        >>> FilteredBackProjection(geometry, "standard")(np.zeros((1, 12, 8, 3), np.float32)).shape
        (3, 8, 8)
    """

    def __init__(self, geometry: ParallelBeam, kernel: Kernel) -> None:
        if kernel not in KERNELS:
            raise SimulationError(f"There is no kernel {kernel!r}.", f"Choose one of {', '.join(KERNELS)}.")
        if geometry.parts != 1:
            raise SimulationError("Back-projection takes whole lines.", "Use a geometry of one part.")
        self.geometry = geometry
        self._length = 2 * fft.next_fast_len(geometry.bins, real=True)
        filtering = ramp(self._length) * window(kernel, fft.rfftfreq(self._length))
        self._filter = (filtering / geometry.bin_mm).astype(np.float32)

    def __call__(self, lines: FloatArray) -> FloatArray:
        """The image (z, y, x), per mm, of line integrals (subset, angle, bin, z)."""
        matrices = _matrices(self.geometry)
        parts = [self.back(matrix, part) for matrix, part in zip(matrices, lines, strict=True)]
        image: FloatArray = np.sum(parts, axis=0)
        return image

    def back(self, interpolation: sparse.csr_array, lines: FloatArray) -> FloatArray:
        """What one subset adds to the image: (angle, bin, z) to (z, y, x).

        Args:
            interpolation: `interpolation_matrix` of the subset.
            lines: its line integrals.
        """
        geometry = self.geometry
        spectrum = fft.rfft(lines, self._length, axis=1) * self._filter[:, None]
        filtered = fft.irfft(spectrum, self._length, axis=1)[:, : geometry.bins]
        columns = interpolation @ filtered.reshape(-1, lines.shape[-1]).astype(np.float32)
        image = columns.T.reshape(-1, geometry.size, geometry.size) * np.float32(np.pi / geometry.angles)
        return np.ascontiguousarray(image, dtype=np.float32)


def interpolation_matrix(geometry: ParallelBeam, subset: int) -> sparse.csr_array:
    """Rows (y, x), columns (angle, bin): each pixel takes from every angle the value at its place on the detector.

    Beyond the detector's ends it takes 0.
    """
    size, bins = geometry.size, geometry.bins
    centred = (np.arange(size) - (size - 1) / 2) * geometry.voxel_mm
    angles = geometry.subset_angles[subset]
    across = centred[:, None] * np.cos(angles)
    place = (across + (centred[:, None] * np.sin(angles))[:, None]).reshape(size**2, -1) / geometry.bin_mm
    place += (bins - 1) / 2
    # Two entries for each pixel and angle, so that no sorting is needed; those beyond the ends are zeros.
    index = np.floor(place).astype(np.int32)[..., None] + np.arange(2, dtype=np.int32)
    share = (1.0 - np.abs(place[..., None] - index)).astype(np.float32)
    share[(index < 0) | (index >= bins)] = 0
    columns = np.clip(index, 0, bins - 1) + bins * np.arange(len(angles), dtype=np.int32)[:, None]
    ends = np.arange(0, columns.size + 1, 2 * len(angles), dtype=np.int32)
    return sparse.csr_array((share.ravel(), columns.ravel(), ends), shape=(size**2, len(angles) * bins))


@lru_cache(maxsize=4)
def _matrices(geometry: ParallelBeam) -> tuple[sparse.csr_array, ...]:
    return tuple(interpolation_matrix(geometry, subset) for subset in range(geometry.subsets))
