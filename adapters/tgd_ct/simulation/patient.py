"""A simulated patient: drawn, projected once, and reconstructed at every dose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tgd_ct.case import DOSES, TASKS, Case, Task
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.phantom import Phantom, random_abdomen
from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.simulation.grid import blocks

SECTION_MM = (35.0, 60.0)  # range of the slab's centre along the body: liver and kidneys are both in view


@dataclass(frozen=True)
class SimulatedPatient:
    """A simulated patient; the attributes are described in `tgd_ct.simulation.files`."""

    true: FloatArray
    body: Mask
    targets: Mapping[Task, NDArray[np.uint8]]
    tumours: NDArray[np.float64]
    images: Mapping[float, FloatArray]
    config: PatientConfig
    seed: int

    def case(self) -> Case:
        """What training and measuring work on."""
        name, spacing = f"patient_{self.seed:06d}", self.config.scanner.spacing_mm
        return Case(name, spacing, self.images, self.targets, self.body)


def simulate_patient(seed: int, config: PatientConfig) -> SimulatedPatient:
    """Draw, scan and reconstruct one patient; everything follows from the seed and the configuration.

    The doses see the same projection, each with noise of its own. Patients of two kernels have the same noise in
    their projections.

    Example:
        >>> patient = simulate_patient(0, PatientConfig.tiny())
        >>> patient.case().image(0.05).shape, int(patient.case().target("kidney").max())
        ((8, 48, 48), 2)
    """
    rng, scanner = np.random.default_rng(seed), config.scanner
    section = rng.uniform(*SECTION_MM)
    phantom = random_abdomen(
        rng, config.phantom_grid(), section_mm=section, body_size=config.body_size, tumours=config.tumours
    )
    lines = scanner.lines(blocks_along_z(phantom.hu), finer=True)
    return SimulatedPatient(
        true=blocks(phantom.hu).mean(axis=(1, 3, 5)),
        body=phantom.body(),
        targets={task: phantom.target(task) for task in TASKS},
        tumours=_tumour_table(phantom),
        images={dose: scanner.image(scanner.measured(rng, lines, dose)) for dose in DOSES},
        config=config,
        seed=seed,
    )


def blocks_along_z(volume: FloatArray) -> FloatArray:
    """Means of pairs of slices: what a detector row sees of a phantom that is twice as fine."""
    mean: FloatArray = volume.reshape(-1, 2, *volume.shape[1:]).mean(axis=1)
    return mean


def _tumour_table(phantom: Phantom) -> NDArray[np.float64]:
    rows = [
        [TASKS.index(tumour.task), *tumour.centre_mm, tumour.radius_mm, tumour.contrast_hu]
        for tumour in phantom.tumours
    ]
    return np.array(rows)
