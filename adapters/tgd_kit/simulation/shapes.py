"""Superellipsoids painted onto a voxel grid, and smooth random texture.

Axes are (z, y, x): z grows towards the feet, y towards the back, x towards the patient's left; all in mm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.simulation.grid import Box, Grid, Vector


@dataclass(frozen=True)
class Organ:
    """A superellipsoid of one tissue.

    Attributes:
        tissue: its name.
        centre_mm: (z, y, x).
        half_axes_mm: (z, y, x); an infinite one makes a cylinder.
        exponent: 2 is an ellipsoid, more is boxier.
        turn: rotation in the (y, x) plane in radians.
    """

    tissue: str
    centre_mm: Vector
    half_axes_mm: Vector
    exponent: float = 2.0
    turn: float = 0.0

    def voxels(self, grid: Grid) -> tuple[Box, Mask]:
        """A box that contains the organ, and which of its voxels the organ fills."""
        in_plane = (
            float(np.hypot(*self.half_axes_mm[1:])) if self.exponent > 2 else max(self.half_axes_mm[1:])
        )
        box = grid.box(self.centre_mm, (self.half_axes_mm[0], in_plane, in_plane))
        z, y, x = grid.axes(box, origin=self.centre_mm)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        local = z, y * cos - x * sin, y * sin + x * cos
        radius = sum(np.abs(u / a) ** self.exponent for u, a in zip(local, self.half_axes_mm, strict=True))
        return box, radius <= 1.0


@dataclass(frozen=True)
class Tube:
    """A straight tube with round ends.

    Attributes:
        start_mm: (z, y, x).
        end_mm: (z, y, x).
        radii_mm: at the start and at the end.
    """

    start_mm: Vector
    end_mm: Vector
    radii_mm: tuple[float, float]

    def voxels(self, grid: Grid) -> tuple[Box, Mask]:
        """A box that contains the tube, and which of its voxels the tube fills."""
        start, end = np.array(self.start_mm), np.array(self.end_mm)
        box = grid.box(((start + end) / 2).tolist(), (np.abs(end - start) / 2 + max(self.radii_mm)).tolist())
        axes, along = grid.axes(box, origin=self.start_mm), end - start
        steps = sum(axis * part for axis, part in zip(axes, along, strict=True))
        place = np.clip(steps / max(float(along @ along), 1e-6), 0.0, 1.0)
        across = sum(np.square(axis - place * part) for axis, part in zip(axes, along, strict=True))
        first, last = self.radii_mm
        inside: Mask = across <= np.square(first + place * (last - first))
        return box, inside


def painted(organs: Iterable[Organ], grid: Grid, labels: Mapping[str, int]) -> NDArray[np.uint8]:
    """The label of each voxel: organs are painted in their order, each over the ones before.

    Args:
        organs: the first one is the whole body; no other reaches into the air, which has the label 0.
        grid: the voxels.
        labels: tissue to label.
    """
    volume = np.zeros(grid.shape, np.uint8)
    for number, organ in enumerate(organs):
        box, inside = organ.voxels(grid)
        if number:
            inside &= volume[box] > 0
        volume[box][inside] = labels[organ.tissue]
    return volume


def correlated_noise(rng: np.random.Generator, grid: Grid, sigma_mm: float) -> FloatArray:
    """White noise after a Gaussian of this width: zero mean, and a spread that depends on the grid."""
    noise = rng.standard_normal(grid.shape, dtype=np.float32)
    smooth: FloatArray = gaussian_filter(noise, [sigma_mm / d for d in grid.spacing_mm], truncate=3.0)
    return smooth
