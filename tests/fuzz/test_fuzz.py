"""Sixty mutants of each format; `make fuzz` reads ten thousand in all."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz.formats import FORMATS
from tests.fuzz.mutants import mutant
from tests.fuzz.run import fuzz

MUTANTS = 60


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused(name: str) -> None:
    found = fuzz(name, range(MUTANTS))
    assert not found.faults, "\n\n".join(found.faults)
    assert found.counts.total() == MUTANTS
    assert found.counts["refused"] > MUTANTS / 10, "the mutants do no damage"


def test_the_same_seed_makes_the_same_mutant() -> None:
    content = b'{"a": [1, 2.5, "text"], "b": {"c": null}}'
    assert [mutant(content, seed) for seed in range(99)] == [mutant(content, seed) for seed in range(99)]
    assert len({mutant(content, seed) for seed in range(99)}) > 60
