from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tgd_kit.errors import SimulationError
from tgd_kit.simulation.grid import Grid
from tgd_kit.simulation.projector import Projector, blur
from tgd_pet.simulation.acquisition import Acquisition, Scanner, acquire, split_halves, thin
from tgd_pet.simulation.geometry import Geometry, TimeOfFlight
from tgd_pet.simulation.phantom import Phantom, random_torso

GEOMETRY = Geometry(size=32, voxel_mm=14.0, angles=24, bins=32, bin_mm=14.0, subsets=4, tof=TimeOfFlight())
SCANNER = Scanner(GEOMETRY, slice_mm=12.0, resolution_mm=15.0)
SLICES = 4

counts = arrays(np.int32, array_shapes(max_dims=3, max_side=5), elements=st.integers(0, 10_000))
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return random_torso(np.random.default_rng(3), SCANNER.phantom_grid(SLICES))


@pytest.fixture(scope="module")
def acquisition(phantom: Phantom) -> Acquisition:
    return acquire(np.random.default_rng(4), phantom, SCANNER, prompts_per_slice=1e5)


def test_prompts_scatter_and_randoms_have_their_shares(acquisition: Acquisition) -> None:
    assert acquisition.counts.shape == (*GEOMETRY.sinogram_shape, SLICES)
    prompts = 1e5 * SLICES
    assert acquisition.counts.sum() == pytest.approx(prompts, abs=5 * np.sqrt(prompts))  # five sigma
    background = prompts * (0.2 + 0.8 * 0.3)
    # float32 sums of 1e5 terms
    assert acquisition.background.sum(dtype=np.float64) == pytest.approx(background, rel=1e-4)
    assert acquisition.background.min() >= prompts * 0.2 / acquisition.counts.size * (1 - 1e-5)


def test_factors_are_sensitivity_times_attenuation(phantom: Phantom, acquisition: Acquisition) -> None:
    outside, centre = acquisition.factors[:, :, 0], acquisition.factors[:, :, 15:17]
    np.testing.assert_array_equal(outside, outside.max())  # lines past the body are not attenuated
    # Through 15 to 40 cm of body, 0.0029 (lung) to 0.0125 (bone) per mm.
    assert centre.max() < outside.max() * np.exp(-150 * 0.0029)
    assert centre.min() > outside.max() * np.exp(-400 * 0.0125)


def test_counts_follow_the_model_the_reconstruction_is_told(phantom: Phantom) -> None:
    found = acquire(np.random.default_rng(0), phantom, SCANNER, prompts_per_slice=1e9)
    seen = blur(phantom.activity, SCANNER.resolution_mm, phantom.spacing_mm)
    seen = seen.reshape(SLICES, 2, *seen.shape[1:]).mean(axis=1)
    expected = found.factors * Projector(GEOMETRY.finer()).forward(seen) + found.background
    deviation = (found.counts - expected) / np.sqrt(expected)
    # 4e5 Poisson deviates: unit variance to 1 % is more than four sigma, six sigma none of them passes.
    assert deviation.std() == pytest.approx(1.0, abs=0.01)
    assert np.abs(deviation).max() < 6.0


def test_scatter_is_smooth_and_follows_the_body(phantom: Phantom) -> None:
    clean = replace(SCANNER, scatter_fraction=0.0)
    randoms = acquire(np.random.default_rng(0), phantom, clean, prompts_per_slice=1e5).background
    np.testing.assert_allclose(randoms, randoms.mean(), rtol=1e-5)  # one value, up to its float32 mean
    both = acquire(np.random.default_rng(0), phantom, SCANNER, prompts_per_slice=1e5).background
    scatter = both - both.min()
    along_bins = scatter.mean(axis=(0, 1, 3, 4))
    assert 8 <= along_bins.argmax() <= 23  # the middle half
    assert np.abs(np.diff(along_bins)).max() < 0.15 * along_bins.max()  # sigma is 3.6 bins: slope below 0.17


def test_a_scanner_without_tof_works(phantom: Phantom) -> None:
    scanner = replace(SCANNER, geometry=GEOMETRY.without_tof())
    assert acquire(np.random.default_rng(0), phantom, scanner, prompts_per_slice=1e4).counts.shape[3] == 1


