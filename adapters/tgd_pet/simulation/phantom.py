"""Random patients on a voxel grid: activity in SUV (g/mL), attenuation at 511 keV (1/mm), hot lesions.

Axes are (z, y, x), as in `tgd_kit.simulation.torso`; positions are in mm from the centre of the slab.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import SimulationError
from tgd_kit.simulation.grid import Grid, Vector, blocks
from tgd_kit.simulation.shapes import correlated_noise, painted
from tgd_kit.simulation.spheres import Room, filled
from tgd_kit.simulation.torso import BodySize, torso_organs
from tgd_pet.simulation.anatomy import LABELS, TISSUES

LESION_RADIUS_MM = (4.0, 12.5)
LESION_HOSTS = ("liver", "lung", "soft tissue")
_LESION_GAP_MM = 12.0  # between the surfaces of two lesions
_TEXTURE = 0.04  # relative standard deviation of the uptake inside an organ ...
_TEXTURE_MM = 12.0  # ... and its correlation length (sigma)


@dataclass(frozen=True)
class Lesion:
    """A hot sphere: centre (z, y, x) and radius in mm, uptake in SUV, and the tissue it lies in."""

    centre_mm: Vector
    radius_mm: float
    suv: float
    host: str


@dataclass(frozen=True)
class Phantom:
    """A voxelised patient; all arrays are `(z, y, x)`.

    Attributes:
        activity: SUV in g/mL.
        mu: attenuation at 511 keV in 1/mm.
        labels: index into `TISSUES`; a lesion keeps its host's label.
        lesions: the hot lesions.
        spacing_mm: voxel size (z, y, x).
    """

    activity: FloatArray
    mu: FloatArray
    labels: NDArray[np.uint8]
    lesions: tuple[Lesion, ...]
    spacing_mm: Vector


def random_torso(
    rng: np.random.Generator,
    grid: Grid,
    *,
    section_mm: float = 0.0,
    body_size: BodySize = "mixed",
    bladder_suv: float | None = None,
    line_suv: float | None = None,
) -> Phantom:
    """Draw a slab of a patient with hot lesions.

    Args:
        rng: the only source of randomness.
        grid: voxels of the slab; even numbers of them.
        section_mm: centre of the slab along the body; the heart is near -130, the liver reaches from
            about -90 to 100, the bladder lies at 250.
        body_size: "low" and "high" stand for a BMI below 23 and above 28, "mixed" draws one of them.
        bladder_suv: uptake of the bladder instead of an ordinary one.
        line_suv: if given, a thin, hot catheter line of this uptake passes in front of the body.

    Raises:
        SimulationError: the grid is odd, or the slab holds no tissue that can carry a lesion.

    Example:
        >>> phantom = random_torso(np.random.default_rng(0), Grid((8, 64, 64), (8.0, 7.0, 7.0)))
        >>> phantom.activity.shape, len(phantom.lesions) >= 4
        ((8, 64, 64), True)
    """
    if any(n % 2 for n in grid.shape):
        raise SimulationError(
            f"A phantom cannot have the odd shape {grid.shape}.", "Use even numbers of voxels."
        )
    uptake = {name: float(rng.uniform(*tissue.suv)) for name, tissue in TISSUES.items()}
    uptake["bladder"] = uptake["bladder"] if bladder_suv is None else bladder_suv
    labels = painted(torso_organs(rng, body_size, section_mm), grid, LABELS)
    activity = np.array(list(uptake.values()), np.float32)[labels] * _texture(rng, grid)
    lesions = _random_lesions(rng, grid, labels, activity)
    if not lesions:
        raise SimulationError("No lesion fits into this slab.", "Give it more or smaller voxels, or move it.")
    for lesion in lesions:
        box, share = filled(grid, lesion.centre_mm, lesion.radius_mm)
        activity[box] += share * (lesion.suv - activity[box])
    if line_suv is not None:
        _add_line(rng, activity, labels, grid, line_suv)
    mu = np.array([tissue.mu for tissue in TISSUES.values()], np.float32)[labels]
    return Phantom(activity, mu, labels, tuple(lesions), grid.spacing_mm)


def _texture(rng: np.random.Generator, grid: Grid) -> FloatArray:
    """Smooth random variation of the uptake around 1."""
    smooth = correlated_noise(rng, grid, _TEXTURE_MM)
    texture: FloatArray = np.clip(1.0 + _TEXTURE * smooth / smooth.std(), 0.8, 1.2).astype(np.float32)
    return texture


def _random_lesions(
    rng: np.random.Generator, grid: Grid, labels: NDArray[np.uint8], activity: FloatArray
) -> list[Lesion]:
    """Up to 5 to 10 lesions, each wholly inside its host and apart from the others; two in a liver with room."""
    coarse = grid.coarser()  # eight times fewer distances to compute
    whole = {host: np.asarray(blocks(labels == LABELS[host]).all((1, 3, 5))) for host in LESION_HOSTS}
    room = Room(whole, coarse)
    lesions: list[Lesion] = []
    for i in range(int(rng.integers(5, 11))):
        radius = rng.uniform(*LESION_RADIUS_MM)
        places = room.places(radius)
        if not places:
            continue
        host = "liver" if i < 2 and "liver" in places else str(rng.choice(list(places)))
        place = rng.choice(places[host])
        z, y, x = np.unravel_index(place, coarse.shape)
        background = float(blocks(activity)[z, :, y, :, x].mean())
        suv = max(background * rng.uniform(2.0, 5.0), rng.uniform(2.5, 9.0))
        centre = room.centre(place)
        lesions.append(Lesion(centre, radius, suv, host))
        room.take(centre, radius, _LESION_GAP_MM)
    return lesions


def _add_line(
    rng: np.random.Generator, activity: FloatArray, labels: NDArray[np.uint8], grid: Grid, suv: float
) -> None:
    """Paint a tube of 6 mm diameter that slants along z in the air in front of the body."""
    z, y, x = grid.axes()
    skin = y[0, np.flatnonzero((labels > 0).any(axis=(0, 2)))[0], 0]
    front, side, slant = skin - rng.uniform(12, 22), rng.uniform(-60, 60), rng.uniform(0.2, 0.5)
    edge = grid.spacing_mm[2]
    share = np.clip((3.0 - np.hypot(y - front, x - side - slant * z)) / edge + 0.5, 0.0, 1.0)
    activity += (share * suv).astype(np.float32)
    labels[share >= 0.5] = LABELS["line"]
