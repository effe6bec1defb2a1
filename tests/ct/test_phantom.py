"""Random abdomens: tissues in HU, tumours where and as they are promised, label maps of both tasks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgd_ct.case import ORGAN, TASKS, TUMOUR, Task
from tgd_ct.simulation.anatomy import LABELS, TISSUES
from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.patient import SECTION_MM
from tgd_ct.simulation.phantom import TISSUES_OF, TUMOUR_GAP_MM, Phantom, Tumours, random_abdomen
from tgd_kit.errors import SimulationError
from tgd_kit.simulation.grid import Grid
from tgd_kit.simulation.shapes import Tube

GRID = Grid((16, 96, 96), (4.0, 4.0, 4.0))

abdomens = st.builds(
    lambda seed, size, section: random_abdomen(
        np.random.default_rng(seed), GRID, body_size=size, section_mm=section
    ),
    st.integers(0, 2**32),
    st.sampled_from(["low", "high", "mixed"]),
    st.floats(*SECTION_MM),
)


def organ(phantom: Phantom, task: Task) -> np.ndarray:
    return np.isin(phantom.labels, [LABELS[tissue] for tissue in TISSUES_OF[task]])


@settings(max_examples=15)
@given(abdomens)
def test_both_organs_are_in_view_with_one_to_four_tumours(phantom: Phantom) -> None:
    for task in TASKS:
        assert 1 <= sum(tumour.task == task for tumour in phantom.tumours) <= 4
        target = phantom.target(task)
        assert (target.dtype, set(np.unique(target))) == (np.uint8, {0, ORGAN, TUMOUR})
        volume_ml = (target > 0).sum() * 8 * 64 / 1000  # 8 voxels of 4 mm
        assert volume_ml > {"liver": 200, "kidney": 30}[task]


@settings(max_examples=15)
@given(abdomens)
def test_tumours_lie_inside_their_organ_and_apart(phantom: Phantom) -> None:
    for tumour in phantom.tumours:
        inside = GRID.distance(tumour.centre_mm) <= tumour.radius_mm
        assert organ(phantom, tumour.task)[inside].all()
        assert 2.5 <= tumour.radius_mm <= 12.5
        assert 40 <= abs(tumour.contrast_hu) <= 80
    for task in TASKS:
        first = next(tumour for tumour in phantom.tumours if tumour.task == task)
        assert first.radius_mm > (7.5 if task == "liver" else 4)  # half of what fits; the kidneys are thin
    for a, b in combinations(phantom.tumours, 2):
        if a.task == b.task:
            apart = np.linalg.norm(np.subtract(a.centre_mm, b.centre_mm))
            assert apart >= a.radius_mm + b.radius_mm + TUMOUR_GAP_MM - 1e-3  # float32 distances


@settings(max_examples=15)
@given(abdomens)
def test_tissues_have_their_hu(phantom: Phantom) -> None:
    healthy = np.ones(GRID.shape, bool)
    for tumour in phantom.tumours:
        healthy &= GRID.distance(tumour.centre_mm) > tumour.radius_mm + max(GRID.spacing_mm)
    for name, (low, high) in TISSUES.items():
        values = phantom.hu[healthy & (phantom.labels == LABELS[name])]
        # Two textures of 5 HU each: six deviations of their sum, and none in air.
        spread = 0 if name == "air" else 6 * 5 * np.sqrt(2)
        assert ((values >= max(low - spread, -1000)) & (values <= high + spread)).all(), name
    assert phantom.hu.dtype == np.float32


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32))
def test_every_patient_of_the_quick_size_has_both_organs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    phantom = random_abdomen(rng, PatientConfig.quick().phantom_grid(), section_mm=rng.uniform(*SECTION_MM))
    assert {tumour.task for tumour in phantom.tumours} == set(TASKS)
    for tumour in phantom.tumours:
        assert (phantom.target(tumour.task) == TUMOUR).any()


def test_a_tumour_has_its_contrast_and_keeps_its_volume() -> None:
    grid = Grid((40, 128, 128), (2.0, 3.0, 3.0))
    contrasts, volumes = [], []
    for seed in range(8):
        phantom = random_abdomen(np.random.default_rng(seed), grid, tumours=Tumours((10, 25), (60, 60), 0.0))
        for tumour in phantom.tumours:
            distance = grid.distance(tumour.centre_mm)
            tissue = phantom.labels == LABELS[tumour.task]
            around = tissue & (distance > tumour.radius_mm + 4) & (distance < tumour.radius_mm + 10)
            core = distance < tumour.radius_mm - 3
            contrasts.append(phantom.hu[core].mean() - np.median(phantom.hu[around]))
            voxels = (phantom.target(tumour.task) == TUMOUR)[grid.coarser().distance(tumour.centre_mm) < 20]
            volumes.append(voxels.sum() * 8 * 18 / (4 / 3 * np.pi * tumour.radius_mm**3))
    assert np.mean(contrasts) == pytest.approx(-60, abs=3)  # texture of 7 HU, correlated over 9 mm
    # Voxels of 4 x 6 x 6 mm whose centre is in the tumour; a neighbour within 20 mm adds to some.
    assert np.median(volumes) == pytest.approx(1.0, abs=0.1)


def test_hyperdense_tumours_are_as_frequent_as_asked() -> None:
    for share in (0.0, 1.0):
        phantom = random_abdomen(np.random.default_rng(1), GRID, tumours=Tumours(hyperdense=share))
        assert all((tumour.contrast_hu > 0) == (share == 1.0) for tumour in phantom.tumours)


def test_the_same_seed_draws_the_same_patient() -> None:
    first, second, third = (random_abdomen(np.random.default_rng(seed), GRID) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.hu, second.hu)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.tumours == second.tumours != third.tumours


def test_vessels_run_through_the_liver_alone() -> None:
    phantom = random_abdomen(np.random.default_rng(0), GRID)
    vessels = (phantom.labels == LABELS["liver vessel"]).sum()
    assert 0.001 < vessels / organ(phantom, "liver").sum() < 0.2
    assert (phantom.target("liver")[phantom.target("kidney") > 0] == 0).all()


def test_a_tube_is_as_wide_as_it_says() -> None:
    grid = Grid((40, 40, 40), (1.0, 1.0, 1.0))
    box, inside = Tube((-15.0, 0.0, 0.0), (15.0, 0.0, 0.0), (6.0, 2.0)).voxels(grid)
    filled = np.zeros(grid.shape, bool)
    filled[box] = inside
    areas = filled.sum(axis=(1, 2))
    for z, radius in ((-10.5, 5.4), (0.5, 3.93), (10.5, 2.6)):
        # A disc of voxels of 1 mm: about half of those on its circle are miscounted either way.
        assert areas[int(z + 19.5)] == pytest.approx(np.pi * radius**2, abs=2 * radius)
    assert not filled[:, :10].any()


def test_a_slab_without_room_for_a_tumour_is_refused() -> None:
    with pytest.raises(SimulationError, match="No tumour fits into the liver"):
        random_abdomen(np.random.default_rng(0), GRID, section_mm=250.0)
    with pytest.raises(SimulationError, match="odd"):
        random_abdomen(np.random.default_rng(0), Grid((8, 63, 64), (8.0, 7.0, 7.0)))


@pytest.mark.parametrize(
    "wrong", [{"diameter_mm": (0, 5)}, {"contrast_hu": (80, 40)}, {"hyperdense": 1.5}, {"hyperdense": -0.1}]
)
def test_impossible_tumours_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SimulationError):
        Tumours(**wrong)
