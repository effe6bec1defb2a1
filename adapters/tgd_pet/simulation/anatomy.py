"""The tissues of a torso: their FDG uptake and their attenuation."""

from __future__ import annotations

from dataclasses import dataclass


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
