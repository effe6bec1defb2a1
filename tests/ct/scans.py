"""CT made up for tests: a body in air, and DICOM series and NIfTI files of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

REAL = Path(os.environ.get("TGD_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ct_abdomen"
AXIAL = (1.0, 0, 0, 0, 1, 0)
LABELLED = 1, 2  # organ and tumour in the files of both data sets


def body(shape: tuple[int, int, int] = (6, 40, 48), hu: float = 60.0) -> np.ndarray:
    """(z, y, x): an elliptic cylinder of soft tissue in air, in whole HU."""
    y, x = (np.linspace(-1, 1, n) for n in shape[1:])
    inside = (y[:, None] / 0.7) ** 2 + (x / 0.8) ** 2 < 1
    return np.repeat(np.where(inside, hu, -1000.0).astype(np.float32)[None], shape[0], axis=0)


def target(shape: tuple[int, int, int] = (6, 40, 48)) -> np.ndarray:
    """(z, y, x): an organ in the body, off its middle, with a tumour."""
    labels = np.zeros(shape, np.uint8)
    labels[1:5, 14:24, 12:24] = 1
    labels[2:4, 17:20, 15:18] = 2
    return labels


def series(
    volume: np.ndarray, spacing: Sequence[float] = (5.0, 8.0, 8.0), orientation: Sequence[float] = AXIAL
) -> list[Dataset]:
    """Slices of (z, y, x), z towards the feet, with a slope and intercept of their own, in mixed order."""
    uid, frame, slices = generate_uid(), generate_uid(), []
    dz, dy, dx = spacing
    for z, hu in enumerate(volume):
        dataset = FileDataset("", {}, preamble=bytes(128), file_meta=FileMetaDataset())
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.SOPClassUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = (
            CTImageStorage,
            uid,
            frame,
        )
        dataset.Modality, dataset.SeriesDescription, dataset.ImageType = (
            "CT",
            "Abdomen",
            ["ORIGINAL", "PRIMARY"],
        )
        dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesNumber = "17", "1.2.3", 2
        dataset.ImagePositionPatient = [-180.0, -150.0, -dz * z]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = list(orientation), [dy, dx]
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *hu.shape, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        slope, intercept = (0.5, -1024) if z % 2 else (1, -1024 - z)
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "HU"
        dataset.PixelData = ((hu - intercept) / slope).astype(np.uint16).tobytes()
        slices.append(dataset)
    return slices[1::2] + slices[::2]


def write(datasets: Sequence[Dataset], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def write_nifti(volume: np.ndarray, path: Path, spacing: Sequence[float] = (5.0, 8.0, 8.0)) -> Path:
    """(z, y, x), z towards the feet, as LiTS has it: first axis x, voxels in whole numbers."""
    dz, dy, dx = spacing
    affine = np.diag([-dx, -dy, -dz, 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.rint(volume.transpose(2, 1, 0)).astype(np.int16), affine), path)
    return path


def write_kits(volume: np.ndarray, path: Path, spacing: Sequence[float] = (5.0, 8.0, 8.0)) -> Path:
    """The same as KiTS has it: first axis z."""
    dz, dy, dx = spacing
    affine = np.array([[0, 0, -dx, 0], [0, -dy, 0, 0], [-dz, 0, 0, 0], [0, 0, 0, 1.0]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.rint(volume).astype(np.int16), affine), path)
    return path
