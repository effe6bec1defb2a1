"""A series of DICOM PET slices as one image in SUV: nothing about grid or dose is guessed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from tgd_kit.imaging.dicom.collect import Files, choose, headers, opened, parsed
from tgd_kit.errors import ImageError
from tgd_kit.imaging.slabs import Voxels, scratch
from tgd_pet.images.suv import suv_factor
from tgd_kit.imaging.dicom.tags import numbers, optional

SMALLEST_STEP = 0.01  # mm
LARGEST_OFFSET = 0.1  # of a step: positions are often written rounded to 0.1 mm
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class DicomSource:
    """Where an image came from, and how to get back to its units.

    Args:
        slices: all tags but the pixels of every slice, in the order of the voxels' last axis.
        suv_factor: SUV in g/mL per unit of the series (1 where it is in GML).
    """

    slices: tuple[Dataset, ...]
    suv_factor: float


def read_series(
    path: Path, *, series: str | None = None
) -> tuple[Voxels, npt.NDArray[np.float64], DicomSource]:
    """Read one PET series of a folder (with subfolders) or a zip, whose members stay in memory.

    Files that are not DICOM (a licence, a DICOMDIR) are passed over, unless their name says that they are.
    Pixels are decoded one slice at a time.

    Args:
        series: number, description or UID of the series, where there are several.

    Returns:
        SUV by body weight in g/mL, (column, row, slice); the affine from those indices to RAS+ millimetres;
        and where they came from.

    Raises:
        ImageError: no series, several, another modality, damaged or missing slices, or missing tags.
    """
    with warnings.catch_warnings(), opened(path) as files:
        # What is needed is checked; a clinical header has faults elsewhere.
        warnings.filterwarnings("ignore", "Invalid value for VR")
        slices = _sorted(choose(headers(files), path, series))
        factor = suv_factor(slices)
        return _suv(slices, files, factor), _affine(slices), DicomSource(tuple(slices), factor)


def _suv(slices: Sequence[Dataset], files: Files, factor: float) -> Voxels:
    volume = scratch((slices[0].Columns, slices[0].Rows, len(slices)))
    for index, header in enumerate(slices):
        name = header.filename
        volume[..., index] = _activity(parsed(name, files[name]())) * np.float32(factor)
    return volume


def _sorted(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The slices along the normal of their plane; refuses a series that is not one regular stack."""
    if len(datasets) < 2:
        raise ImageError(
            "The series has only one slice.", "Pass the whole series: the network needs neighbouring slices."
        )
    for tag, count in (("Rows", 1), ("Columns", 1), ("PixelSpacing", 2), ("ImageOrientationPatient", 6)):
        values = np.array([numbers(dataset, tag, count) for dataset in datasets])
        if not np.allclose(values, values[0], atol=1e-4):
            raise ImageError(f"{tag} differs between the slices.", "Pass one series with one grid.")
    normal = np.cross(*_axes(datasets[0]))
    if not np.isclose(np.linalg.norm(normal), 1.0, atol=1e-3):
        raise ImageError(
            "ImageOrientationPatient is not two axes at right angles.", "Export the series again."
        )
    ordered = sorted(datasets, key=lambda dataset: _position(dataset) @ normal)
    _check_regular(np.array([_position(dataset) for dataset in ordered]), normal)
    return ordered


def _check_regular(positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> None:
    steps = np.diff(positions @ normal)
    if steps.min() < SMALLEST_STEP:
        raise ImageError(
            "Several slices lie at one position, as in a dynamic or gated series.",
            "Pass one frame: one file per position.",
        )
    offsets = np.linalg.norm(positions - np.linspace(positions[0], positions[-1], len(positions)), axis=1)
    if offsets.max() > LARGEST_OFFSET * steps.mean():
        raise ImageError(
            f"The slices are unevenly spaced, {steps.min():.2f} to {steps.max():.2f} mm apart.",
            "Slices are missing or mixed: export the series again.",
        )


def _axes(dataset: Dataset) -> npt.NDArray[np.float64]:
    """(2, 3) unit vectors, in the patient's LPS axes, of growing column and growing row index."""
    return numbers(dataset, "ImageOrientationPatient", 6).reshape(2, 3)


def _position(dataset: Dataset) -> npt.NDArray[np.float64]:
    return numbers(dataset, "ImagePositionPatient", 3)


def _affine(slices: Sequence[Dataset]) -> npt.NDArray[np.float64]:
    """(column, row, slice) index to RAS millimetres; the step between slices is that of their positions."""
    first, last = _position(slices[0]), _position(slices[-1])
    row_spacing, column_spacing = numbers(slices[0], "PixelSpacing", 2)
    along_columns, along_rows = _axes(slices[0])
    affine = np.eye(4)
    affine[:3, 0] = along_columns * column_spacing
    affine[:3, 1] = along_rows * row_spacing
    affine[:3, 2] = (last - first) / (len(slices) - 1)
    affine[:3, 3] = first
    return LPS_TO_RAS @ affine


def _activity(dataset: Dataset) -> Voxels:
    """One slice, (column, row), in the series' units; each slice has a rescale slope of its own."""
    slope = numbers(dataset, "RescaleSlope", 1)
    given = optional(dataset, "RescaleIntercept") is not None
    intercept = numbers(dataset, "RescaleIntercept", 1) if given else 0.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pydicom only warns where pixels are too many or too few
            stored = dataset.pixel_array
    except (AttributeError, ValueError, RuntimeError, EOFError, NotImplementedError, UserWarning) as error:
        raise ImageError(
            f"The pixels of {dataset.filename} are damaged ({error}).", "Copy or export the series again."
        ) from error
    if stored.ndim != 2:
        raise ImageError(f"{dataset.filename} is a picture in colour.", "Pass the PET images themselves.")
    if not np.isfinite(stored).all():
        raise ImageError(f"{dataset.filename} holds NaN or infinite pixels.", "Export the series again.")
    return (stored.T * slope + intercept).astype(np.float32)
