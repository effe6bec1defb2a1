"""docs/ct_study.md is what its results make, and the profile that it names is the one they came from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tgd_ct.experiment.recipes import NORMAL_DOSE
from tgd_ct.experiment.settings import PROFILES, read_settings
from tgd_ct.report.page import page
from tgd_ct.report.results import StudyResults, read_results

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ct_study.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return read_results(ROOT / "benchmarks" / "results" / "ct.json")


def profile() -> str:
    found = re.search(r"--config (\w+)", PAGE)
    assert found
    return found[1]


def test_the_page_is_made_from_its_results(results: StudyResults) -> None:
    assert page(results, profile()) == PAGE


def test_the_results_are_those_of_the_profile_as_it_is(results: StudyResults) -> None:
    assert results.settings == read_settings(PROFILES / f"{profile()}.yaml")


def test_every_row_has_all_seeds_and_patients(results: StudyResults) -> None:
    settings = results.settings
    assert len(settings.seeds) >= 3
    for task in settings.tasks:
        for row in results.rows:
            values = results.values(task, row, "low", "dice.unet.organ")
            assert values.shape == (len(settings.seeds), settings.test)
            assert np.isfinite(values).all()


def test_the_segmenters_were_good_enough_and_there_was_head_room(results: StudyResults) -> None:
    settings = results.settings
    for task in settings.tasks:
        found = results.validated[task][settings.doses[0]][NORMAL_DOSE]
        for part, least in (("organ", settings.least_organ), ("tumour", settings.least_tumour)):
            assert np.mean([patient[part] for patient in found if patient[part] is not None]) >= least
        assert results.choices[task].headroom


def test_nothing_that_was_frozen_moved(results: StudyResults) -> None:
    for change in results.changes:
        assert results.kept(change, "tgd") is True


def test_the_guide_says_what_came_out(results: StudyResults) -> None:
    """The prose of docs/ct.md has no numbers; its sentences are these."""
    for change in results.changes:
        ours = results.adapted_values(change, "tgd", "new", "quality.body.rmse").mean()
        for method in ("full", "last3", "lora"):
            assert ours > results.adapted_values(change, method, "new", "quality.body.rmse").mean()
    for task in results.settings.tasks:
        dices = {row: results.summary(task, row, "normal", "dice.unet.tumour").mean for row in results.rows}
        others = [dices[row] for row in results.rows if row not in ("low dose", NORMAL_DOSE, "TOD-Net")]
        assert max(others) < dices["TOD-Net"] < dices[NORMAL_DOSE]
