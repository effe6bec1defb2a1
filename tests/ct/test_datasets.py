"""LiTS and KiTS as they lie on a disk become cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.ct.scans import body, target, write_kits, write_nifti
from tgd_ct.case import ORGAN, TUMOUR
from tgd_ct.images.datasets import KITS, LITS, read_dataset
from tgd_kit.errors import ImageError, SimulationError


@pytest.fixture
def lits(tmp_path: Path) -> Path:
    for number in (10, 2):
        write_nifti(body() + number, tmp_path / f"volume-{number}.nii")
        write_nifti(target(), tmp_path / f"segmentation-{number}.nii")
    write_nifti(body(), tmp_path / "low" / "volume-2.nii")
    return tmp_path


def test_lits_comes_in_the_order_of_its_numbers(lits: Path) -> None:
    first, second = read_dataset(LITS, lits)
    assert (first.name, second.name) == ("LiTS 2", "LiTS 10")
    assert first.spacing_mm == (5.0, 8.0, 8.0)
    np.testing.assert_array_equal(first.image(1.0), body() + 2)
    np.testing.assert_array_equal(first.target("liver"), target())
    assert first.body[target() > 0].all()
    assert not first.body[:, 0].any()
    with pytest.raises(ImageError, match="no labels for kidney"):
        first.target("kidney")


def test_kits_has_its_slices_first_and_cysts_in_the_kidney(tmp_path: Path) -> None:
    labels = target()
    labels[2, 20:22, 20:22] = 3
    write_kits(body(), tmp_path / "case_00003" / "imaging.nii.gz")
    write_kits(labels, tmp_path / "case_00003" / "segmentation.nii.gz")
    (tmp_path / "case_00004").mkdir()  # not downloaded yet
    (case,) = read_dataset(KITS, tmp_path)
    assert case.name == "KiTS 00003"
    assert case.spacing_mm == (5.0, 8.0, 8.0)
    np.testing.assert_array_equal(case.image(1.0), body())
    np.testing.assert_array_equal(case.target("kidney"), np.array([0, ORGAN, TUMOUR, ORGAN])[labels])


def test_low_dose_stands_beside_normal_dose(lits: Path) -> None:
    (case,) = read_dataset(LITS, lits, patients=["2"], low_dose={0.05: lits / "low"})
    assert list(case.images) == [1.0, 0.05]
    np.testing.assert_array_equal(case.image(0.05), body())
    write_nifti(body()[1:], lits / "low" / "volume-2.nii")
    with pytest.raises(ImageError, match="not on one grid"):
        next(read_dataset(LITS, lits, low_dose={0.05: lits / "low"}))
    with pytest.raises(SimulationError, match="does not exist"):
        next(read_dataset(LITS, lits, low_dose={5.0: lits / "low"}))


def test_a_region_is_cut_out_around_the_organ(lits: Path) -> None:
    (case,) = read_dataset(LITS, lits, patients=["2"], shape=(8, 16, 20))
    assert case.image(1.0).shape == case.target("liver").shape == case.body.shape == (8, 16, 20)
    # The organ's middle is at 2.5, 18.5, 17.5: nothing is interpolated, and beyond the image there is air.
    np.testing.assert_array_equal(case.image(1.0)[1:7], (body() + 2)[:, 11:27, 8:28])
    np.testing.assert_array_equal(case.target("liver")[1:7], target()[:, 11:27, 8:28])
    assert (case.image(1.0)[[0, 7]] == -1000).all()
    assert (case.target("liver")[[0, 7]] == 0).all()


def test_a_region_is_resampled_to_a_voxel_size(tmp_path: Path) -> None:
    """A ramp stays the same ramp in millimetres; labels stay labels and keep their volume."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in (12, 40, 48)), indexing="ij")
    labels = np.zeros((12, 40, 48), np.uint8)
    labels[3:9, 12:28, 12:30] = ORGAN
    write_nifti(2.0 * z + y - 3 * x - 900, tmp_path / "volume-0.nii", (5.0, 2.0, 2.0))
    write_nifti(labels, tmp_path / "segmentation-0.nii", (5.0, 2.0, 2.0))
    (case,) = read_dataset(LITS, tmp_path, spacing_mm=(4.0, 3.0, 3.0), shape=(8, 12, 14))
    assert case.spacing_mm == (4.0, 3.0, 3.0)
    centre = np.array([5.5, 19.5, 20.5]) * (5, 2, 2)
    at = [
        (np.arange(n) - (n - 1) / 2) * d + c for n, d, c in zip((8, 12, 14), (4, 3, 3), centre, strict=True)
    ]
    z, y, x = np.meshgrid(*at, indexing="ij")
    np.testing.assert_allclose(case.image(1.0), 2 * z / 5 + y / 2 - 3 * x / 2 - 900, atol=1e-3)  # float32
    assert set(np.unique(case.target("liver"))) == {0, ORGAN}
    volumes = (labels > 0).sum() * 20, (case.target("liver") > 0).sum() * 36
    assert volumes[1] == pytest.approx(volumes[0], rel=0.15)  # a voxel more or less on each side

    (whole,) = read_dataset(LITS, tmp_path, spacing_mm=(2.5, 2.0, 2.0))
    assert whole.image(1.0).shape == (23, 40, 48)
    np.testing.assert_allclose(whole.image(1.0)[::2, 3, 5], 2.0 * np.arange(12) - 912, atol=1e-3)


def test_what_is_missing_or_wrong_is_said(lits: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no patient 7"):
        next(read_dataset(LITS, lits, patients=["7"]))
    with pytest.raises(ImageError, match=r"no image case_\*/imaging"):
        next(read_dataset(KITS, lits))
    (lits / "segmentation-10.nii").unlink()
    with pytest.raises(ImageError, match=r"no label map .*segmentation-10.nii.gz"):
        list(read_dataset(LITS, lits))
    write_nifti(target() * 0, lits / "segmentation-10.nii.gz")
    with pytest.raises(ImageError, match="patient 10 is empty"):
        list(read_dataset(LITS, lits))
    write_nifti(target() * 4, lits / "segmentation-10.nii.gz")
    with pytest.raises(ImageError, match="has the labels 4, 8"):
        list(read_dataset(LITS, lits))
    write_nifti(body(), lits / "volume-2.nii.gz")
    with pytest.raises(ImageError, match="patient 2 twice"):
        next(read_dataset(LITS, lits))
