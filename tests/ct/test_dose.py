"""The scanner: HU come back, filtered back-projection agrees with scikit-image's, and noise is that of the dose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.transform import iradon

from tgd_ct.scanner import ELECTRONIC_VARIANCE, Scanner, to_attenuation, to_hu
from tgd_kit.errors import SimulationError
from tgd_kit.simulation.fbp import KERNELS, FilteredBackProjection, ramp, window
from tgd_kit.simulation.projector import ParallelBeam, Projector

ODD = ParallelBeam(size=65, voxel_mm=1.0, angles=90, bins=65, bin_mm=1.0)
FILTERS = {"standard": "cosine", "sharp": "ramp"}  # scikit-image's names


def disc(scanner: Scanner, radius_mm: float, hu: float, slices: int = 1) -> np.ndarray:
    """A cylinder in air, on the grid that is twice as fine."""
    size, voxel = 2 * scanner.geometry.size, scanner.geometry.voxel_mm / 2
    centred = (np.arange(size) - (size - 1) / 2) * voxel
    inside = np.hypot(centred[:, None], centred) <= radius_mm
    return np.repeat(np.where(inside, hu, -1000.0).astype(np.float32)[None], slices, axis=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_back_projection_agrees_with_scikit_image(kernel: str) -> None:
    rng = np.random.default_rng(0)
    lines = Projector(ODD).forward(rng.random((1, 65, 65), dtype=np.float32))[..., 0, :]
    ours = FilteredBackProjection(ODD, kernel)(lines)[0]
    # An odd size, because scikit-image rotates about pixel size // 2; flipped, because its y axis points up.
    theta = np.rad2deg(ODD.subset_angles[0])
    theirs = iradon(lines[0, :, :, 0].T, theta=theta, filter_name=FILTERS[kernel], circle=True)[::-1]
    inside = np.hypot(*np.meshgrid(*[np.arange(65) - 32] * 2)) < 32  # theirs is 0 outside
    # The same arithmetic; the window is applied to a filter of another length. float32 here, float64 there.
    assert np.abs(ours - theirs)[inside].max() < 2e-3 * np.abs(theirs).max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_subsets_only_share_out_the_angles(kernel: str) -> None:
    lines = np.random.default_rng(0).random((1, 90, 65, 2), dtype=np.float32)
    parted = replace(ODD, subsets=6)
    order = [round(angle / np.pi * 90) for angle in parted.subset_angles.ravel()]
    whole = FilteredBackProjection(ODD, kernel)(lines)
    parts = FilteredBackProjection(parted, kernel)(lines[0, order].reshape(6, 15, 65, 2))
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * np.abs(whole).max())  # another order of sums


def test_the_ramp_has_no_offset_and_rises_to_the_nyquist_frequency() -> None:
    response = ramp(512)
    frequency = np.arange(257) / 512
    assert response[0] == pytest.approx(
        0, abs=1e-3
    )  # the kernel in space is cut: what is left is 2 / (pi^2 n)
    np.testing.assert_allclose(response[1:], frequency[1:], atol=1e-3)
    assert window("sharp", frequency).min() == 1.0
    np.testing.assert_allclose(window("standard", np.array([0, 0.5])), [1, 0], atol=1e-12)


def test_impossible_reconstructions_are_refused() -> None:
    with pytest.raises(SimulationError, match="no kernel 'soft'"):
        FilteredBackProjection(ODD, "soft")


@given(st.floats(-1000, 3000))
def test_hu_and_attenuation_are_inverse(hu: float) -> None:
    values = np.array([hu], np.float32)
    assert to_hu(to_attenuation(values))[0] == pytest.approx(hu, abs=1e-2)  # float32's seven digits
    assert to_attenuation(np.array([-2000.0], np.float32))[0] == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [32, 33, 48])
@pytest.mark.parametrize("hu", [-100.0, 0.0, 110.0])
def test_hu_come_back_without_noise(kernel: str, size: int, hu: float) -> None:
    scanner = Scanner.of_grid(size, 300 / size, 5.0, kernel=kernel)
    image = scanner.image(scanner.lines(disc(scanner, 110.0, hu), finer=True))[0]
    centred = (np.arange(size) - (size - 1) / 2) * 300 / size
    core = np.hypot(centred[:, None], centred) < 80
    # Hundreds of angles and a bin as wide as a voxel: a few HU of aliasing from an edge of 1000 HU.
    assert image[core].mean() == pytest.approx(hu, abs=2)
    assert image[core].std() < 15


@pytest.mark.parametrize("expected", [1e-4, 0.3, 1.0, 4.0, 20.0, 300.0, 990.0, 1010.0, 1e5])
def test_noise_of_lines_is_as_computed(expected: float) -> None:
    """From rays that nothing passes to those that are hardly attenuated."""
    scanner = replace(Scanner.of_grid(32, 8.0, 5.0), photons=1e6)
    line = np.log(0.1 * 1e6 / expected)
    lines = np.full((1, 1, 1, 200_000), line, np.float32)
    found = scanner.measured(np.random.default_rng(0), lines, 0.1)
    computed = scanner.variance(lines[..., :1], 0.1).item()
    # 200,000 samples: 0.5 % is about one deviation of a variance; interpolation and the first order stay below 1 %.
    assert found.var() == pytest.approx(computed, rel=0.03)
    if expected > 200:  # with fewer counts the logarithm has a bias
        first_order = (expected + ELECTRONIC_VARIANCE) / expected**2
        assert computed == pytest.approx(first_order, rel=0.03)
        assert found.mean() == pytest.approx(line, abs=5 * np.sqrt(computed / 200_000) + computed)


def test_a_line_that_nothing_passes_is_finite() -> None:
    scanner = Scanner.of_grid(32, 8.0, 5.0)
    found = scanner.measured(np.random.default_rng(0), np.full((1, 4, 4, 2), 40.0, np.float32), 0.01)
    assert np.isfinite(found).all()
    assert found.max() <= np.log(0.01 * scanner.photons) + 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_noise_of_the_image_is_that_of_its_lines(kernel: str) -> None:
    """The variance of each line times the square of its weight in a pixel, against many images."""
    scanner = replace(Scanner.of_grid(24, 12.0, 5.0, kernel=kernel), photons=2e4)
    lines = scanner.lines(disc(scanner, 120.0, 0.0), finer=True)
    units = np.eye(lines.size, dtype=np.float32).reshape(*lines.shape[:-1], lines.size)
    weights = scanner.attenuation(units)[:, 12, 15].astype(np.float64)
    expected = np.sqrt(weights**2 @ scanner.variance(lines, 0.5).ravel())
    images = scanner.attenuation(
        scanner.measured(np.random.default_rng(0), np.repeat(lines, 1000, axis=-1), 0.5)
    )
    assert images[:, 12, 15].std() == pytest.approx(expected, rel=0.1)  # 1000 images: 2 % is one sigma


@pytest.mark.parametrize("dose", [0.0, -1.0, 1.5, np.nan, np.inf])
def test_impossible_doses_are_refused(dose: float) -> None:
    scanner = Scanner.of_grid(8, 8.0, 5.0)
    lines = np.ones((1, 1, 1, 1), np.float32)
    with pytest.raises(SimulationError, match="does not exist"):
        scanner.measured(np.random.default_rng(0), lines, dose)
    with pytest.raises(SimulationError, match="does not exist"):
        scanner.variance(lines, dose)


@pytest.mark.parametrize("wrong", [{"slice_mm": 0.0}, {"photons": -1.0}, {"photons": np.inf}])
def test_impossible_scanners_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SimulationError):
        replace(Scanner.of_grid(8, 8.0, 5.0), **wrong)
