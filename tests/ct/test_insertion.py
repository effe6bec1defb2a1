"""Inserted low dose: the noise of that dose and nothing else; HU and grid stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, gaussian_filter

from tests.ct.scans import REAL, body
from tgd_ct.case import DOSES, ORGAN
from tgd_ct.images.hu import HU
from tgd_ct.images.insertion import insert_low_dose
from tgd_ct.scanner import PHOTONS, Scanner
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.patient import SECTION_MM, blocks_along_z
from tgd_ct.simulation.phantom import random_abdomen
from tgd_kit.errors import ImageError, SimulationError

SPACING = (5.0, 8.0, 8.0)
real = pytest.mark.skipif(not REAL.exists(), reason="the real CT ct_abdomen is not here (TGD_TEST_DATA)")


@pytest.mark.parametrize("dose", DOSES[1:])
def test_noise_is_that_of_a_simulated_scan_of_this_dose(dose: float) -> None:
    """A simulated scan of normal dose with inserted noise, against simulated scans of low dose."""
    config = replace(PatientConfig.quick(), slices=8)
    scanner = replace(config.scanner, geometry=Scanner.of_grid(64, 6.0, 8.0).geometry, slice_mm=8.0)
    config, rng = replace(config, scanner=scanner), np.random.default_rng(3)
    phantom = random_abdomen(rng, config.phantom_grid(), section_mm=np.mean(SECTION_MM))
    lines = scanner.lines(blocks_along_z(phantom.hu), finer=True)
    clean = scanner.image(lines)
    normal = scanner.image(scanner.measured(rng, lines, 1.0))
    noise = {
        "inserted": [
            insert_low_dose(normal, scanner.spacing_mm, dose, photons=scanner.photons, seed=seed) - normal
            for seed in range(4)
        ],
        "simulated": [scanner.image(scanner.measured(rng, lines, dose)) - clean for _ in range(4)],
    }
    liver, whole = binary_erosion(phantom.target("liver") == ORGAN), phantom.body()
    already = [np.var((normal - clean)[mask]) for mask in (liver, whole)]
    for mask, share in zip((liver, whole), already, strict=True):
        inserted, simulated = (np.var([one[mask] for one in noise[kind]]) for kind in noise)
        # Four images with some hundred independent voxels each; the normal dose has its variance already.
        assert inserted + share == pytest.approx(simulated, rel=0.1)
    assert abs(np.mean([one[whole].mean() for one in noise["inserted"]])) < 0.05 * np.sqrt(simulated)


def test_the_image_itself_is_neither_blurred_nor_shifted() -> None:
    """Mean over many seeds: the image as it was, edges included."""
    image = body((1, 40, 48)) + np.random.default_rng(0).integers(-20, 20, (1, 40, 48)).astype(np.float32)
    many = np.stack([insert_low_dose(image, SPACING, 0.25, photons=1e5, seed=seed) for seed in range(60)])
    error = (many.mean(axis=0) - image) / (many.std(axis=0) / np.sqrt(60))
    assert np.abs(error).max() < 6  # 2000 pixels, in deviations of their means
    assert error.std() == pytest.approx(1, abs=0.15)


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(5, 30), st.integers(5, 30)),
    st.floats(0.3, 12.0),
    st.floats(0.01, 1.0),
)
def test_any_matrix_and_pixel_size_works(shape: tuple[int, int, int], voxel_mm: float, dose: float) -> None:
    image = body(shape)
    low = insert_low_dose(image, (4.0, voxel_mm, voxel_mm), dose, photons=1e5)
    assert (low.shape, low.dtype) == (shape, np.float32)
    assert np.isfinite(low).all()
    again = insert_low_dose(image, (4.0, voxel_mm, voxel_mm), dose, photons=1e5)
    np.testing.assert_array_equal(low, again)


def test_normal_dose_and_padding_stay_as_they_are() -> None:
    image = body()
    image[:, :5, :5] = -3024
    np.testing.assert_array_equal(insert_low_dose(image, SPACING, 1.0, photons=1e5), image)
    low = insert_low_dose(image, SPACING, 0.05, photons=1e5)
    assert (low[:, :5, :5] == -3024).all()
    assert (low[:, 5:, 5:] != image[:, 5:, 5:]).mean() > 0.99


def test_noise_follows_seed_dose_and_photons() -> None:
    image = body()
    inside = image > 0

    def noise(dose: float, photons: float, seed: int = 0) -> np.ndarray:
        return (insert_low_dose(image, SPACING, dose, photons=photons, seed=seed) - image)[inside]

    assert not np.array_equal(noise(0.1, 1e6), noise(0.1, 1e6, seed=1))
    # Where photons are many, the electronics do not matter: 9 and 99 times the variance of normal dose.
    assert noise(0.01, 1e8).std() / noise(0.1, 1e8).std() == pytest.approx(np.sqrt(99 / 9), rel=1e-2)
    assert noise(0.1, 1e8).std() / noise(0.1, 4e8).std() == pytest.approx(2, rel=1e-2)


def test_slices_are_worked_on_a_few_at_a_time_with_noise_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[int] = []
    monkeypatch.setattr("tgd_ct.images.insertion.SLICES_AT_ONCE", 2)
    image = body((5, 20, 24))
    low = insert_low_dose(image, SPACING, 0.1, photons=1e5, progress=done.append)
    assert done == [2, 4, 5]
    noise = (low - image).reshape(5, -1)
    assert np.abs(np.corrcoef(noise) - np.eye(5)).max() < 0.3


def test_what_cannot_be_projected_is_refused() -> None:
    with pytest.raises(ImageError, match="8 x 7 mm"):
        insert_low_dose(body(), (5.0, 8.0, 7.0), 0.1, photons=1e5)
    with pytest.raises(SimulationError, match="does not exist"):
        insert_low_dose(body(), SPACING, 5.0, photons=1e5)
    with pytest.raises(SimulationError, match="above zero"):
        insert_low_dose(body(), SPACING, 0.5, photons=-1)


@real
@pytest.mark.parametrize("dose", [0.25, 0.05])
def test_a_real_ct_keeps_its_hu_and_gets_the_noise_asked_for(tmp_path: Path, dose: float) -> None:
    image = HU.read(REAL / "ct.nii.gz")
    volume, spacing = image.axial()[10:16], image.axial_spacing_mm()
    labels = organs()[10:16]
    low = np.stack([insert_low_dose(volume, spacing, dose, photons=PHOTONS, seed=seed) for seed in range(3)])
    noise = low - volume
    # As asked: what simulated scans of the same image have at this dose, less what they have at normal dose.
    scanner, rng = Scanner.of_grid(122, 3.0, 3.0), np.random.default_rng(0)
    square = np.full((6, 122, 122), -1000, np.float32)
    square[:, 10:111] = volume
    lines = scanner.lines(square)
    clean = scanner.image(lines)
    squares = {
        share: [
            np.square(scanner.image(scanner.measured(rng, lines, share)) - clean)[:, 10:111] for _ in range(3)
        ]
        for share in (dose, 1.0)
    }
    for organ in (1, 2, 3, 5):
        inside = labels == organ
        with_low, with_normal = (np.mean([one[inside] for one in squares[share]]) for share in (dose, 1.0))
        asked = np.sqrt(with_low - with_normal)
        assert noise[:, inside].std() == pytest.approx(asked, rel=0.15)  # a few hundred voxels and more
        assert noise[:, inside].mean() == pytest.approx(0, abs=4 * asked / np.sqrt(inside.sum() / 20))
    assert gaussian_filter(noise[0], (0, 8, 8)).std() < 0.1 * noise.std()  # no offset anywhere


def organs() -> np.ndarray:
    image = HU.read(REAL / "ct.nii.gz")
    return replace(image, voxels=nib.load(REAL / "labels.nii.gz").get_fdata(dtype=np.float32)).axial()
