"""An image as a derived DICOM series: the source's patient, study, grid and units, new UIDs and pixels."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import dcmwrite
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from tgd_kit.arrays import FloatArray
from tgd_kit.imaging.dicom.series import DicomSource
from tgd_kit.imaging.dicom.tags import optional
from tgd_kit.imaging.quiet import quiet
from tgd_kit.runs.files import replacing

LONGEST_NAME = 64  # characters of a SeriesDescription
LARGEST_PIXEL = 2**15 - 1  # stored: 16 bits with a sign
# Tags that hold for the source's own pixels only.
OUTDATED = (
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RealWorldValueMappingSequence",
    "ModalityLUTSequence",
    "IconImageSequence",
    "DigitalSignaturesSequence",
    "MACParametersSequence",
)


def write_derived(
    voxels: FloatArray, source: DicomSource, folder: Path, description: str, *, word: str = "denoised"
) -> float:
    """Write a volume as a series derived from that of `source`, in the source's units.

    All tags that units depend on are the source's, so any reader computes the same quantity. Every slice has a
    slope of its own, its largest magnitude / 32767, so a pixel is rounded by at most 1 / 65534 of the largest
    in its slice. Study, frame of reference, patient and acquisition stay. Series and instances get new UIDs,
    and each slice refers to the source slices it was made from. Private tags are left out: nobody can say
    whether they still hold.

    Args:
        voxels: (column, row, slice) in the quantity of `source`, on its grid.
        source: the slices it was made from; a slice of a 2.5-D network is made from three of them.
        folder: a new or empty one.
        description: what was done, for DerivationDescription.
        word: the same in one word, for SeriesDescription.

    Returns:
        The largest step between stored values, in the volume's quantity; the rounding error is at most half of it.
    """
    series, now, largest_step = generate_uid(), datetime.now().astimezone(), 0.0
    with replacing(folder) as temporary:
        temporary.mkdir()
        for index, header in enumerate(source.slices):
            pixels, slope = _quantised(voxels[..., index].T.astype(np.float64) / source.factor)
            derived = _derived(header, source.slices[max(index - 1, 0) : index + 2], word)
            derived.SeriesInstanceUID = series
            derived.InstanceCreationDate, derived.InstanceCreationTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
            step = f"pixels are rounded to steps of {slope:.3g} {_unit(header)}".rstrip()
            derived.DerivationDescription = f"{description}; {step}"
            _put(derived, pixels, slope)
            if "NumberOfSlices" in derived:
                derived.NumberOfSlices = len(source.slices)
            derived.save_as(temporary / f"{index + 1:05d}.dcm", enforce_file_format=True)
            largest_step = max(largest_step, float(slope) * source.factor)
    return largest_step


def _quantised(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int16], DSfloat]:
    """Stored pixels and their slope, which is exact in the 16 characters that DICOM has for it."""
    slope = DSfloat(float(np.abs(values).max()) / LARGEST_PIXEL or 1.0, auto_format=True)
    slope = DSfloat(str(slope))
    return np.rint(values / slope).astype(np.int16), slope


def _derived(header: Dataset, sources: Sequence[Dataset], word: str) -> Dataset:
    """The tags of a slice that still hold, as an instance of its own."""
    derived = Dataset()
    with quiet():  # faults of the source that do not matter
        for tag in sorted(header.keys()):
            if _stays(tag) and (element := _readable(header, tag)) is not None:
                derived.add(element)
    for name in OUTDATED:
        if name in derived:
            delattr(derived, name)
    derived.SOPInstanceUID = generate_uid()
    derived.ImageType = ["DERIVED", "SECONDARY"]
    derived.SeriesNumber = int(optional(header, "SeriesNumber") or 0) + 1000
    name = str(optional(header, "SeriesDescription") or header.Modality)
    derived.SeriesDescription = f"{name[: LONGEST_NAME - 1 - len(word)]} {word}"
    derived.SourceImageSequence = [_reference(source) for source in sources]
    derived.file_meta = FileMetaDataset()
    derived.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    derived.file_meta.MediaStorageSOPClassUID = derived.SOPClassUID
    derived.file_meta.MediaStorageSOPInstanceUID = derived.SOPInstanceUID
    return derived


def _unit(header: Dataset) -> str:
    """Of PET in Units, of CT in RescaleType; nothing where neither says."""
    return str(optional(header, "Units") or optional(header, "RescaleType") or "")


def _stays(tag: BaseTag) -> bool:
    """Not private, and no overlay or curve, which were drawn on the source's own pixels."""
    return not tag.is_private and tag.group & 0xFF00 not in (0x5000, 0x6000)


def _readable(dataset: Dataset, tag: BaseTag) -> DataElement | None:
    """A copy of an element, decoded; None where it can't be read or written. What is needed was read before."""
    try:
        element = copy.deepcopy(dataset[tag])
        dcmwrite(io.BytesIO(), Dataset({tag: element}), implicit_vr=False, little_endian=True)
    except Exception:  # pydicom raises anything on bytes that are not of the tag's type
        return None
    return element


def _reference(source: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return reference


def _put(dataset: Dataset, pixels: npt.NDArray[np.int16], slope: DSfloat) -> None:
    """Pixels, and all tags that say how they are stored."""
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0
    dataset.PixelData = pixels.astype("<i2").tobytes()
