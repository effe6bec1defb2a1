"""DICOM slices as one regular stack: their order, their grid, and where it lies in the patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from tgd_kit.errors import ImageError
from tgd_kit.imaging.dicom.tags import numbers, optional, require, same

SMALLEST_STEP_MM = 0.01
LARGEST_OFFSET = 0.1  # of a step: positions are often written rounded to 0.1 mm
LARGEST_SKEW = 1e-3  # of axes that are written with few digits
LARGEST_TILT = 0.01  # sideways, of the way from the first to the last slice: half a degree
# What says that slices are of one scan of one patient.
OF_ONE_SERIES = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality", "NumberOfSlices")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
FloatArray = npt.NDArray[np.float64]


def ordered(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The slices along the normal of their plane.

    Raises:
        ImageError: they are not one regular stack.
    """
    if len(datasets) < 2:
        raise ImageError(
            "The series has only one slice.", "Pass the whole series: the network needs neighbouring slices."
        )
    same(datasets, *OF_ONE_SERIES)
    for dataset in datasets:  # a derived series refers to them
        require(dataset, "SOPClassUID")
        require(dataset, "SOPInstanceUID")
    stated = optional(datasets[0], "NumberOfSlices")
    if stated is not None and len(datasets) < (most := int(numbers(datasets[0], "NumberOfSlices", 1)[0])):
        raise ImageError(
            f"The series has {len(datasets)} slices, and states {most} (NumberOfSlices).",
            "Slices are missing: export the series again.",
        )
    for tag, count in (("Rows", 1), ("Columns", 1), ("PixelSpacing", 2), ("ImageOrientationPatient", 6)):
        values = np.array([numbers(dataset, tag, count) for dataset in datasets])
        if not np.allclose(values, values[0], atol=1e-4):
            raise ImageError(f"{tag} differs between the slices.", "Pass one series with one grid.")
    if numbers(datasets[0], "PixelSpacing", 2).min() <= 0:
        raise ImageError("PixelSpacing is not above zero.", "Export the series again.")
    axes = _axes(datasets[0])
    if not np.allclose(axes @ axes.T, np.eye(2), atol=LARGEST_SKEW):
        raise ImageError(
            "ImageOrientationPatient is not two axes of length 1 at right angles.", "Export the series again."
        )
    normal = np.cross(*axes)
    slices = sorted(datasets, key=lambda dataset: float(_position(dataset) @ normal))
    _check_regular(np.array([_position(dataset) for dataset in slices]), normal)
    return slices


def affine(slices: Sequence[Dataset]) -> FloatArray:
    """(column, row, slice) index to RAS millimetres; the step between slices is that of their positions."""
    first, last = _position(slices[0]), _position(slices[-1])
    row_spacing, column_spacing = numbers(slices[0], "PixelSpacing", 2)
    along_columns, along_rows = _axes(slices[0])
    matrix = np.eye(4)
    matrix[:3, 0] = along_columns * column_spacing
    matrix[:3, 1] = along_rows * row_spacing
    matrix[:3, 2] = (last - first) / (len(slices) - 1)
    matrix[:3, 3] = first
    return LPS_TO_RAS @ matrix


def _check_regular(positions: FloatArray, normal: FloatArray) -> None:
    steps = np.diff(positions @ normal)
    if steps.min() < SMALLEST_STEP_MM:
        raise ImageError(
            "Several slices lie at one position, as in a dynamic or gated series.",
            "Pass one frame: one file per position.",
        )
    _check_upright(positions, normal)
    offsets = np.linalg.norm(positions - np.linspace(positions[0], positions[-1], len(positions)), axis=1)
    if offsets.max() > LARGEST_OFFSET * steps.mean():
        raise ImageError(
            f"The slices are unevenly spaced, {steps.min():.2f} to {steps.max():.2f} mm apart.",
            "Slices are missing or mixed: export the series again.",
        )


def _check_upright(positions: FloatArray, normal: FloatArray) -> None:
    """Refuse slices that are shifted against each other, as with a tilted gantry: neighbours in the stack would not
    be neighbours in the patient.
    """
    way = positions[-1] - positions[0]
    along = float(way @ normal)
    sideways = float(np.linalg.norm(way - along * normal))
    allowed = max(LARGEST_TILT * along, LARGEST_OFFSET * along / (len(positions) - 1))
    if sideways > allowed:
        angle = np.rad2deg(np.arctan2(sideways, along))
        raise ImageError(
            f"The slices are shifted against each other, at an angle of {angle:.1f} degrees (gantry tilt).",
            "Resample the series to upright slices first, for instance with dcm2niix.",
        )


def _axes(dataset: Dataset) -> FloatArray:
    """(2, 3) unit vectors, in the patient's LPS axes, of growing column and growing row index."""
    return numbers(dataset, "ImageOrientationPatient", 6).reshape(2, 3)


def _position(dataset: Dataset) -> FloatArray:
    return numbers(dataset, "ImagePositionPatient", 3)
