from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.stats import norm
from skimage.transform import radon

from tgd_kit.errors import SimulationError
from tgd_kit.simulation.projector import Projector, blur, system_matrices
from tgd_pet.simulation.geometry import Geometry, TimeOfFlight


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    subsets = draw(st.integers(1, 3))
    lengths = st.floats(2.0, 7.0)
    tof = TimeOfFlight(draw(st.integers(1, 5)), draw(st.floats(10, 40)), draw(st.floats(10, 60)))
    return Geometry(
        size=draw(st.integers(2, 9)),
        voxel_mm=draw(lengths),
        angles=subsets * draw(st.integers(1, 4)),
        bins=draw(st.integers(2, 12)),
        bin_mm=draw(lengths),
        subsets=subsets,
        rays_per_bin=draw(st.integers(1, 3)),
        tof=draw(st.sampled_from([None, tof])),
    )


def gaussian_spot(geometry: Geometry, x0: float, y0: float, sigma: float) -> np.ndarray:
    centres = (np.arange(geometry.size) - (geometry.size - 1) / 2) * geometry.voxel_mm
    spot = np.exp(-((centres - x0) ** 2 + (centres[:, None] - y0) ** 2) / (2 * sigma**2))
    return spot[None].astype(np.float32)


@given(geometries(), st.integers(0, 2**32))
def test_back_projection_is_the_adjoint(geometry: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    projector = Projector(geometry)
    image = rng.random((2, geometry.size, geometry.size), dtype=np.float32)
    for subset in range(geometry.subsets):
        data = rng.random((*geometry.sinogram_shape[1:], 2), dtype=np.float32)
        there = np.vdot(projector.forward_subset(image, subset).astype(np.float64), data)
        back = np.vdot(image.astype(np.float64), projector.back_subset(data, subset))
        # Sums of the same non-negative terms, each rounded a few hundred times by at most 6e-8 (float32).
        assert there == pytest.approx(back, rel=2e-5, abs=1e-6)


@given(geometries(), st.integers(0, 2**32))
def test_line_integrals_equal_interpolation_along_each_ray(geometry: Geometry, seed: int) -> None:
    geometry = geometry.without_tof()
    image = np.random.default_rng(seed).random((geometry.size, geometry.size), dtype=np.float32)
    found = Projector(geometry).forward(image[None])
    centre, steps = (geometry.size - 1) / 2, np.arange(geometry.size)
    along = (steps - centre) * geometry.voxel_mm
    pitch = geometry.bin_mm / geometry.rays_per_bin
    for place, angle in np.ndenumerate(geometry.subset_angles):
        for radial_bin in range(geometry.bins):
            integrals = []
            for ray in range(geometry.rays_per_bin):
                total = geometry.bins * geometry.rays_per_bin
                s = (radial_bin * geometry.rays_per_bin + ray - (total - 1) / 2) * pitch
                if abs(np.cos(angle)) >= abs(np.sin(angle)):
                    points = steps, (s - along * np.sin(angle)) / np.cos(angle) / geometry.voxel_mm + centre
                    stride = geometry.voxel_mm / abs(np.cos(angle))
                else:
                    points = (s - along * np.cos(angle)) / np.sin(angle) / geometry.voxel_mm + centre, steps
                    stride = geometry.voxel_mm / abs(np.sin(angle))
                integrals.append(stride * map_coordinates(image, points, order=1, mode="grid-constant").sum())
            # float32 weights and sums of at most 10 x 3 terms against float64 ones
            assert found[(*place, radial_bin, 0, 0)] == pytest.approx(np.mean(integrals), rel=1e-4, abs=1e-4)


def test_agrees_with_the_radon_transform_of_scikit_image() -> None:
    # An odd size, because scikit-image rotates about pixel size // 2; flipped, because its y axis points up.
    geometry = Geometry(size=65, voxel_mm=1.0, angles=36, bins=65, bin_mm=1.0, subsets=1)
    image = gaussian_spot(geometry, 9.0, -5.0, 4.0) + 0.5 * gaussian_spot(geometry, -8.0, 7.0, 5.0)
    image[image < 1e-4] = 0  # scikit-image wants nothing outside the circle
    ours = Projector(geometry).forward(image)[0, :, :, 0, 0].T
    theirs = radon(image[0, ::-1], theta=np.arange(36) * 5.0, circle=True)
    # Both interpolate linearly, scikit-image in two directions: a spot of sigma 4 pixels loses
    # about 1/12 / 4^2 = 0.5 % of its height for each.
    assert np.abs(ours - theirs).max() < 0.01 * theirs.max()


@pytest.mark.parametrize("finer", [False, True])
def test_projections_of_a_gaussian_spot(finer: bool) -> None:
    tof = TimeOfFlight(bins=5, bin_mm=20.0, fwhm_mm=30.0)
    geometry = Geometry(size=60, voxel_mm=2.0, angles=24, bins=60, bin_mm=2.0, subsets=4, tof=tof)
    geometry = geometry.finer() if finer else geometry
    x0, y0, sigma = 21.0, -14.0, 8.0
    found = Projector(geometry).forward(gaussian_spot(geometry, x0, y0, sigma))[..., 0]
    angle = geometry.subset_angles[:, :, None, None]
    s = ((np.arange(60) - 29.5) * 2.0)[:, None]
    radial = (
        np.sqrt(2 * np.pi)
        * sigma
        * np.exp(-((s - x0 * np.cos(angle) - y0 * np.sin(angle)) ** 2) / 2 / sigma**2)
    )
    edges = np.array([-np.inf, -30.0, -10.0, 10.0, 30.0, np.inf])
    spread = np.hypot(sigma, 30.0 / np.sqrt(8 * np.log(2)))
    below = norm.cdf((edges - y0 * np.cos(angle) + x0 * np.sin(angle)) / spread)
    # Linear interpolation costs 0.5 % of the height (see above), the neglected TOF tails 0.1 % per bin edge.
    assert np.abs(found - radial * np.diff(below)).max() < 0.01 * radial.max()


@given(geometries(), st.integers(0, 2**32))
def test_tof_bins_sum_to_the_whole_line(geometry: Geometry, seed: int) -> None:
    image = np.random.default_rng(seed).random((1, geometry.size, geometry.size), dtype=np.float32)
    summed = Projector(geometry).forward(image).sum(axis=3, keepdims=True)
    whole = Projector(geometry.without_tof()).forward(image)
    np.testing.assert_allclose(summed, whole, rtol=1e-5, atol=1e-5)  # float32 sums of the same terms


@given(geometries())
def test_subsets_share_out_all_angles(geometry: Geometry) -> None:
    expected = np.pi * np.arange(geometry.angles) / geometry.angles
    np.testing.assert_allclose(np.sort(geometry.subset_angles, axis=None), expected, rtol=1e-12)


def test_consecutive_subsets_are_far_apart() -> None:
    geometry = Geometry(size=4, voxel_mm=4.0, angles=24, bins=4, bin_mm=4.0, subsets=12)
    first = geometry.subset_angles[:, 0] / (np.pi / 24)
    step = np.abs(np.diff(first))
    assert np.minimum(step, 12 - step).min() >= 4 - 1e-9  # of at most 6; neighbours would be 1 apart


def test_slices_do_not_mix() -> None:
    geometry = Geometry(size=6, voxel_mm=4.0, angles=4, bins=6, bin_mm=4.0, subsets=2)
    image = np.random.default_rng(0).random((3, 6, 6), dtype=np.float32)
    together = Projector(geometry).forward(image)
    for z in range(3):
        np.testing.assert_array_equal(together[..., z : z + 1], Projector(geometry).forward(image[z : z + 1]))


def test_matrices_are_built_once() -> None:
    def geometry() -> Geometry:
        return Geometry(size=4, voxel_mm=4.0, angles=4, bins=4, bin_mm=4.0, subsets=2)

    assert system_matrices(geometry()) is system_matrices(geometry())


@pytest.mark.parametrize(
    "wrong", [{"subsets": 3}, {"size": 0}, {"bin_mm": -1.0}, {"tof": TimeOfFlight(bins=0)}]
)
def test_impossible_geometries_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SimulationError):
        Geometry(**{"size": 4, "voxel_mm": 4.0, "angles": 4, "bins": 4, "bin_mm": 4.0, "subsets": 2, **wrong})


@given(st.integers(0, 2**32), st.floats(0.0, 20.0))
def test_blur_is_its_own_adjoint_and_keeps_sums(seed: int, fwhm_mm: float) -> None:
    a, b = np.random.default_rng(seed).random((2, 3, 5, 4))
    spacing = (4.0, 2.0, np.inf)
    assert np.vdot(blur(a, fwhm_mm, spacing), b) == pytest.approx(
        np.vdot(a, blur(b, fwhm_mm, spacing)), rel=1e-12
    )
    # float64 here, so only the order of the sums differs; the infinite spacing keeps every x to itself.
    np.testing.assert_allclose(blur(a, fwhm_mm, spacing).sum(axis=(0, 1)), a.sum(axis=(0, 1)), rtol=1e-12)
