"""A series of DICOM slices as one volume, in the adapter's quantity: nothing about its grid is guessed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from tgd_kit.arrays import FloatArray
from tgd_kit.errors import ImageError, printable, reason
from tgd_kit.imaging.dicom.collect import Files, choose, headers, opened, parsed
from tgd_kit.imaging.dicom.stack import affine, ordered
from tgd_kit.imaging.dicom.tags import numbers, optional, positive
from tgd_kit.imaging.quiet import quiet
from tgd_kit.imaging.slabs import scratch

MOST_PIXELS = 2**24  # of a slice


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
    with quiet(), opened(path) as files:  # what is needed is checked; a clinical header has faults elsewhere
        slices = ordered(choose(headers(files), path, modality, series))
        source = DicomSource(tuple(slices), factor(slices))
        return _volume(source, files), affine(slices), source


def _volume(source: DicomSource, files: Files) -> FloatArray:
    columns, rows = (round(positive(source.slices[0], tag)) for tag in ("Columns", "Rows"))
    if columns * rows > MOST_PIXELS:
        raise ImageError(
            f"The slices have {columns} x {rows} pixels, unlike a scan.", "Export the series again."
        )
    volume = scratch((columns, rows, len(source.slices)))
    for index, header in enumerate(source.slices):
        name = str(header.filename)
        values = _rescaled(parsed(name, files[name]())) * np.float32(source.factor)
        if not np.isfinite(values).all():
            raise ImageError(
                f"{printable(name)} holds NaN or infinite pixels, as stored or by its RescaleSlope.",
                "Export the series again.",
            )
        volume[..., index] = values
    return volume


def _rescaled(dataset: Dataset) -> FloatArray:
    """One slice, (column, row), in the series' units; each slice has a rescale slope of its own."""
    slope = numbers(dataset, "RescaleSlope", 1)
    given = optional(dataset, "RescaleIntercept") is not None
    intercept = numbers(dataset, "RescaleIntercept", 1) if given else 0.0
    name = printable(dataset.filename)
    try:
        _check_decoder(dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pydicom only warns where pixels are too many or too few
            stored = dataset.pixel_array
    except ImageError:
        raise
    except Exception as error:  # pydicom and its decoders raise anything on damaged bytes
        raise ImageError(
            f"The pixels of {name} are damaged ({reason(error)}).", "Copy or export the series again."
        ) from error
    if stored.ndim != 2:
        raise ImageError(f"{name} is a picture in colour.", "Pass the scan's own images.")
    rescaled: FloatArray = (stored.T * slope + intercept).astype(np.float32)
    return rescaled


def _check_decoder(dataset: Dataset) -> None:
    """Refuse compressed pixels that nothing here can unpack."""
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if syntax.is_compressed and syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise ImageError(
            f"The pixels are compressed ({syntax.name}), and no decoder for it is installed.",
            "Try: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg",
        )
