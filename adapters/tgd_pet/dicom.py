"""A series of DICOM PET slices as one image in SUV: nothing about grid or dose is guessed."""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from tgd_pet.errors import ImageError
from tgd_pet.suv import suv_factor
from tgd_pet.tags import numbers, optional, require

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
SMALLEST_STEP = 0.01  # mm
LARGEST_OFFSET = 0.1  # of a step: positions are often written rounded to 0.1 mm
Voxels = npt.NDArray[np.float32]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_series(path: Path) -> tuple[Voxels, npt.NDArray[np.float64]]:
    """Read the one PET series in a folder (with subfolders) or a zip, whose members stay in memory.

    Files that are not DICOM (a licence, a DICOMDIR) are passed over, unless their name says that they are.

    Returns:
        SUV by body weight, (column, row, slice); and the affine from those indices to RAS+ millimetres.

    Raises:
        ImageError: no series, several, another modality, damaged or missing slices, or missing tags.
    """
    with warnings.catch_warnings():
        # What is needed is checked; a clinical header has faults elsewhere.
        warnings.filterwarnings("ignore", "Invalid value for VR")
        datasets = [_parsed(name, data) for name, data in _files(path) if _is_dicom(name, data)]
        slices = _sorted(_one_series(datasets, path))
        volume = np.stack([_activity(dataset) for dataset in slices], axis=-1)
        return volume * np.float32(suv_factor(slices)), _affine(slices)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                yield str(file.relative_to(path)), file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    yield member.filename, archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ImageError(
            f"{path} cannot be read as a zip ({error}).", "Zip the series again, without a password."
        ) from error


def _is_dicom(name: str, data: bytes) -> bool:
    file = Path(name)
    if file.name.startswith(".") or file.name.upper() == "DICOMDIR" or "__MACOSX" in file.parts:
        return False
    return data[128:132] == b"DICM" or file.suffix.lower() in DICOM_SUFFIXES


def _parsed(name: str, data: bytes) -> Dataset:
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
    except (InvalidDicomError, EOFError, OSError, ValueError) as error:
        raise ImageError(f"{name} is damaged ({error}).", "Copy or export the series again.") from error
    dataset.filename = name
    return dataset


def _one_series(datasets: Sequence[Dataset], path: Path) -> Sequence[Dataset]:
    if not datasets:
        raise ImageError(f"{path} holds no DICOM file.", "Pass the folder or zip of one PET series.")
    series: dict[str, list[Dataset]] = {}
    for dataset in datasets:
        series.setdefault(str(require(dataset, "SeriesInstanceUID")), []).append(dataset)
    if len(series) > 1:
        found = "; ".join(_described(group) for group in series.values())
        raise ImageError(
            f"{path} holds {len(series)} series: {found}.", "Pass a folder with the PET series alone."
        )
    first = datasets[0]
    if require(first, "Modality") != "PT":
        raise ImageError(f"{path} holds {_described(datasets)}, not PET.", "Pass the series of modality PT.")
    if int(optional(first, "NumberOfFrames") or 1) > 1:
        raise ImageError(
            f"{path} is a multi-frame file.", "Export the series as one file per slice, or as NIfTI in SUV."
        )
    return datasets


def _described(series: Sequence[Dataset]) -> str:
    modality, name = (series[0].get(tag, "unknown") for tag in ("Modality", "SeriesDescription"))
    return f"{modality} {name!r} ({len(series)} files)"


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
    slope, intercept = numbers(dataset, "RescaleSlope", 1), float(optional(dataset, "RescaleIntercept") or 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pydicom only warns where pixels are too many or too few
            stored = dataset.pixel_array
    except (AttributeError, ValueError, RuntimeError, EOFError, NotImplementedError, UserWarning) as error:
        raise ImageError(
            f"The pixels of {dataset.filename} are damaged ({error}).", "Copy or export the series again."
        ) from error
    return (stored.T * slope + intercept).astype(np.float32)
