"""A simulated patient: drawn, scanned once, and reconstructed many times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.errors import PatientError
from tgd_kit.simulation.grid import Grid, blocks
from tgd_pet.simulation.acquisition import Acquisition, acquire
from tgd_pet.simulation.anatomy import LABELS
from tgd_pet.simulation.config import PatientConfig
from tgd_pet.simulation.osem import RECONSTRUCTIONS, reconstruct
from tgd_pet.simulation.phantom import Phantom, random_torso

FEATURE_SUV = 60.0
SECTION_MM = {  # range of the slab's centre along the body
    "none": (-50.0, 50.0),
    "line": (-50.0, 50.0),
    "bladder": (225.0, 265.0),
}
SMALLEST_LIVER_DEPTH_MM = 8.0
SMALLEST_LESION_GAP_MM = 12.0


@dataclass(frozen=True)
class SimulatedPatient:
    """A simulated patient; the attributes are described in `tgd_pet.simulation.files`."""

    true: FloatArray
    labels: NDArray[np.uint8]
    lesions: NDArray[np.float64]
    spacing: NDArray[np.float64]
    fractions: NDArray[np.float64]
    images: Mapping[str, FloatArray]
    config: PatientConfig
    seed: int

    def full(self, version: str) -> FloatArray:
        """The image from all counts, (z, y, x) in SUV; `version` is "v1" or "v2"."""
        return self._images(version, "full")[0]

    def low(self, version: str) -> list[FloatArray]:
        """The low-count images, one for each of `fractions`."""
        return self._images(version, "low")

    def realisations(self, version: str) -> list[FloatArray]:
        """The independent short scans; empty for a training patient."""
        return self._images(version, "real")

    def halves(self, version: str) -> list[FloatArray]:
        """The two halves of the first low-count scan; empty for a training patient."""
        return self._images(version, "half")

    def grid(self) -> Grid:
        """The voxel grid of all volumes."""
        return Grid(self.true.shape, tuple(self.spacing.tolist()))

    def body(self) -> Mask:
        """Everything inside the skin."""
        inside: Mask = (self.labels > 0) & (self.labels != LABELS["line"])
        return inside

    def hot(self) -> Mask:
        """The bladder or the line of a patient with such a feature; empty for other patients."""
        hot: Mask = self.labels == LABELS.get(self.config.feature, -1)
        return hot

    def liver(self) -> Mask:
        """Liver at least 8 mm from its surface and 12 mm from any lesion; empty if it is not in the slab."""
        depth = distance_transform_edt(self.labels == LABELS["liver"], sampling=self.spacing)
        grid = self.grid()
        mask: Mask = depth > SMALLEST_LIVER_DEPTH_MM
        for *centre, radius, _ in self.lesions:
            mask &= grid.distance(centre) > radius + SMALLEST_LESION_GAP_MM
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
            raise PatientError(f"There is no reconstruction {version!r}.", f"Choose one of {known}.")
        return [image for name, image in self.images.items() if name.startswith(f"{version}_{kind}")]


def simulate_patient(seed: int, config: PatientConfig) -> SimulatedPatient:
    """Draw, scan and reconstruct one patient; everything follows from the seed and the configuration.

    Example:
        >>> patient = simulate_patient(0, PatientConfig.tiny())
        >>> patient.full("v2").shape, len(patient.low("v2")), len(patient.realisations("v2"))
        ((8, 48, 48), 2, 2)
    """
    rng = np.random.default_rng(seed)
    scanner = config.scanner
    phantom = random_torso(
        rng,
        scanner.phantom_grid(config.slices),
        section_mm=rng.uniform(*SECTION_MM[config.feature]),
        body_size=config.body_size,
        bladder_suv=FEATURE_SUV if config.feature == "bladder" else None,
        line_suv=FEATURE_SUV if config.feature == "line" else None,
    )
    full = acquire(rng, phantom, scanner, prompts_per_slice=rng.uniform(*config.prompts_per_slice))
    scans = {"full": full, **_short_scans(full, config, rng)}
    images = {
        f"{version}_{name}": reconstruct(scan, scanner, settings)
        for name, scan in scans.items()
        for version, settings in RECONSTRUCTIONS.items()
    }
    return SimulatedPatient(
        true=blocks(phantom.activity).mean(axis=(1, 3, 5)),
        labels=phantom.labels[::2, ::2, ::2].copy(),  # labels have no mean: one voxel stands for its block
        lesions=_lesion_table(phantom),
        spacing=np.array(scanner.spacing_mm),
        fractions=np.array(config.fractions),
        images=images,
        config=config,
        seed=seed,
    )


def _short_scans(
    full: Acquisition, config: PatientConfig, rng: np.random.Generator
) -> dict[str, Acquisition]:
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
