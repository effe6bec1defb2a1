"""SUV by body weight as the quantity of PET files, and the values that it cannot have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import ImageError
from tgd_kit.imaging.files import Quantity
from tgd_kit.imaging.slabs import slabs
from tgd_pet.images.dose import suv_factor

LARGEST_MEAN_SUV = 50.0  # that of a body is about 1; Bq/mL are thousands of times as large
LARGEST_NEGATIVE_SHARE = 0.5  # of the sum of positive values: noise around zero stays below, HU do not


def check_suv(path: Path, voxels: FloatArray) -> None:
    """Refuse values that SUV cannot have.

    Args:
        path: where they come from, for messages.
        voxels: finite values.

    Raises:
        ImageError: they are largely negative, or far too large.
    """
    above = below = 0.0
    for part in slabs(voxels.shape):
        values = voxels[..., part]
        above += values[values > 0].sum(dtype=np.float64)
        below -= values[values < 0].sum(dtype=np.float64)
    if below > LARGEST_NEGATIVE_SHARE * above:
        raise ImageError(f"The values of {path} are largely negative.", "Pass a PET image in SUV (g/mL).")
    if above > LARGEST_MEAN_SUV * voxels.size:
        raise ImageError(
            f"The mean of {path} is {above / voxels.size:.3g}, too much for SUV.",
            "Divide Bq/mL by the dose per gram of body weight, or pass the DICOM series as the scanner wrote it.",
        )


SUV = Quantity("SUV", "g/mL", modality="PT", factor=suv_factor, check=check_suv)
