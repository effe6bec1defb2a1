"""Random abdomens on a voxel grid: HU, tissues, and low-contrast tumours in liver and kidneys.

Axes are (z, y, x), as in `tgd_kit.simulation.torso`; positions are in mm from the centre of the slab.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tgd_ct.case import ORGAN, TASKS, TUMOUR, Task
from tgd_ct.simulation.anatomy import LABELS, TISSUES, abdomen_organs, liver_branches
from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.errors import SimulationError
from tgd_kit.simulation.grid import Grid, Vector, blocks
from tgd_kit.simulation.shapes import correlated_noise, painted
from tgd_kit.simulation.spheres import Room, filled
from tgd_kit.simulation.torso import BodySize

# What belongs to the organ of a task, as those who draw labels by hand do: vessels inside, and the renal pelvis.
TISSUES_OF: dict[Task, tuple[str, ...]] = {
    "liver": ("liver", "liver vessel"),
    "kidney": ("kidney", "renal pelvis"),
}
TUMOURS_PER_ORGAN = (1, 4)
TUMOUR_GAP_MM = 4.0  # between the surfaces of two tumours
TEXTURE = ((2.5, 5.0), (9.0, 5.0))  # correlation length (sigma) in mm, standard deviation in HU


@dataclass(frozen=True)
class Tumours:
    """How tumours are drawn.

    Attributes:
        diameter_mm: range; one that an organ has no room for is not drawn.
        contrast_hu: range of the difference from the organ.
        hyperdense: share of the tumours that are brighter than the organ; the others are darker.

    Raises:
        SimulationError: a range is empty or not positive, or the share is not in [0, 1].
    """

    diameter_mm: tuple[float, float] = (5.0, 25.0)
    contrast_hu: tuple[float, float] = (40.0, 80.0)
    hyperdense: float = 0.1

    def __post_init__(self) -> None:
        ranges = self.diameter_mm, self.contrast_hu
        if not (all(0 < low <= high < np.inf for low, high in ranges) and 0 <= self.hyperdense <= 1):
            raise SimulationError(
                "Tumours have no such size, contrast or share.", "Check the three settings."
            )


@dataclass(frozen=True)
class Tumour:
    """A sphere in an organ: centre (z, y, x) and radius in mm, HU above that of the organ."""

    task: Task
    centre_mm: Vector
    radius_mm: float
    contrast_hu: float


@dataclass(frozen=True)
class Phantom:
    """A voxelised patient; all arrays are `(z, y, x)`.

    Attributes:
        hu: what an ideal scanner would see.
        labels: label of each voxel's tissue (`tgd_ct.simulation.anatomy.LABELS`); a tumour keeps its organ's.
        tumours: in all organs.
        grid: of the arrays.
    """

    hu: FloatArray
    labels: NDArray[np.uint8]
    tumours: tuple[Tumour, ...]
    grid: Grid

    def target(self, task: Task) -> NDArray[np.uint8]:
        """The label map of a task on the grid that is twice as coarse.

        A voxel is organ if more than half of it is, and tumour if its centre is in one. Each tumour has at least the
        voxel next to its own centre.
        """
        coarse = self.grid.coarser()
        target: NDArray[np.uint8] = np.where(_most(_organ(self.labels, task)), np.uint8(ORGAN), np.uint8(0))
        for tumour in self.tumours:
            if tumour.task == task:
                distance = coarse.distance(tumour.centre_mm)
                target[distance <= max(tumour.radius_mm, distance.min())] = TUMOUR
        return target

    def body(self) -> Mask:
        """Everything inside the skin on the grid that is twice as coarse."""
        return _most(self.labels > 0)


def random_abdomen(
    rng: np.random.Generator,
    grid: Grid,
    *,
    section_mm: float = 45.0,
    body_size: BodySize = "mixed",
    tumours: Tumours | None = None,
) -> Phantom:
    """Draw a slab of a patient with tumours in liver and kidneys.

    Args:
        rng: the only source of randomness.
        grid: voxels of the slab; even numbers of them.
        section_mm: centre of the slab along the body; the liver reaches from about -90 to 100, the kidneys from 20
            to 135.
        body_size: "low" and "high" stand for a BMI below 23 and above 28, "mixed" draws one of them.
        tumours: how they are drawn; by default as `Tumours` says.

    Raises:
        SimulationError: the grid is odd, or the slab holds no liver or kidney with room for a tumour.

    Example:
        >>> phantom = random_abdomen(np.random.default_rng(0), Grid((16, 64, 64), (4.0, 6.0, 6.0)))
        >>> sorted({tumour.task for tumour in phantom.tumours})
        ['kidney', 'liver']
    """
    if any(n % 2 for n in grid.shape):
        raise SimulationError(
            f"A phantom cannot have the odd shape {grid.shape}.", "Use even numbers of voxels."
        )
    values = {name: float(rng.uniform(*hu)) for name, hu in TISSUES.items()}
    labels = painted(abdomen_organs(rng, body_size, section_mm), grid, LABELS)
    _paint_vessels(rng, labels, grid)
    hu = np.array(list(values.values()), np.float32)[labels]
    drawn: list[Tumour] = []
    for task in TASKS:
        drawn += _random_tumours(rng, grid, labels, task, tumours or Tumours())
    for tumour in drawn:
        box, share = filled(grid, tumour.centre_mm, tumour.radius_mm)
        hu[box] += share * (values[tumour.task] + tumour.contrast_hu - hu[box])
    hu += (labels > 0) * _texture(rng, grid)
    return Phantom(np.maximum(hu, TISSUES["air"][0]), labels, tuple(drawn), grid)


def _texture(rng: np.random.Generator, grid: Grid) -> FloatArray:
    """Smooth random variation in HU around 0."""
    texture = np.zeros(grid.shape, np.float32)
    for sigma_mm, deviation in TEXTURE:
        smooth = correlated_noise(rng, grid, sigma_mm)
        texture += np.float32(deviation) * (smooth / smooth.std())
    return texture


def _random_tumours(
    rng: np.random.Generator, grid: Grid, labels: NDArray[np.uint8], task: Task, settings: Tumours
) -> Iterator[Tumour]:
    """1 to 4 tumours, as far as there is room, each wholly inside the organ and apart from the others.

    The first one is in the upper half of the sizes that fit: every patient has a tumour that can be seen.
    """
    coarse = grid.coarser()  # eight times fewer distances to compute
    room = Room({task: np.asarray(blocks(_organ(labels, task)).all((1, 3, 5)))}, coarse)
    smallest, largest = (diameter / 2 for diameter in settings.diameter_mm)
    if not room.places(smallest):
        raise SimulationError(f"No tumour fits into the {task}.", "Give the slab more slices, or move it.")
    first, last = TUMOURS_PER_ORGAN
    for number in range(int(rng.integers(first, last + 1))):
        high = min(largest, room.deepest(task))
        if high <= smallest:
            return
        low = smallest if number else (smallest + high) / 2
        radius = rng.uniform(low, high)
        centre = room.centre(rng.choice(room.places(radius)[task]))
        sign = 1 if rng.random() < settings.hyperdense else -1
        yield Tumour(task, centre, radius, sign * rng.uniform(*settings.contrast_hu))
        room.take(centre, radius, TUMOUR_GAP_MM)


def _organ(labels: NDArray[np.uint8], task: Task) -> Mask:
    mask: Mask = np.isin(labels, [LABELS[name] for name in TISSUES_OF[task]])
    return mask


def _most(mask: Mask) -> Mask:
    """Blocks of which more than half is in the mask."""
    most: Mask = blocks(mask).mean(axis=(1, 3, 5)) > 0.5
    return most


def _paint_vessels(rng: np.random.Generator, labels: NDArray[np.uint8], grid: Grid) -> None:
    """A tree of vessels, inside the liver only."""
    voxels = np.nonzero(labels == LABELS["liver"])
    if not len(voxels[0]):
        return
    liver = np.stack([axis.ravel()[index] for axis, index in zip(grid.axes(), voxels, strict=True)], axis=1)
    for tube in liver_branches(rng, liver):
        box, inside = tube.voxels(grid)
        part = labels[box]
        part[inside & (part == LABELS["liver"])] = LABELS["liver vessel"]
