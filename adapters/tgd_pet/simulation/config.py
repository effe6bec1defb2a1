"""How patients are drawn, scanned and reconstructed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tgd_kit.errors import SimulationError
from tgd_kit.simulation.patients import Configured
from tgd_kit.simulation.torso import BodySize
from tgd_pet.simulation.acquisition import Scanner
from tgd_pet.simulation.geometry import Geometry, TimeOfFlight

Feature = Literal["none", "bladder", "line"]

FORMAT = 3  # raise it whenever the same configuration and seed would give another patient


@dataclass(frozen=True)
class PatientConfig(Configured):
    """How patients are drawn, scanned and reconstructed.

    Attributes:
        scanner: geometry and physics.
        slices: number of reconstructed slices.
        body_size: "low" (BMI below 23), "high" (above 28) or "mixed".
        feature: "bladder" moves the slab to the pelvis and fills the bladder with SUV 60, "line" adds a
            catheter line of SUV 60 outside the body; both are unlike anything in a patient with "none", whose
            slab shows the liver.
        prompts_per_slice: range of the expected prompts in an average slice of the full scan.
        fractions: shares of the counts of the low-count images.
        realisations: number of independent short scans; 0 for training patients.
        realisation_fraction: their share of the counts.

    Raises:
        SimulationError: slices or prompts are not positive, a fraction is not in (0, 1], or the realisations
            need more than all counts.
    """

    FORMAT: ClassVar[int] = FORMAT

    scanner: Scanner
    slices: int
    body_size: BodySize = "mixed"
    feature: Feature = "none"
    prompts_per_slice: tuple[float, float] = (1.5e6, 2.5e6)
    fractions: tuple[float, ...] = (0.1, 0.2)
    realisations: int = 0
    realisation_fraction: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.prompts_per_slice
        if self.slices < 1 or not 0 < low <= high:
            raise SimulationError(
                "A patient needs slices, and a range of prompts above 0.", "Check both numbers."
            )
        if not all(0 < f <= 1 for f in (*self.fractions, self.realisation_fraction)) or not self.fractions:
            raise SimulationError("Fractions of the counts must lie in (0, 1].", "Check the fractions.")
        if self.realisations * self.realisation_fraction > 1 + 1e-9:
            raise SimulationError(
                f"{self.realisations} realisations of {self.realisation_fraction:.0%} exceed the scan.",
                "Take fewer or shorter ones.",
            )

    @classmethod
    def demo(cls) -> PatientConfig:
        """20 slices of 112 x 112 voxels of 4 mm; a patient takes a few seconds to simulate."""
        geometry = Geometry(size=112, voxel_mm=4.0, angles=120, bins=112, bin_mm=4.0, tof=TimeOfFlight())
        return cls(Scanner(geometry, slice_mm=4.0), slices=20)

    @classmethod
    def tiny(cls) -> PatientConfig:
        """8 slices of 48 x 48 voxels of 9 mm, with two realisations: a fraction of a second, for tests."""
        geometry = Geometry(size=48, voxel_mm=9.0, angles=48, bins=48, bin_mm=9.0, tof=TimeOfFlight())
        return cls(Scanner(geometry, slice_mm=9.0), slices=8, prompts_per_slice=(2e5, 4e5), realisations=2)
