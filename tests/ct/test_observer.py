"""The observer against what theory says it must find."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from tests.ct.cases import DOSE, disc_cases
from tgd_ct.case import ORGAN
from tgd_ct.evaluation.observer import detectability, laguerre_gauss, pairs, signal
from tgd_kit.errors import RunError


def test_channels_are_orthonormal() -> None:
    channels = laguerre_gauss(61, 14.0)
    np.testing.assert_allclose(channels @ channels.T, np.eye(len(channels)), atol=2e-3)


@pytest.mark.parametrize("contrast", [0.0, 1.0, 2.0])
def test_a_signal_of_a_channels_shape_in_white_noise(contrast: float) -> None:
    """The best observer's d' is contrast / noise, and its area under the curve follows from that."""
    random = np.random.default_rng(0)
    shape = laguerre_gauss(21, 6.0)[0].reshape(21, 21)
    absent = random.normal(0, 1, (3000, 21, 21))
    present = random.normal(0, 1, (3000, 21, 21)) + contrast * shape
    found = detectability(present.astype(np.float32), absent.astype(np.float32), 6.0)
    assert found == pytest.approx(
        norm.cdf(contrast / np.sqrt(2)), abs=0.035
    )  # 3 standard errors; both halves err alike


def test_too_few_pairs_are_refused() -> None:
    few = np.zeros((10, 9, 9), np.float32)
    with pytest.raises(RunError, match=r"10 pairs.*24 or more"):
        detectability(few, few, 3.0)


def test_a_signal_keeps_its_volume() -> None:
    case = disc_cases(1)[0]
    found = signal(8.0, 50.0, case, 2.0)
    area = found.sum() * case.spacing_mm[1] * case.spacing_mm[2]
    assert area == pytest.approx(50.0 * np.pi * 4.0**2, rel=0.01)
    assert found.shape[0] % 2 == 1
    np.testing.assert_allclose(found, found.T, atol=1e-5)
    assert np.unravel_index(found.argmax(), found.shape) == (len(found) // 2, len(found) // 2)


def test_pairs_differ_by_the_signal_alone() -> None:
    cases = disc_cases(2, size=64)
    settings = {"diameter_mm": 8.0, "contrast_hu": 40.0, "blur_mm": 2.0}
    present, absent = pairs(cases, "liver", DOSE, lambda image: image, **settings)
    added = signal(8.0, 40.0, cases[0], 2.0)
    assert len(present) == len(absent) == sum(len(case.body) for case in cases)
    np.testing.assert_allclose(present - absent, np.broadcast_to(added, present.shape), atol=1e-4)
    twice = pairs(cases, "liver", DOSE, lambda image: 2 * image, **settings)
    np.testing.assert_allclose(twice[0], 2 * present)
    assert not np.array_equal(pairs(cases, "liver", DOSE, lambda image: image, seed=1, **settings)[1], absent)


def test_signals_lie_in_the_organ_away_from_tumours() -> None:
    cases = disc_cases(2, size=64)
    for case in cases:
        case.images[DOSE][:] = case.target("liver") == ORGAN
    _, absent = pairs(
        cases, "liver", DOSE, lambda image: image, diameter_mm=4.0, contrast_hu=0.0, blur_mm=1.0
    )
    assert absent.min() == 1.0  # nothing but organ