@given(counts, st.floats(0, 1), seeds)
def test_thinning_only_takes_away(original: np.ndarray, fraction: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    thinned = thin(original, fraction, rng)
    assert thinned.dtype == np.int32
    assert ((thinned >= 0) & (thinned <= original)).all()
    np.testing.assert_array_equal(thin(original, 1.0, rng), original)
    np.testing.assert_array_equal(thin(original, 0.0, rng), np.zeros_like(original))


@given(counts, seeds)
def test_halves_sum_to_the_whole(original: np.ndarray, seed: int) -> None:
    first, second = split_halves(original, np.random.default_rng(seed))
    np.testing.assert_array_equal(first + second, original)
    assert min(first.min(), second.min()) >= 0


def test_thinned_poisson_counts_are_poisson_and_halves_independent() -> None:
    rng = np.random.default_rng(7)
    n = 200_000
    original = rng.poisson(20.0, n).astype(np.int32)
    thinned = thin(original, 0.1, rng)
    # Five sigma: Var(mean) = 2 / n; the fourth central moment is 14, so Var(variance) = (14 - 2^2) / n.
    assert thinned.mean() == pytest.approx(2.0, abs=5 * np.sqrt(2 / n))
    assert thinned.var() == pytest.approx(2.0, abs=5 * np.sqrt(10 / n))
    first, second = split_halves(original, rng)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)
    assert np.corrcoef(first, original)[0, 1] > 0.5  # the yardstick can tell: this one is 0.71


@pytest.mark.parametrize("fraction", [-0.1, 1.1, np.nan])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(SimulationError):
        thin(np.ones(3, np.int32), fraction, np.random.default_rng(0))


def test_parts_scale_what_the_reconstruction_is_told(acquisition: Acquisition) -> None:
    part = acquisition.thinned(0.25, np.random.default_rng(0))
    np.testing.assert_array_equal(part.factors, acquisition.factors * np.float32(0.25))
    np.testing.assert_array_equal(part.background, acquisition.background * np.float32(0.25))
    first, second = acquisition.halves(np.random.default_rng(0))
    np.testing.assert_array_equal(first.counts + second.counts, acquisition.counts)
    np.testing.assert_array_equal(first.factors, acquisition.factors * np.float32(0.5))


def test_realisations_are_disjoint(acquisition: Acquisition) -> None:
    scans = acquisition.realisations(10, 0.1, np.random.default_rng(0))
    np.testing.assert_array_equal(sum(scan.counts for scan in scans), acquisition.counts)
    for scan in scans:
        events = acquisition.counts.sum() * 0.1
        assert scan.counts.sum() == pytest.approx(events, abs=5 * np.sqrt(events))
        np.testing.assert_array_equal(scan.factors, acquisition.factors * np.float32(0.1))
    with pytest.raises(SimulationError):
        acquisition.realisations(11, 0.1, np.random.default_rng(0))


def test_without_tof_keeps_every_event(acquisition: Acquisition) -> None:
    summed = acquisition.without_tof()
    np.testing.assert_array_equal(summed.counts[:, :, :, 0], acquisition.counts.sum(axis=3))
    np.testing.assert_allclose(summed.background[:, :, :, 0], acquisition.background.sum(axis=3), rtol=1e-5)
    np.testing.assert_array_equal(summed.factors, acquisition.factors)


def test_a_phantom_on_another_grid_is_refused(phantom: Phantom) -> None:
    elsewhere = replace(phantom, spacing_mm=(6.0, 7.0, 6.5))
    with pytest.raises(SimulationError, match="grid"):
        acquire(np.random.default_rng(0), elsewhere, SCANNER, prompts_per_slice=1e4)


def test_a_phantom_without_activity_is_refused(phantom: Phantom) -> None:
    cold = replace(phantom, activity=np.zeros_like(phantom.activity))
    with pytest.raises(SimulationError, match="activity"):
        acquire(np.random.default_rng(0), cold, SCANNER, prompts_per_slice=1e4)


@pytest.mark.parametrize("wrong", [{"scatter_fraction": 1.0}, {"randoms_fraction": -0.1}])
def test_impossible_scanners_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SimulationError):
        replace(SCANNER, **wrong)


def test_the_simulation_grid_is_twice_as_fine() -> None:
    assert SCANNER.phantom_grid(SLICES) == Grid((8, 64, 64), (6.0, 7.0, 7.0))
    assert SCANNER.phantom_grid(SLICES).coarser() == Grid((SLICES, 32, 32), SCANNER.spacing_mm)
