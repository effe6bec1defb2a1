"""How patients are drawn, scanned and reconstructed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tgd_ct.scanner import Scanner
from tgd_ct.simulation.phantom import Tumours
from tgd_kit.errors import SimulationError
from tgd_kit.simulation.grid import Grid
from tgd_kit.simulation.patients import Configured
from tgd_kit.simulation.torso import BodySize


@dataclass(frozen=True)
class PatientConfig(Configured):
    """How patients are drawn, scanned and reconstructed.

    Attributes:
        scanner: geometry, kernel, and photons at the normal dose.
        slices: number of reconstructed slices; their middle lies where both liver and kidneys are in view.
        body_size: "low" (BMI below 23), "high" (above 28) or "mixed".
        tumours: how they are drawn.

    Raises:
        SimulationError: there are no slices.
    """

    FORMAT: ClassVar[int] = 3

    scanner: Scanner
    slices: int
    body_size: BodySize = "mixed"
    tumours: Tumours = field(default_factory=Tumours)

    def __post_init__(self) -> None:
        if self.slices < 1:
            raise SimulationError("A patient needs slices.", "Ask for one or more.")

    @classmethod
    def quick(cls) -> PatientConfig:
        """16 slices of 128 x 128 voxels of 3 x 3 x 4 mm; a patient takes a few seconds to simulate."""
        return cls(Scanner.of_grid(128, 3.0, 4.0), slices=16)

    @classmethod
    def full(cls) -> PatientConfig:
        """32 slices of 256 x 256 voxels of 1.5 x 1.5 x 3 mm, as TOD-Net's images have; a minute and 3 GB of memory."""
        return cls(Scanner.of_grid(256, 1.5, 3.0), slices=32)

    @classmethod
    def tiny(cls) -> PatientConfig:
        """8 slices of 48 x 48 voxels of 8 mm: a fraction of a second, for tests."""
        return cls(Scanner.of_grid(48, 8.0, 8.0), slices=8)

    def phantom_grid(self) -> Grid:
        """The grid that patients are drawn on: twice as fine as that of the images."""
        size, (dz, dy, dx) = 2 * self.scanner.geometry.size, self.scanner.spacing_mm
        return Grid((2 * self.slices, size, size), (dz / 2, dy / 2, dx / 2))
