"""The voxel grid that phantoms and images share: positions in mm, seen from the centre of the volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tgd_kit.arrays import FloatArray

Vector = tuple[float, float, float]
Box = tuple[slice, slice, slice]

Scalar = TypeVar("Scalar", bound=np.generic)

EVERYWHERE: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class Grid:
    """A voxel grid centred on the origin.

    Attributes:
        shape: number of voxels along (z, y, x).
        spacing_mm: voxel size along (z, y, x).
    """

    shape: tuple[int, int, int]
    spacing_mm: Vector

    def coarser(self) -> Grid:
        """The same extent with voxels twice as large; the shape must be even."""
        z, y, x = (n // 2 for n in self.shape)
        dz, dy, dx = (2 * d for d in self.spacing_mm)
        return Grid((z, y, x), (dz, dy, dx))

    def axes(
        self, box: Box = EVERYWHERE, *, origin: Sequence[float] = (0.0, 0.0, 0.0)
    ) -> list[NDArray[np.float64]]:
        """Voxel centres of a box in mm from `origin` along z, y and x, shaped so that they broadcast.

        >>> [axis.ravel().tolist() for axis in Grid((1, 2, 3), (4.0, 4.0, 4.0)).axes()]
        [[0.0], [-2.0, 2.0], [-4.0, 0.0, 4.0]]
        """
        along = zip(self.shape, self.spacing_mm, box, origin, strict=True)
        centres = [((np.arange(n) - (n - 1) / 2) * spacing - o)[part] for n, spacing, part, o in along]
        return list(np.meshgrid(*centres, indexing="ij", sparse=True))

    def box(self, centre: Sequence[float], reach: Sequence[float]) -> Box:
        """The voxels within `reach` mm of `centre` along each axis; an infinite reach takes all."""
        parts = []
        for n, spacing, c, r in zip(self.shape, self.spacing_mm, centre, reach, strict=True):
            low, high = np.clip([(c - r) / spacing, (c + r) / spacing], -n, n) + (n - 1) / 2
            parts.append(slice(max(0, int(np.ceil(low))), max(0, int(np.floor(high)) + 1)))
        return parts[0], parts[1], parts[2]

    def distance(self, point: Sequence[float], box: Box = EVERYWHERE) -> FloatArray:
        """Distance in mm of every voxel of a box from a point (z, y, x)."""
        z, y, x = self.axes(box, origin=point)
        return np.sqrt(z**2 + y**2 + x**2).astype(np.float32)


def blocks(volume: NDArray[Scalar]) -> NDArray[Scalar]:
    """A volume of even shape as blocks of 2 x 2 x 2 voxels: the axes 1, 3 and 5 run inside a block."""
    z, y, x = (n // 2 for n in volume.shape)
    return volume.reshape(z, 2, y, 2, x, 2)
