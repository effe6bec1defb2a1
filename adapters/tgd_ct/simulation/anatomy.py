"""The tissues of an abdomen in HU, and what a CT shows of it beside the organs of the torso.

Axes are (z, y, x): z grows towards the feet, y towards the back, x towards the patient's left; all in mm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tgd_kit.simulation.shapes import Organ, Tube
from tgd_kit.simulation.torso import BodySize, torso_organs

# Range of HU from which a patient's value is drawn: contrast-enhanced, portal-venous phase, about 120 kV.
TISSUES = {
    "air": (-1000.0, -1000.0),
    "fat": (-115.0, -95.0),
    "soft tissue": (50.0, 70.0),
    "lung": (-880.0, -800.0),
    "liver": (95.0, 125.0),
    "liver vessel": (150.0, 180.0),
    "spleen": (110.0, 140.0),
    "pancreas": (80.0, 110.0),
    "gall bladder": (0.0, 15.0),
    "stomach": (60.0, 90.0),
    "gastric content": (0.0, 30.0),
    "bowel": (60.0, 90.0),
    "bowel content": (0.0, 30.0),
    "gas": (-980.0, -920.0),
    "kidney": (150.0, 190.0),
    "renal pelvis": (0.0, 30.0),
    "blood": (140.0, 170.0),
    "myocardium": (90.0, 120.0),
    "bone": (450.0, 700.0),
    "marrow": (150.0, 220.0),
    "spinal canal": (20.0, 40.0),
    "bladder": (0.0, 15.0),
}
LABELS = {name: label for label, name in enumerate(TISSUES)}
WALL_MM = 2.5  # of the bowel
CORTEX_MM = 2.0  # of a vertebra
LIVER_BRANCHES = 10
LIVER_VESSEL_MM = (4.5, 3.0, 1.5)  # radius at the hilum, half-way and at the end of a branch

Points = NDArray[np.float64]


def abdomen_organs(rng: np.random.Generator, body_size: BodySize, section_mm: float) -> Iterator[Organ]:
    """Organs in painting order, each over the ones before; the first one is the whole body.

    Args:
        rng: the only source of randomness.
        body_size: as for `tgd_kit.simulation.torso.torso_organs`, whose organs are among these.
        section_mm: where along the body the origin lies.
    """
    torso = torso_organs(rng, body_size, section_mm)
    outer, inner = next(torso), next(torso)
    yield outer
    yield inner
    size = inner.half_axes_mm[1], inner.half_axes_mm[2]
    yield from _around_organs(rng, *size, section_mm)
    for organ in torso:
        yield from _with_content(rng, organ)
    yield from _beside_organs(rng, *size, section_mm)


def _around_organs(
    rng: np.random.Generator, depth: float, width: float, section_mm: float
) -> Iterator[Organ]:
    """The fat inside the wall of the belly, muscles along the spine, and loops of bowel."""
    u = rng.uniform
    wall = u(10, 16)
    yield Organ("fat", (0, -0.1 * depth, 0), (np.inf, 0.9 * depth - wall, width - wall), 2.3)
    for side in (-1, 1):
        yield Organ("soft tissue", (0, depth * 0.52, side * u(33, 38)), (np.inf, u(15, 20), u(13, 17)))
        yield Organ("soft tissue", (0, depth * 0.84, side * u(28, 34)), (np.inf, u(14, 18), u(24, 30)), 2.4)
    for _ in range(16):
        centre = u(10, 110) - section_mm, u(-0.7, 0.15) * depth, u(-0.35, 0.75) * width
        loop = Organ("bowel", centre, (u(12, 25), u(10, 16), u(14, 32)), turn=u(-1, 1))
        yield from _with_content(rng, loop)


def _with_content(rng: np.random.Generator, organ: Organ) -> Iterator[Organ]:
    """An organ of the torso, and what fills or surrounds it."""
    z, y, x = organ.centre_mm
    if organ.tissue == "marrow" and np.isinf(organ.half_axes_mm[0]):  # a vertebra
        yield _grown(organ, "bone", CORTEX_MM)
        yield organ
        yield Organ("bone", (z, y + 24, x), (np.inf, 12, 24), 2.5)
        yield Organ("spinal canal", (z, y + 25, x), (np.inf, 8, 10))
        return
    yield organ
    if organ.tissue == "bowel":
        content = "gas" if rng.random() < 0.2 else "bowel content"
        yield _grown(organ, content, -WALL_MM)
    elif organ.tissue == "gastric content":
        a, b, c = organ.half_axes_mm
        yield Organ("gas", (z, y - 0.55 * b, x), (0.6 * a, 0.4 * b, 0.6 * c))


def _beside_organs(
    rng: np.random.Generator, depth: float, width: float, section_mm: float
) -> Iterator[Organ]:
    """Pancreas, gall bladder and the inferior vena cava."""
    u = rng.uniform
    ends = np.array([[60, 0.1, -0.1], [42, 0.0, 0.12], [25, 0.14, 0.4]]) * (1, depth, width)
    for start, end in pairwise(ends - (section_mm, 0, 0)):
        half_axes = np.array([u(11, 15), u(9, 12), 0.6 * np.hypot(*(end - start)[1:])])
        z, y, x = (start + end) / 2
        turn = float(np.arctan2(*(end - start)[1:]))
        yield Organ("pancreas", (z, y, x), tuple(half_axes), turn=turn)
    gall_bladder = u(50, 70) - section_mm, -depth * u(0.3, 0.4), -width * u(0.2, 0.3)
    yield Organ("gall bladder", gall_bladder, (u(20, 28), u(12, 16), u(10, 14)), turn=u(-0.5, 0.5))
    yield Organ("blood", (0, depth * u(0.3, 0.36), -width * u(0.1, 0.15)), (np.inf, u(9, 12), u(10, 14)))


def _grown(organ: Organ, tissue: str, by_mm: float) -> Organ:
    a, b, c = (max(half + by_mm, 1.0) for half in organ.half_axes_mm)
    return replace(organ, tissue=tissue, half_axes_mm=(a, b, c))


def liver_branches(rng: np.random.Generator, liver: Points) -> Iterator[Tube]:
    """A tree of vessels: all branches start at the hilum, bend once, and end somewhere in the liver.

    Args:
        rng: the only source of randomness.
        liver: (n, 3), where liver is, in mm.
    """
    low, high = liver.min(axis=0), liver.max(axis=0)
    wanted = low + (high - low) * (0.5, 0.7, 0.75)
    hilum = liver[np.square(liver - wanted).sum(axis=1).argmin()]
    for _ in range(LIVER_BRANCHES):
        end = liver[rng.integers(len(liver))]
        bend = (hilum + end) / 2 + rng.normal(0, 0.12 * np.linalg.norm(end - hilum), 3)
        points = [(float(z), float(y), float(x)) for z, y, x in (hilum, bend, end)]
        for (a, first), (b, last) in pairwise(zip(points, LIVER_VESSEL_MM, strict=True)):
            yield Tube(a, b, (first, last))
