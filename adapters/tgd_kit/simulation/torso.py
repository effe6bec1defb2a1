"""A torso from superellipsoids: organs of random size, of one patient after the other.

Axes are (z, y, x): z grows towards the feet, y towards the back, x towards the patient's left; all in mm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from tgd_kit.simulation.shapes import Organ

BodySize = Literal["low", "high", "mixed"]


def torso_organs(rng: np.random.Generator, body_size: BodySize, section_mm: float) -> Iterator[Organ]:
    """Organs in painting order, each over the ones before; the first one is the whole body.

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
