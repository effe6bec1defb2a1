"""docs/pet.md is what its results make, and the profile that it names is the one they came from."""

from __future__ import annotations

import re
from pathlib import Path

from tgd_pet.page import page
from tgd_pet.recipes import BASES
from tgd_pet.results import read_results
from tgd_pet.settings import PROFILES, read_settings

ROOT = Path(__file__).parents[2]
RESULTS = read_results(ROOT / "benchmarks" / "results" / "pet.json")
PAGE = (ROOT / "docs" / "pet.md").read_text(encoding="utf-8")


def profile() -> str:
    found = re.search(r"--config (\w+)", PAGE)
    assert found
    return found[1]


def test_the_page_is_made_from_its_results() -> None:
    assert page(RESULTS, profile()) == PAGE


def test_the_results_are_those_of_the_profile_as_it_is() -> None:
    assert RESULTS.settings == read_settings(PROFILES / f"{profile()}.yaml")


def test_every_row_has_all_seeds_and_patients() -> None:
    settings = RESULTS.settings
    assert len(settings.seeds) >= 5
    for name in RESULTS.networks:
        for version in ("v1", "v2"):
            values = RESULTS.values(name, version, "body.rmse")
            assert values.shape == (len(settings.seeds), settings.test)
            assert (values > 0).all()


def test_nothing_that_was_frozen_moved() -> None:
    for name in RESULTS.networks[1:]:
        if name not in BASES:
            assert RESULTS.kept(name) is not False
    assert RESULTS.kept("TGD-net") is True
