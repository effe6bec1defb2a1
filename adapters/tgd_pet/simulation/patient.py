"""One simulated study: a patient drawn, scanned once, and reconstructed many times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from tgd_pet.simulation.acquisition import Acquisition, Scanner, acquire
from tgd_pet.simulation.anatomy import LABELS, BodySize
from tgd_kit.simulation.grid import Grid, blocks
from tgd_pet.simulation.osem import RECONSTRUCTIONS, reconstruct
from tgd_pet.simulation.phantom import Phantom, random_torso
from tgd_kit.simulation.projector import FloatArray, Geometry, SimulationError, TimeOfFlight
from tgdsurgery import TGDError

Feature = Literal["none", "bladder", "line"]
Mask = NDArray[np.bool_]

FORMAT = 3  # raise it whenever the same configuration and seed would give another study
_FEATURE_SUV = 60.0
_SECTION_MM = {"none": (-50.0, 50.0), "line": (-50.0, 50.0), "bladder": (225.0, 265.0)}
_LIVER_MARGIN_MM = 8.0
_LESION_MARGIN_MM = 12.0


class StudyError(TGDError):
    """A study file that is missing, damaged or not a study, or an image that a study does not have."""


@dataclass(frozen=True)
class StudyConfig:
    """How studies are drawn, scanned and reconstructed.

    Attributes:
        scanner: geometry and physics.
        slices: number of reconstructed slices.
        body_size: "low" (BMI below 23), "high" (above 28) or "mixed".
        feature: "bladder" moves the slab to the pelvis and fills the bladder with SUV 60, "line" adds a
            catheter line of SUV 60 outside the body; both are unlike anything in a study with "none", which
            shows the liver.
        prompts_per_slice: range of the expected prompts in an average slice of the full scan.
        fractions: shares of the counts of the low-count images.
        realisations: number of independent short scans; 0 for training studies.
        realisation_fraction: their share of the counts.

    Raises:
        SimulationError: slices or prompts are not positive, a fraction is not in (0, 1], or the realisations
            need more than all counts.
    """

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
                "A study needs slices, and a range of prompts above 0.", "Check both numbers."
            )
        if not all(0 < f <= 1 for f in (*self.fractions, self.realisation_fraction)) or not self.fractions:
            raise SimulationError("Fractions of the counts must lie in (0, 1].", "Check the fractions.")
        if self.realisations * self.realisation_fraction > 1 + 1e-9:
            raise SimulationError(
                f"{self.realisations} realisations of {self.realisation_fraction:.0%} exceed the scan.",
                "Take fewer or shorter ones.",
            )

    @classmethod
    def demo(cls) -> StudyConfig:
        """20 slices of 112 x 112 voxels of 4 mm; a study takes a few seconds."""
        geometry = Geometry(size=112, voxel_mm=4.0, angles=120, bins=112, bin_mm=4.0, tof=TimeOfFlight())
        return cls(Scanner(geometry, slice_mm=4.0), slices=20)

    @classmethod
    def tiny(cls) -> StudyConfig:
        """8 slices of 48 x 48 voxels of 9 mm, with two realisations: a fraction of a second, for tests."""
        geometry = Geometry(size=48, voxel_mm=9.0, angles=48, bins=48, bin_mm=9.0, tof=TimeOfFlight())
        return cls(Scanner(geometry, slice_mm=9.0), slices=8, prompts_per_slice=(2e5, 4e5), realisations=2)

    def to_json(self) -> str:
        """The configuration and the simulator's version as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> StudyConfig:
        """The inverse of `to_json`.

        Raises:
            StudyError: the text was written by another version of the simulator.
        """
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()
        }
        if fields.pop("format", None) != FORMAT:
            raise StudyError("The study was made by another version of the simulator.", "Simulate it again.")
        scanner = fields.pop("scanner")
        geometry = scanner.pop("geometry")
        tof = geometry.pop("tof")
        geometry = Geometry(**geometry, tof=TimeOfFlight(**tof) if tof else None)
        return cls(Scanner(geometry, **scanner), **fields)

    def hash(self) -> str:
        """Identifies the configuration and the simulator's version."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study:
    """A simulated patient; the attributes are described in `tgd_pet.simulation.files`."""

    true: FloatArray
    labels: NDArray[np.uint8]
    lesions: NDArray[np.float64]
    spacing: NDArray[np.float64]
    fractions: NDArray[np.float64]
    images: Mapping[str, FloatArray]
    config: StudyConfig
    seed: int

    def full(self, version: str) -> FloatArray:
        """The image from all counts, (z, y, x) in SUV; `version` is "v1" or "v2"."""
        return self._images(version, "full")[0]

    def low(self, version: str) -> list[FloatArray]:
        """The low-count images, one for each of `fractions`."""
        return self._images(version, "low")

    def realisations(self, version: str) -> list[FloatArray]:
        """The independent short scans; empty for a training study."""
        return self._images(version, "real")

    def halves(self, version: str) -> list[FloatArray]:
        """The two halves of the first low-count scan; empty for a training study."""
        return self._images(version, "half")

    def grid(self) -> Grid:
        """The voxel grid of all volumes."""
        return Grid(self.true.shape, tuple(self.spacing.tolist()))

    def body(self) -> Mask:
        """Everything inside the skin."""
        return (self.labels > 0) & (self.labels != LABELS["line"])

    def hot(self) -> Mask:
        """The bladder or the line of a study with such a feature; empty where there is none."""
        return self.labels == LABELS.get(self.config.feature, -1)

    def liver(self) -> Mask:
        """Liver at least 8 mm from its surface and 12 mm from any lesion; empty if it is not in the slab."""
        depth = distance_transform_edt(self.labels == LABELS["liver"], sampling=self.spacing)
        mask, grid = depth > _LIVER_MARGIN_MM, self.grid()
        for *centre, radius, _ in self.lesions:
            mask &= grid.distance(centre) > radius + _LESION_MARGIN_MM
        return mask

    def lesion_masks(self) -> list[Mask]:
        """For each lesion the voxels whose centre lies in it, and at least the one next to its own centre."""
        grid, masks = self.grid(), []
        for *centre, radius, _ in self.lesions:
            distance = grid.distance(centre)
            masks.append(distance <= max(radius, distance.min()))
        return masks

    def _images(self, version: str, kind: str) -> list[FloatArray]:
        if version not in RECONSTRUCTIONS:
            known = ", ".join(RECONSTRUCTIONS)
            raise StudyError(f"There is no reconstruction {version!r}.", f"Choose one of {known}.")
        return [image for name, image in self.images.items() if name.startswith(f"{version}_{kind}")]


def simulate_study(seed: int, config: StudyConfig) -> Study:
    """Draw, scan and reconstruct one patient; everything follows from the seed and the configuration.

    Example:
        >>> study = simulate_study(0, StudyConfig.tiny())
        >>> study.full("v2").shape, len(study.low("v2")), len(study.realisations("v2"))
        ((8, 48, 48), 2, 2)
    """
    rng = np.random.default_rng(seed)
    scanner = config.scanner
    phantom = random_torso(
        rng,
        scanner.phantom_grid(config.slices),
        section_mm=rng.uniform(*_SECTION_MM[config.feature]),
        body_size=config.body_size,
        bladder_suv=_FEATURE_SUV if config.feature == "bladder" else None,
        line_suv=_FEATURE_SUV if config.feature == "line" else None,
    )
    full = acquire(rng, phantom, scanner, prompts_per_slice=rng.uniform(*config.prompts_per_slice))
    scans = {"full": full, **_short_scans(full, config, rng)}
    images = {
        f"{version}_{name}": reconstruct(scan, scanner, settings)
        for name, scan in scans.items()
        for version, settings in RECONSTRUCTIONS.items()
    }
    return Study(
        true=blocks(phantom.activity).mean(axis=(1, 3, 5)),
        labels=phantom.labels[::2, ::2, ::2].copy(),  # labels have no mean: one voxel stands for its block
        lesions=_lesion_table(phantom),
        spacing=np.array(scanner.spacing_mm),
        fractions=np.array(config.fractions),
        images=images,
        config=config,
        seed=seed,
    )


def _short_scans(full: Acquisition, config: StudyConfig, rng: np.random.Generator) -> dict[str, Acquisition]:
    """What is thinned from the full scan; the order lets realisations be added without changing the rest."""
    low = [full.thinned(fraction, rng) for fraction in config.fractions]
    scans = {f"low_{i}": scan for i, scan in enumerate(low)}
    if config.realisations:
        scans |= {f"half_{h}": half for h, half in enumerate(low[0].halves(rng))}
        short = full.realisations(config.realisations, config.realisation_fraction, rng)
        scans |= {f"real_{r}": scan for r, scan in enumerate(short)}
    return scans


def _lesion_table(phantom: Phantom) -> NDArray[np.float64]:
    return np.array([[*lesion.centre_mm, lesion.radius_mm, lesion.suv] for lesion in phantom.lesions])
