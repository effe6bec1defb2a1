"""Spreads and paired tests against scipy and numpy on plain lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tgd_kit.report.claims import Claim
from tgd_kit.report.markdown import interval, spread
from tgd_kit.report.statistics import Difference, compare, summarise


@given(st.integers(0, 999), st.integers(2, 5), st.integers(2, 8))
def test_pairs_are_patients_or_seeds(seed: int, seeds: int, patients: int) -> None:
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(2, seeds, patients))
    for over, axis in (("patients", 0), ("seeds", 1)):
        found = compare(first, second, over)
        paired = stats.ttest_rel(first.mean(axis=axis), second.mean(axis=axis))
        low, high = paired.confidence_interval()
        expected = (first - second).mean(), low, high, paired.pvalue
        assert (found.mean, found.low, found.high, found.p) == pytest.approx(expected, abs=1e-12)
        assert found.n == (patients if over == "patients" else seeds)
        assert bool(found.sign) == (paired.pvalue < 0.05)
        assert found.sign in (0, np.sign(found.mean))


@given(st.integers(0, 999), st.integers(2, 4), st.integers(2, 3))
def test_seeds_of_one_base_do_not_narrow_the_interval(seed: int, bases: int, repeats: int) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, bases, 4))
    single = compare(first, second, "seeds")
    copies = [np.tile(values, (repeats, 1)) for values in (first, second)]
    numbers = list(range(bases)) * repeats
    merged = compare(*copies, "seeds", numbers)
    assert merged.n == single.n == bases
    assert (merged.low, merged.high, merged.p) == pytest.approx((single.low, single.high, single.p))
    assert compare(*copies, "patients", numbers) == compare(*copies)
    pretended = compare(*copies, "seeds")  # what it guards against
    assert pretended.high - pretended.low < merged.high - merged.low


def test_a_patient_without_a_value_does_not_count() -> None:
    table = [[1.0, np.nan, 3.0], [2.0, np.nan, 6.0]]
    found = summarise(table)
    assert found == summarise([[1.0, 3.0], [2.0, 6.0]])
    assert (found.mean, found.over_seeds) == (3.0, pytest.approx(np.sqrt(2)))
    assert summarise([[np.nan], [2.0], [4.0]]).mean == 3.0
    assert np.isnan(summarise([[np.nan]]).mean)


def test_the_same_value_again_has_no_spread() -> None:
    found = summarise([[0.1, 0.7]] * 3)
    assert found.over_seeds == 0.0
    assert spread(found, ".2f") == "0.40"


def test_one_pair_has_no_interval() -> None:
    found = compare([[1.0]], [[0.5]])
    assert found.mean == 0.5
    assert np.isnan(found.low)
    assert found.sign is None
    assert interval(found, ".1f") == "0.5"
    assert spread(summarise([[1.0]]), ".1f") == "1.0"


ABOVE, BELOW, BOTH, NONE = (
    Difference(0.5 * (low + high), low, high, 0.5, 4)
    for low, high in ((0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3), (np.nan, np.nan))
)


@pytest.mark.parametrize(
    ("found", "sign", "verdict"),
    [
        ((ABOVE, ABOVE), 1, "holds"),
        ((ABOVE, ABOVE), -1, "does not hold"),
        ((BELOW, BELOW), -1, "holds"),
        ((ABOVE, BOTH), 1, "not shown"),
        ((ABOVE, BELOW), 1, "not shown"),
        ((ABOVE, NONE), 1, "holds"),  # networks that all seeds share
        ((NONE, NONE), 1, "not shown"),
        ((BELOW,), 1, "does not hold"),
    ],
)
def test_verdicts(found: tuple[Difference, ...], sign: int, verdict: str) -> None:
    assert Claim("", "", found, sign, ".1f").verdict == verdict


@pytest.mark.parametrize(
    ("found", "sign", "margin", "verdict"),
    [
        (BOTH, 1, 0.2, "holds"),
        (BOTH, 1, 0.05, "not shown"),
        (BOTH, -1, 0.4, "holds"),
        (ABOVE, -1, 0.4, "holds"),
        (ABOVE, -1, 0.2, "not shown"),
        (ABOVE, -1, 0.05, "does not hold"),
        (BELOW, 1, 0.05, "does not hold"),
        (NONE, 1, 0.4, "not shown"),
    ],
)
def test_what_only_has_to_be_no_worse_has_a_margin(
    found: Difference, sign: int, margin: float, verdict: str
) -> None:
    assert Claim("", "", (found,), sign, ".1f", margin=margin).verdict == verdict


def test_networks_that_did_not_learn_show_nothing() -> None:
    assert Claim("", "", (ABOVE,), 1, ".1f", idle="N2N learnt in 1 of 5").verdict == "not shown"
