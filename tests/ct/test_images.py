"""CT from files is HU on the right grid; what would need a guess is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.ct.scans import body, series, target, write, write_kits, write_nifti
from tgd_ct.images.body import body_mask
from tgd_ct.images.hu import HU
from tgd_ct.images.labels import read_labels
from tgd_kit.errors import ImageError

Edit = Callable[[list[Dataset]], object]
MEANING = {0: 0, 1: 1, 2: 2}


def test_hu_are_pixels_by_the_slope_and_intercept_of_their_slice(tmp_path: Path) -> None:
    volume = body() + np.arange(6)[:, None, None] * 2
    image = HU.read(write(series(volume), tmp_path / "series"))
    np.testing.assert_array_equal(image.axial(), volume)
    assert image.axial_spacing_mm() == (5.0, 8.0, 8.0)


def _each(edit: Callable[[Dataset], object]) -> Edit:
    return lambda datasets: [edit(dataset) for dataset in datasets]


def _tags(**tags: object) -> Edit:
    return _each(lambda dataset: [setattr(dataset, name, value) for name, value in tags.items()])


def _tilt(datasets: list[Dataset]) -> None:
    """A gantry that is tilted by 15 degrees: slices are turned, and follow each other along the table."""
    cos, sin = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))
    _tags(ImageOrientationPatient=[1, 0, 0, 0, cos, -sin], GantryDetectorTilt=15)(datasets)


def _drop(name: str) -> Edit:
    return _each(lambda dataset: delattr(dataset, name))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_tags(Modality="PT"), "not of modality CT"),
        (_tags(Modality="MR"), "not of modality CT"),
        (_drop("RescaleIntercept"), "no RescaleIntercept"),
        (_drop("RescaleSlope"), "no RescaleSlope"),
        (_tags(RescaleType="US"), "in US .RescaleType., not HU"),
        (lambda datasets: setattr(datasets[2], "RescaleType", "US"), "RescaleType differs"),
        (_tags(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "scout view"),
        (_tags(RescaleIntercept=0), "air has about -1000 HU"),
        (_tags(RescaleSlope=50, RescaleIntercept=-90_000), "which are no HU"),
        (_tilt, "15.0 degrees .gantry tilt."),
        (lambda datasets: datasets.pop(0), "unevenly spaced"),
        (lambda datasets: setattr(datasets[0], "ImagePositionPatient", [-180, -150, -3]), "unevenly spaced"),
        (_tags(NumberOfSlices=9), "states 9"),
        (lambda datasets: datasets.__delitem__(slice(1, None)), "only one slice"),
    ],
)
def test_series_that_are_no_ct_in_hu_are_refused(tmp_path: Path, edit: Edit, said: str) -> None:
    datasets = series(body())
    edit(datasets)
    with pytest.raises(ImageError, match=said) as caught:
        HU.read(write(datasets, tmp_path / "series"))
    assert caught.value.remedy


def test_an_oblique_series_without_tilt_is_read(tmp_path: Path) -> None:
    datasets = series(body())
    cos, sin = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))
    _tags(ImageOrientationPatient=[1, 0, 0, 0, cos, -sin])(datasets)
    for dataset in datasets:
        way = float(dataset.ImagePositionPatient[2])
        dataset.ImagePositionPatient = [-180.0, -150 + sin * way, cos * way]
    assert HU.read(write(datasets, tmp_path / "series")).axial().shape == (6, 40, 48)


def test_a_unit_that_is_not_stated_is_hu(tmp_path: Path) -> None:
    datasets = series(body())
    for dataset in datasets:
        del dataset.RescaleType
    np.testing.assert_array_equal(HU.read(write(datasets, tmp_path / "series")).axial(), body())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda hu: (hu + 1000) / 1060, "smallest value .* is 0"),
        (lambda hu: hu + 1024, "smallest value .* is 24"),
        (lambda hu: np.clip(hu, -200, 200), "smallest value .* is -200"),
        (lambda hu: hu * 10, "-10000 to 600"),
        (lambda hu: np.where(hu > 0, 60_000, hu), "-1000 to 60000"),
    ],
    ids=["scaled to 0 to 1", "offset of 1024", "windowed", "ten times as large", "too large"],
)
def test_nifti_that_is_not_in_hu_is_refused(
    tmp_path: Path, values: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    nib.save(nib.Nifti1Image(values(body()).T.astype(np.float32), np.eye(4)), tmp_path / "in.nii")
    with pytest.raises(ImageError, match=said):
        HU.read(tmp_path / "in.nii")


def test_corners_that_the_scanner_filled_are_read(tmp_path: Path) -> None:
    volume = body()
    volume[:, :4, :4] = -3024
    np.testing.assert_array_equal(HU.read(write_nifti(volume, tmp_path / "in.nii")).axial(), volume)


def test_a_derived_series_is_in_hu_and_says_what_it_is(tmp_path: Path) -> None:
    image = HU.read(write(series(body()), tmp_path / "series"))
    changed = image.with_axial(image.axial() + np.float32(0.25))
    HU.write(changed, tmp_path / "out", "A quarter added", word="shifted")
    back = HU.read(tmp_path / "out")
    np.testing.assert_allclose(back.axial(), changed.axial(), atol=1000 / 65534 + 1e-3)  # half a step
    np.testing.assert_array_equal(back.affine, image.affine)
    made = pydicom.dcmread(tmp_path / "out" / "00001.dcm")
    assert made.SeriesDescription == "Abdomen shifted"
    assert "A quarter added; pixels are rounded to steps of 0.03" in made.DerivationDescription
    assert made.DerivationDescription.endswith(" HU")


# Label maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write_one", [write_nifti, write_kits])
def test_labels_are_axial_like_their_image(tmp_path: Path, write_one: Callable[..., Path]) -> None:
    image = HU.read(write_one(body(), tmp_path / "image.nii"))
    labels = read_labels(write_one(target(), tmp_path / "labels.nii.gz"), image, {0: 0, 1: 2, 2: 1})
    np.testing.assert_array_equal(labels, np.array([0, 2, 1], np.uint8)[target()])
    assert labels.dtype == np.uint8


def test_label_maps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    image = HU.read(write_nifti(body(), tmp_path / "image.nii"))
    write_nifti(target(), tmp_path / "shifted.nii", (5.0, 8.0, 7.9))
    write_nifti(target()[1:], tmp_path / "fewer.nii")
    write_nifti(target() * 3, tmp_path / "other.nii")
    halves = nib.Nifti1Image(target().T / np.float32(2), image.affine)
    nib.save(halves, tmp_path / "halves.nii")
    (tmp_path / "labels.mha").write_bytes(b"")
    for name, said in (
        ("shifted.nii", "not on one grid"),
        ("fewer.nii", "not on one grid"),
        ("other.nii", "has the labels 3, 6"),
        ("halves.nii", "has the labels 0.5"),
        ("labels.mha", "no NIfTI"),
        ("absent.nii", "no label map"),
    ):
        with pytest.raises(ImageError, match=said):
            read_labels(tmp_path / name, image, MEANING)


# The body ------------------------------------------------------------------------------------------------


def test_the_body_has_its_gas_and_not_the_table() -> None:
    volume = body()
    whole = volume > -500
    volume[2:, 18:22, 20:26] = -950
    volume[:, 36:38, 4:44] = 100
    found = body_mask(volume)
    # Opening rounds off corners of the ellipse by a voxel; nothing else goes.
    assert (found <= whole).all()
    assert found.sum() > 0.97 * whole.sum()
    assert found[2:, 18:22, 20:26].all()
    assert not body_mask(np.full((2, 9, 9), -1000, np.float32)).any()
