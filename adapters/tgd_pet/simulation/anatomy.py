"""A torso from superellipsoids: the tissues, their FDG uptake and attenuation, and organs of random size.

Axes are (z, y, x): z grows towards the feet, y towards the back, x towards the patient's left; all in mm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tgd_kit.arrays import Mask
from tgd_kit.simulation.grid import Box, Grid, Vector

BodySize = Literal["low", "high", "mixed"]


@dataclass(frozen=True)
class Tissue:
    """Range of FDG uptake in SUV from which a patient's value is drawn, and attenuation in 1/mm."""

    suv: tuple[float, float]
    mu: float


TISSUES = {
    "air": Tissue((0.0, 0.0), 0.0),
    "fat": Tissue((0.15, 0.3), 0.0090),
    "soft tissue": Tissue((0.45, 0.85), 0.0096),
    "lung": Tissue((0.25, 0.55), 0.0029),
    "liver": Tissue((1.8, 2.6), 0.0100),
    "spleen": Tissue((1.5, 2.2), 0.0100),
    "stomach": Tissue((1.2, 2.2), 0.0097),
    "gastric content": Tissue((0.3, 0.6), 0.0096),
    "bowel": Tissue((0.8, 2.2), 0.0096),
    "kidney": Tissue((2.5, 4.5), 0.0099),
    "renal pelvis": Tissue((4.0, 10.0), 0.0097),
    "blood": Tissue((1.2, 1.9), 0.0100),
    "myocardium": Tissue((1.5, 6.0), 0.0100),
    "bone": Tissue((0.6, 1.0), 0.0125),
    "marrow": Tissue((1.0, 1.8), 0.0115),
    "bladder": Tissue((3.0, 8.0), 0.0097),
    "line": Tissue((60.0, 60.0), 0.0096),
}
LABELS = {name: label for label, name in enumerate(TISSUES)}


@dataclass(frozen=True)
class Organ:
    """A superellipsoid of one tissue.

    Attributes:
        tissue: key of `TISSUES`.
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


def torso_organs(rng: np.random.Generator, body_size: BodySize, section_mm: float) -> Iterator[Organ]:
    """Organs in painting order, each over the ones before.

    Args:
        rng: the only source of randomness.
        body_size: "low" and "high" stand for a BMI below 23 and above 28, "mixed" draws one of them.
        section_mm: where along the body the origin lies; the heart is near -130, the liver reaches from
            about -90 to 100, the bladder lies at 255.
    """
    u = rng.uniform
    thin = rng.random() < 0.5 if body_size == "mixed" else body_size == "low"
    width, depth, fat = (u(145, 165), u(92, 110), u(6, 12)) if thin else (u(168, 192), u(115, 138), u(18, 32))
    outer = Organ("fat", (0, 0, 0), (np.inf, depth, width), u(2.2, 2.7))
    inner = Organ("soft tissue", (0, 0, 0), (np.inf, depth - fat, width - fat), 2.3)
    yield outer
    yield inner
    size = inner.half_axes_mm[1], inner.half_axes_mm[2]
    for part in (_chest, _abdomen, _pelvis, _axis):
        for organ in part(rng, *size):
            z, y, x = organ.centre_mm
            yield replace(organ, centre_mm=(z - section_mm, y, x))


def _chest(rng: np.random.Generator, depth: float, width: float) -> Iterator[Organ]:
    u = rng.uniform
    for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False) + u(0, 0.3):
        ring = (depth - 5) * np.sin(angle), (width - 5) * np.cos(angle)
        tangent = np.arctan2((depth - 5) * np.cos(angle), -(width - 5) * np.sin(angle))
        yield Organ("bone", (-150, *ring), (220, 4, 10), turn=-tangent)
    for side in (-1, 1):
        centre = -180 + u(-20, 20), u(-8, 4), side * width * 0.49
        yield Organ("lung", centre, (u(150, 185), depth * u(0.68, 0.78), width * u(0.36, 0.41)), 2.3)
    heart = -130 + u(-15, 15), -depth * u(0.18, 0.32), width * u(0.12, 0.24)
    half_axes, wall, turn = np.array([u(38, 46), u(30, 38), u(38, 47)]), u(9, 13), u(0.2, 0.7)
    yield Organ("myocardium", heart, tuple(half_axes), turn=turn)
    yield Organ("blood", heart, tuple(half_axes - wall), turn=turn)


def _abdomen(rng: np.random.Generator, depth: float, width: float) -> Iterator[Organ]:
    u = rng.uniform
    for _ in range(14):
        centre = u(60, 230), u(-0.6, 0.1) * depth, u(-0.7, 0.7) * width
        yield Organ("bowel", centre, (u(10, 35), u(9, 15), u(15, 45)), turn=u(-1, 1))
    liver = u(-10, 15), u(-0.16, -0.06) * depth, -width * 0.46
    yield Organ("liver", liver, (u(75, 92), depth * u(0.64, 0.74), width * u(0.44, 0.5)), 2.4, u(-0.1, 0.2))
    yield Organ("liver", (-30, -depth * 0.42, -width * 0.02), (u(32, 42), depth * 0.32, width * u(0.3, 0.42)))
    spleen = u(-15, 10), depth * u(0.34, 0.44), width * 0.66
    yield Organ("spleen", spleen, (u(40, 58), depth * u(0.22, 0.3), width * u(0.16, 0.22)), turn=u(0.2, 0.7))
    stomach = u(-10, 20), -depth * u(0.28, 0.38), width * u(0.4, 0.48)
    half_axes = np.array([u(40, 58), depth * u(0.26, 0.34), width * u(0.2, 0.27)])
    turn = u(-0.4, 0.4)
    yield Organ("stomach", stomach, tuple(half_axes), turn=turn)
    yield Organ("gastric content", stomach, tuple(half_axes - 7), turn=turn)
    for side in (-1, 1):
        kidney = u(65, 90), depth * u(0.5, 0.56), side * width * u(0.4, 0.46)
        yield Organ("kidney", kidney, (u(48, 58), u(20, 26), u(24, 30)), turn=side * u(0.2, 0.6))
        pelvis = kidney[0], kidney[1] - 2, kidney[2] - side * 8
        yield Organ("renal pelvis", pelvis, (u(10, 18), u(6, 9), u(6, 9)))


def _pelvis(rng: np.random.Generator, depth: float, width: float) -> Iterator[Organ]:
    u = rng.uniform
    for side in (-1, 1):
        iliac_wing = 215, depth * 0.28, side * width * 0.6
        yield Organ("marrow", iliac_wing, (65, 13, width * 0.26), turn=-side * u(0.7, 1.0))
        yield Organ("marrow", (300, 0, side * width * 0.55), (35, 24, 24))
    yield Organ("bladder", (255, -depth * u(0.1, 0.3), u(-8, 8)), (u(26, 36), u(24, 32), u(30, 42)), 2.2)


def _axis(rng: np.random.Generator, depth: float, width: float) -> Iterator[Organ]:
    u = rng.uniform
    yield Organ("marrow", (0, depth * 0.62, u(-6, 6)), (np.inf, u(16, 20), u(19, 23)), 2.5)
    yield Organ("bone", (0, depth * 0.62 + 32, 0), (np.inf, 14, 5))
    yield Organ("blood", (0, depth * 0.36, u(0.05, 0.12) * width), (np.inf, u(9, 12), u(9, 12)))
