"""DICOM PET series made up for tests, and what they mean by the DICOM standard's words."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

from tgd_kit.imaging.image import Image
from tgd_pet.images.suv import SUV

ROWS, COLUMNS, DEPTH = 4, 5, 6
HALF_LIFE, DOSE, WEIGHT = 6600.0, 3.5e8, 70.0
AXIAL, SAGITTAL = (1.0, 0, 0, 0, 1, 0), (0.0, 1, 0, 0, 0, -1)
OBLIQUE = (0.8, 0.6, 0, -0.6, 0.8, 0)
REAL = Path(os.environ.get("TGD_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "pet_fdg_sts001"

Edit = Callable[[list[Dataset]], object]


def series(orientation: Sequence[float] = AXIAL, step: float = 3.27, modality: str = "PT") -> list[Dataset]:
    """A series with a slope of its own in every slice, as scanners write it, in mixed order."""
    random = np.random.default_rng(0)
    uid, axes = generate_uid(), np.reshape(orientation, (2, 3))
    slices = []
    for z in range(DEPTH):
        dataset = FileDataset("", {}, preamble=bytes(128), file_meta=FileMetaDataset())
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.SOPClassUID, dataset.SeriesInstanceUID = PositronEmissionTomographyImageStorage, uid
        dataset.Modality, dataset.SeriesDescription = modality, "PET AC"
        dataset.SeriesDate = dataset.AcquisitionDate = "20200102"
        dataset.SeriesTime = dataset.AcquisitionTime = "110000.00"
        dataset.PatientWeight, dataset.Units, dataset.DecayCorrection = WEIGHT, "BQML", "START"
        dataset.CorrectedImage = ["DECY", "ATTN", "SCAT"]
        injection = Dataset()
        injection.RadiopharmaceuticalStartTime, injection.RadionuclideHalfLife = "100000.00", HALF_LIFE
        injection.RadionuclideTotalDose = DOSE
        dataset.RadiopharmaceuticalInformationSequence = [injection]
        position = np.array([-100.0, -120.0, 40.0]) + z * step * np.cross(*axes)
        dataset.ImagePositionPatient = [f"{value:.5f}" for value in position]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = list(orientation), [4.0, 5.0]
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.5 + 0.25 * z:g}", "0"
        dataset.PixelData = random.integers(0, 30000, (ROWS, COLUMNS), dtype=np.uint16).tobytes()
        slices.append(dataset)
    return [slices[z] for z in (3, 0, 5, 1, 4, 2)]


def activity(datasets: Sequence[Dataset]) -> np.ndarray:
    """(column, row, slice) in Bq/mL, from the DICOM standard's words, for an axial series."""
    ordered = sorted(datasets, key=lambda dataset: dataset.ImagePositionPatient[2])
    stored = [
        np.frombuffer(d.PixelData, np.uint16).reshape(ROWS, COLUMNS) * float(d.RescaleSlope) for d in ordered
    ]
    return np.stack(stored).transpose(2, 1, 0)


def write(datasets: Sequence[Dataset], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def read(datasets: Sequence[Dataset], folder: Path) -> Image:
    return SUV.read(write(datasets, folder / "series"))


def garble(dataset: Dataset, tag: str, content: bytes) -> None:
    """Bytes that are not of the tag's type, as a faulty export writes them."""
    element = dataset.data_element(tag)
    raw = RawDataElement(element.tag, element.VR, len(content), content, 0, False, True)
    dataset._dict[element.tag] = raw
