from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgd_kit.errors import SimulationError
from tgd_kit.simulation.grid import Grid
from tgd_kit.simulation.shapes import Organ
from tgd_pet.simulation.anatomy import LABELS, TISSUES
from tgd_pet.simulation.phantom import LESION_HOSTS, LESION_RADIUS_MM, Phantom, random_torso

GRID = Grid((24, 96, 96), (4.0, 4.5, 4.5))

torsos = st.builds(
    lambda seed, size, section: random_torso(
        np.random.default_rng(seed), GRID, body_size=size, section_mm=section
    ),
    st.integers(0, 2**32),
    st.sampled_from(["low", "high", "mixed"]),
    st.floats(-50, 50),
)


@given(st.integers(1, 9), st.floats(0.5, 9.0))
def test_grid_is_centred(n: int, spacing: float) -> None:
    z, y, x = Grid((n, n + 1, n + 2), (spacing, 1.0, 2.0)).axes()
    for axis, (count, step) in zip((z, y, x), ((n, spacing), (n + 1, 1.0), (n + 2, 2.0)), strict=True):
        assert axis.mean() == pytest.approx(0.0, abs=1e-12)
        np.testing.assert_allclose(np.diff(axis.ravel()), step, rtol=1e-9)
        assert axis.size == count


centres = st.tuples(*[st.floats(-60, 60)] * 3)
half_axes = st.tuples(st.one_of(st.floats(5, 60), st.just(np.inf)), st.floats(5, 60), st.floats(5, 60))


@given(st.builds(Organ, st.just("liver"), centres, half_axes, st.floats(2, 3), st.floats(-3, 3)))
def test_an_organ_fills_its_superellipsoid(organ: Organ) -> None:
    grid = Grid((9, 12, 14), (11.0, 9.0, 8.0))
    box, inside = organ.voxels(grid)
    filled = np.zeros(grid.shape, bool)
    filled[box] = inside
    z, y, x = (axis - c for axis, c in zip(grid.axes(), organ.centre_mm, strict=True))
    turn = np.exp(-1j * organ.turn) * (
        x + 1j * y
    )  # x to the right, y down: a positive turn takes x towards y
    a, b, c = organ.half_axes_mm
    radius = np.abs(z / a) ** organ.exponent + np.abs(turn.imag / b) ** organ.exponent
    radius = radius + np.abs(turn.real / c) ** organ.exponent
    differ = filled != (radius <= 1)
    assert not (differ & (np.abs(radius - 1) > 1e-9)).any()  # on the surface itself rounding decides


def test_the_same_seed_draws_the_same_patient() -> None:
    first, second, third = (random_torso(np.random.default_rng(seed), GRID) for seed in (5, 5, 6))
    for name in ("activity", "mu", "labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.lesions == second.lesions != third.lesions


@settings(max_examples=15)
@given(torsos)
def test_lesions_lie_inside_their_hosts_and_apart(phantom: Phantom) -> None:
    assert sum(lesion.host == "liver" for lesion in phantom.lesions) >= 2
    for lesion in phantom.lesions:
        assert LESION_RADIUS_MM[0] <= lesion.radius_mm <= LESION_RADIUS_MM[1]
        assert lesion.host in LESION_HOSTS
        inside = GRID.distance(lesion.centre_mm) <= lesion.radius_mm
        core = GRID.distance(lesion.centre_mm) <= lesion.radius_mm - max(GRID.spacing_mm)
        assert (phantom.labels[inside] == LABELS[lesion.host]).all()
        np.testing.assert_allclose(phantom.activity[core], lesion.suv, rtol=1e-6)
    for a, b in combinations(phantom.lesions, 2):
        apart = np.linalg.norm(np.subtract(a.centre_mm, b.centre_mm))
        assert apart >= a.radius_mm + b.radius_mm + 12 - 1e-3  # float32 distances


@settings(max_examples=15)
@given(torsos)
def test_tissues_have_their_uptake_and_attenuation(phantom: Phantom) -> None:
    healthy = np.ones(GRID.shape, bool)
    for lesion in phantom.lesions:
        healthy &= GRID.distance(lesion.centre_mm) > lesion.radius_mm + max(GRID.spacing_mm)
    for name, tissue in TISSUES.items():
        mask = phantom.labels == LABELS[name]
        assert (phantom.mu[mask] == np.float32(tissue.mu)).all()
        uptake = phantom.activity[mask & healthy]
        low, high = tissue.suv
        assert ((uptake >= 0.8 * low - 1e-6) & (uptake <= 1.2 * high + 1e-6)).all()  # texture is cut at 20 %


@given(st.integers(0, 2**32))
@settings(max_examples=10)
def test_a_high_bmi_makes_a_larger_body(seed: int) -> None:
    sizes = []
    for body_size in ("low", "high"):
        phantom = random_torso(np.random.default_rng(seed), GRID, body_size=body_size)
        sizes.append((phantom.labels > 0).sum())
    assert sizes[0] < sizes[1]


def test_a_small_lesion_keeps_its_volume() -> None:
    grid = Grid((40, 160, 160), (2.0, 2.5, 2.5))
    ratios = []
    for seed in range(4):
        phantom = random_torso(np.random.default_rng(seed), grid)
        for lesion in phantom.lesions:
            distance = grid.distance(lesion.centre_mm)
            shell = (distance > lesion.radius_mm + 3) & (distance < lesion.radius_mm + 6)
            around = phantom.activity[shell & (phantom.labels == LABELS[lesion.host])].mean()
            mask = distance < lesion.radius_mm + 3
            extra = (phantom.activity[mask] - around).sum() * np.prod(grid.spacing_mm)
            ratios.append(extra / ((lesion.suv - around) * 4 / 3 * np.pi * lesion.radius_mm**3))
    # A ramp one voxel wide adds (edge / 2r)^2, up to 9 % at 4 mm; neighbouring organs add or take some.
    assert np.median(ratios) == pytest.approx(1.0, abs=0.06)


def test_a_hot_bladder_and_a_hot_line_are_painted() -> None:
    bladder = random_torso(np.random.default_rng(1), GRID, section_mm=240.0, bladder_suv=60.0)
    line = random_torso(np.random.default_rng(1), GRID, line_suv=60.0)
    plain = random_torso(np.random.default_rng(1), GRID)
    assert bladder.activity[bladder.labels == LABELS["bladder"]].mean() == pytest.approx(60.0, rel=0.1)
    on_line = line.labels == LABELS["line"]
    assert on_line.any(axis=(1, 2)).all()  # it crosses every slice
    assert line.activity[on_line].min() > 25.0  # voxels at least half filled
    assert not (plain.labels == LABELS["line"]).any()
    assert plain.activity.max() < 25.0


def test_a_slab_without_room_for_a_lesion_is_refused() -> None:
    with pytest.raises(SimulationError, match="lesion"):
        random_torso(np.random.default_rng(0), Grid((2, 4, 4), (1.0, 1.0, 1.0)))


def test_an_odd_grid_is_refused() -> None:
    with pytest.raises(SimulationError, match="odd"):
        random_torso(np.random.default_rng(0), Grid((8, 63, 64), (8.0, 7.0, 7.0)))
