"""A series of DICOM slices as one volume, in the adapter's quantity: nothing about its grid is guessed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import ImageError
from tgd_kit.imaging.dicom.collect import Files, choose, headers, opened, parsed
from tgd_kit.imaging.dicom.stack import affine, ordered
from tgd_kit.imaging.dicom.tags import numbers, optional
from tgd_kit.imaging.slabs import scratch


@dataclass(frozen=True)
class DicomSource:
    """Where a volume came from, and how to get back to its units.

    Args:
        slices: all tags but the pixels of every slice, in the order of the voxels' last axis.
        factor: the volume's quantity per unit of the series.
    """

    slices: tuple[Dataset, ...]
    factor: float


def read_series(
    path: Path,
    modality: str,
    factor: Callable[[Sequence[Dataset]], float],
    *,
    series: str | None = None,
) -> tuple[FloatArray, npt.NDArray[np.float64], DicomSource]:
    """Read one series of a folder (with subfolders) or a zip, whose members stay in memory.

    Files that are not DICOM (a licence, a DICOMDIR) are ignored, unless their name says that they are. Pixels
    are decoded one slice at a time.

    Args:
        path: the folder or zip.
        modality: of the series, in DICOM's two letters.
        factor: what to multiply rescaled pixels with, from the tags of all slices.
        series: number, description or UID of the series, where there are several.

    Returns:
        The values, (column, row, slice); the affine from those indices to RAS+ millimetres; and where they
        came from.

    Raises:
        ImageError: no series, several, another modality, damaged or missing slices, or missing tags.
    """
    with warnings.catch_warnings(), opened(path) as files:
        # What is needed is checked; a clinical header has faults elsewhere.
        warnings.filterwarnings("ignore", "Invalid value for VR")
        slices = ordered(choose(headers(files), path, modality, series))
        source = DicomSource(tuple(slices), factor(slices))
        return _volume(source, files), affine(slices), source


def _volume(source: DicomSource, files: Files) -> FloatArray:
    first = source.slices[0]
    volume = scratch((first.Columns, first.Rows, len(source.slices)))
    for index, header in enumerate(source.slices):
        name = str(header.filename)
        volume[..., index] = _rescaled(parsed(name, files[name]())) * np.float32(source.factor)
    return volume


def _rescaled(dataset: Dataset) -> FloatArray:
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
        raise ImageError(f"{dataset.filename} is a picture in colour.", "Pass the scan's own images.")
    if not np.isfinite(stored).all():
        raise ImageError(f"{dataset.filename} holds NaN or infinite pixels.", "Export the series again.")
    rescaled: FloatArray = (stored.T * slope + intercept).astype(np.float32)
    return rescaled
