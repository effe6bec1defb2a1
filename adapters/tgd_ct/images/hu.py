"""HU as the quantity of CT files, and the values that they cannot have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import ImageError, printable
from tgd_kit.imaging.dicom.tags import numbers, optional, same
from tgd_kit.imaging.files import Quantity
from tgd_kit.imaging.slabs import slabs

MOST_AIR_HU = -500.0  # an image with air in it has values below; one that was clipped or shifted has none
SMALLEST_HU = -4096.0  # scanners fill the corners of a slice with values down to about -3024
LARGEST_HU = 40_000.0  # more than metal has on the extended scale


def hu_factor(slices: Sequence[Dataset]) -> float:
    """What to multiply rescaled pixels with to get HU: 1, after all slices were found to be in HU.

    Raises:
        ImageError: a slice states another unit, or no intercept; or they are scout views.
    """
    same(slices, "RescaleType")
    unit = str(optional(slices[0], "RescaleType") or "HU")
    if unit != "HU":
        raise ImageError(
            f"The series is in {printable(unit)} (RescaleType), not HU.", "Pass the images in HU."
        )
    for dataset in slices:
        numbers(dataset, "RescaleIntercept", 1)  # without it the pixels are usually HU + 1024
        if "LOCALIZER" in str(optional(dataset, "ImageType")).upper():
            raise ImageError("The series is a scout view (ImageType LOCALIZER).", "Pass the axial images.")
    return 1.0


def check_hu(path: Path, voxels: FloatArray) -> None:
    """Refuse values that are not HU of a whole field of view.

    Args:
        path: where they come from, for messages.
        voxels: finite values.

    Raises:
        ImageError: there is no air among them, or they are far too small or too large.
    """
    parts = [voxels[..., part] for part in slabs(voxels.shape)]
    low, high = float(min(part.min() for part in parts)), float(max(part.max() for part in parts))
    if low > MOST_AIR_HU:
        raise ImageError(
            f"The smallest value of {path} is {low:g}, and air has about -1000 HU.",
            "Pass the CT in HU with its whole field of view: not scaled, windowed, or stored with an offset of 1024.",
        )
    if low < SMALLEST_HU or high > LARGEST_HU:
        raise ImageError(
            f"The values of {path} are {low:g} to {high:g}, which are no HU.", "Pass the CT in HU."
        )


HU = Quantity("HU", "HU", modality="CT", factor=hu_factor, check=check_hu)
