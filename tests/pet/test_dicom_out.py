"""The derived DICOM series: the same SUV for any reader, the same patient and grid, an identity of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from tests.pet.dicoms import AXIAL, DOSE, HALF_LIFE, OBLIQUE, REAL, WEIGHT, garble, read, series, write
from tgd_kit.errors import ImageError
from tgd_kit.imaging.dicom.series import DicomSource
from tgd_kit.imaging.files import check_output
from tgd_kit.imaging.image import Image
from tgd_pet.images.suv import SUV

NAME = "Müller^Ada"


def patient(datasets: list[Dataset]) -> list[Dataset]:
    for dataset in datasets:
        dataset.SpecificCharacterSet, dataset.PatientName, dataset.PatientID = "ISO_IR 100", NAME, "17"
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4"
        dataset.SeriesNumber, dataset.SmallestImagePixelValue = 4, 7
        dataset.add_new(0x00091001, "LO", "private")
        dataset.add_new(0x60003000, "OW", bytes(4))
        dataset.add_new(0x60020010, "US", 4)
        dataset.add_new(0x50000005, "US", 1)
    return datasets


def denoised(image: Image, seed: int = 0) -> Image:
    """Something else on the same grid, a little of it below zero."""
    noise = np.random.default_rng(seed).normal(0, 0.2, image.axial().shape).astype(np.float32)
    return image.with_axial(image.axial() * 0.5 + noise)


def written(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("units", ["BQML", "GML"])
@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_suv_and_grid_come_back(tmp_path: Path, units: str, orientation: Sequence[float]) -> None:
    datasets = series(orientation)
    for dataset in datasets:
        dataset.Units = units
        if units == "GML":
            dataset.RescaleSlope = float(dataset.RescaleSlope) / 1000
    result = denoised(read(datasets, tmp_path))
    said = SUV.write(result, tmp_path / "out", "halved")
    back = SUV.read(tmp_path / "out")
    np.testing.assert_array_equal(back.affine, result.affine)
    # Half a step of the slice's own slope, and float32's seven digits.
    largest = np.abs(result.voxels).max(axis=(0, 1))
    assert (np.abs(back.voxels - result.voxels) <= largest * (0.5 / 32767 + 1e-6)).all()
    assert f"rounded by at most {largest.max() / 65534:.2g} SUV" in said
    assert {dataset.Units for dataset in written(tmp_path / "out")} == {units}


def test_another_reader_comes_to_the_same_suv_from_the_tags_alone(tmp_path: Path) -> None:
    result = denoised(read(series(), tmp_path))
    SUV.write(result, tmp_path / "out", "halved")
    decayed = DOSE * 0.5 ** (3600 / HALF_LIFE)
    for dataset, expected in zip(written(tmp_path / "out"), np.moveaxis(result.voxels, 2, 0), strict=True):
        suv = dataset.pixel_array.T * float(dataset.RescaleSlope) * 1000 * WEIGHT / decayed
        # Half a step, and float32's seven digits.
        np.testing.assert_allclose(suv, expected, atol=np.abs(expected).max() * (0.5 / 32767 + 1e-6), rtol=0)
        assert (dataset.RescaleIntercept, dataset.BitsAllocated, dataset.PixelRepresentation) == (0, 16, 1)


def test_identity_is_new_and_the_rest_is_the_sources(tmp_path: Path) -> None:
    datasets = patient(series())
    result = denoised(read(datasets, tmp_path))
    SUV.write(result, tmp_path / "out", "Denoised by a test")
    ordered = sorted(datasets, key=lambda dataset: dataset.ImagePositionPatient[2])
    uids = [dataset.SOPInstanceUID for dataset in ordered]
    made = written(tmp_path / "out")
    assert len({d.SeriesInstanceUID for d in made} | {d.SeriesInstanceUID for d in datasets}) == 2
    assert len({d.SOPInstanceUID for d in made} | set(uids)) == 2 * len(uids)
    for index, (derived, source) in enumerate(zip(made, ordered, strict=True)):
        for tag in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientWeight"):
            assert derived[tag] == source[tag]
        for tag in ("SeriesTime", "AcquisitionTime", "RadiopharmaceuticalInformationSequence", "SOPClassUID"):
            assert derived[tag] == source[tag]
        assert derived.file_meta.MediaStorageSOPInstanceUID == derived.SOPInstanceUID
        assert list(derived.ImageType) == ["DERIVED", "SECONDARY"]
        assert (derived.SeriesNumber, derived.SeriesDescription) == (1004, "PET AC denoised")
        assert derived.DerivationDescription.startswith("Denoised by a test; pixels are rounded to steps of")
        made_from = [reference.ReferencedSOPInstanceUID for reference in derived.SourceImageSequence]
        assert made_from == uids[max(index - 1, 0) : index + 2]
        assert "SmallestImagePixelValue" not in derived
        assert not any(element.tag.is_private for element in derived)
        drawn = [element.tag for element in derived if element.tag.group & 0xFF00 in (0x5000, 0x6000)]
        assert not drawn, "overlays and curves were drawn on other pixels"


def test_an_empty_slice_stays_empty(tmp_path: Path) -> None:
    image = read(series(), tmp_path)
    image.voxels[..., 2] = 0
    SUV.write(image, tmp_path / "out", "")
    assert not SUV.read(tmp_path / "out").voxels[..., 2].any()


def _implicit(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


def _faulty(dataset: Dataset) -> None:
    dataset.NumberOfTimeSlices, dataset.PatientSize = 6, "1.7"
    garble(dataset, "NumberOfTimeSlices", b"odd!!!")
    garble(dataset, "PatientSize", b"tall")


@pytest.mark.parametrize("edit", [_implicit, _faulty])
def test_encoding_and_faults_of_the_source_do_not_matter(
    tmp_path: Path, edit: Callable[[Dataset], None]
) -> None:
    datasets = patient(series())
    for dataset in datasets:
        edit(dataset)
    image = read(datasets, tmp_path)
    SUV.write(image, tmp_path / "out", "")
    assert {str(dataset.PatientName) for dataset in written(tmp_path / "out")} == {NAME}
    np.testing.assert_array_equal(SUV.read(tmp_path / "out").affine, image.affine)


def test_a_failed_write_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = read(series(), tmp_path)
    before = sorted(tmp_path.iterdir())

    def failing(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pydicom.dataset.Dataset.save_as", failing)
    with pytest.raises(OSError, match="disk full"):
        SUV.write(image, tmp_path / "out", "")
    assert sorted(tmp_path.iterdir()) == before


def test_where_it_cannot_go_is_said_before_the_work(tmp_path: Path) -> None:
    folder, nifti = write(series(), tmp_path / "series"), tmp_path / "in.nii"
    nifti.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for out, source, said in (
        (folder, folder, "input itself"),
        (folder / "out", folder, "within the input"),
        (tmp_path / "out", nifti, "cannot be made from"),
        (folder, nifti, "cannot be made from"),
        (folder, tmp_path / "series.zip", "not empty"),
        (tmp_path / "out.dcm", folder, "not a NIfTI name"),
    ):
        with pytest.raises(ImageError, match=said):
            check_output(out, source)
    for out in ("empty", "new"):
        check_output(tmp_path / out, folder)
    with pytest.raises(ImageError, match="derived from another"):
        SUV.write(Image(np.ones((2, 2, 2), np.float32), np.eye(4)), tmp_path / "new", "")


@pytest.mark.skipif(
    not REAL.exists(), reason="the real FDG series pet_fdg_sts001 is not here (TGD_TEST_DATA)"
)
def test_real_series_there_and_back(tmp_path: Path) -> None:
    whole = SUV.read(REAL / "dicom.zip")
    source = DicomSource(whole.source.slices[:80], whole.source.factor)  # the legs, up to the bladder
    image = replace(whole, voxels=whole.voxels[..., :80], source=source)
    SUV.write(image, tmp_path / "out", "unchanged")
    back = SUV.read(tmp_path / "out")
    largest = np.abs(image.voxels).max(axis=(0, 1))
    # Half a step of the slice's own slope, and float32's seven digits.
    assert (np.abs(back.voxels - image.voxels) <= largest * (0.5 / 32767 + 1e-6)).all()
    # The step is the mean of 79, not of all, between ends that the scanner rounds to 0.1 mm.
    np.testing.assert_allclose(back.affine, image.affine, atol=0.1 / 79)
