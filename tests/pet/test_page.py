"""docs/pet.md is what its results make, and the profile that it names is the one they came from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tgd_kit.report.statistics import PAIRS
from tgd_pet.experiment.recipes import BASES
from tgd_pet.experiment.settings import PROFILES, read_settings
from tgd_pet.report.page import page
from tgd_pet.report.results import StudyResults, read_results

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pet.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return read_results(ROOT / "benchmarks" / "results" / "pet.json")


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
    assert len(settings.seeds) >= 5
    for name in results.networks:
        for version in ("v1", "v2"):
            values = results.values(name, version, "body.rmse")
            assert values.shape == (len(settings.seeds), settings.test)
            assert (values > 0).all()


def test_nothing_that_was_frozen_moved(results: StudyResults) -> None:
    for name in results.networks[1:]:
        if name not in BASES:
            assert results.kept(name) is not False
    assert results.kept("TGD-net") is True


def test_the_premise_holds(results: StudyResults) -> None:
    """A network of v1 images underestimates lesions on v2 images, or there is nothing to adapt to."""
    for over in PAIRS:
        assert results.difference("v1-net", "v2-net", "v2", "bias", over).high < 0


def test_seeds_are_independent(results: StudyResults) -> None:
    assert len(results.settings.used_bases) == len(results.settings.seeds)
