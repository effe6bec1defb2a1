"""Spheres inside organs: where they fit, and their paint.

Axes are (z, y, x); positions are in mm from the centre of the volume.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.simulation.grid import Box, Grid, Vector


class Room:
    """Where a sphere fits: wholly inside one of its hosts, and apart from the spheres that are there.

    Args:
        hosts: name to mask.
        grid: of the masks; places are the centres of its voxels.
    """

    def __init__(self, hosts: Mapping[str, Mask], grid: Grid) -> None:
        self._grid = grid
        self._depth = {host: _depth_inside(mask, grid) for host, mask in hosts.items()}

    def places(self, radius_mm: float) -> dict[str, NDArray[np.intp]]:
        """Flat indices of the voxels where the centre of such a sphere may lie, of each host that has any."""
        found = {host: np.flatnonzero(depth > radius_mm) for host, depth in self._depth.items()}
        return {host: places for host, places in found.items() if len(places)}

    def deepest(self, host: str) -> float:
        """The radius in mm below which a sphere fits into the host."""
        return float(self._depth[host].max())

    def centre(self, place: np.intp) -> Vector:
        """The place in mm."""
        voxel = np.unravel_index(place, self._grid.shape)
        z, y, x = (float(axis.ravel()[v]) for axis, v in zip(self._grid.axes(), voxel, strict=True))
        return z, y, x

    def take(self, centre_mm: Vector, radius_mm: float, gap_mm: float) -> None:
        """Keep later spheres so far from the surface of this one."""
        clearance = self._grid.distance(centre_mm) - radius_mm - gap_mm
        self._depth = {host: np.minimum(depth, clearance) for host, depth in self._depth.items()}


def filled(grid: Grid, centre_mm: Vector, radius_mm: float) -> tuple[Box, FloatArray]:
    """A box that contains a sphere, and which part of each voxel the sphere fills.

    Edge voxels are filled in part, so that small spheres keep their volume.
    """
    edge = float(np.mean(grid.spacing_mm))
    box = grid.box(centre_mm, [radius_mm + edge] * 3)
    return box, np.clip((radius_mm - grid.distance(centre_mm, box)) / edge + 0.5, 0.0, 1.0)


def _depth_inside(mask: Mask, grid: Grid) -> FloatArray:
    """A lower bound in mm of each voxel's depth below the mask's surface; the grid's ends are surface too."""
    to_surface: NDArray[np.float64] = distance_transform_edt(np.pad(mask, 1), sampling=grid.spacing_mm)
    depth: FloatArray = (to_surface[1:-1, 1:-1, 1:-1] - np.linalg.norm(grid.spacing_mm) / 2).astype(
        np.float32
    )
    return depth
