"""A run's folder: what was asked is noted, the same goes on, anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tgd_kit.errors import RunError
from tgd_kit.runs.reserve import reserve

ASKED = {"seed": 1, "widths": (4, 4, 3), "workers": 2}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    reserve(tmp_path / "run" / "run.json", ASKED)
    return tmp_path / "run" / "run.json"


def test_what_was_asked_is_noted(record: Path) -> None:
    assert json.loads(record.read_text()) == {"seed": 1, "widths": [4, 4, 3], "workers": 2}


def test_the_same_again_writes_nothing(record: Path) -> None:
    before = record.stat().st_mtime_ns
    reserve(record, ASKED)
    assert record.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({**ASKED, "seed": 2, "workers": 1}, "another run: seed, workers differ"),
        ({**ASKED, "phi": 0.3}, "phi differ"),
        ({"seed": 1, "widths": (4, 4, 3)}, "another run"),
    ],
)
def test_anything_else_is_refused_and_the_note_stays(
    record: Path, asked: dict[str, object], words: str
) -> None:
    before = record.read_bytes()
    with pytest.raises(RunError, match=words):
        reserve(record, asked)
    assert record.read_bytes() == before


def test_what_is_free_may_change(record: Path) -> None:
    reserve(record, {**ASKED, "workers": 8}, free=("workers",))
    assert json.loads(record.read_text())["workers"] == 8


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_note_is_refused(record: Path, content: str) -> None:
    record.write_text(content)
    with pytest.raises(RunError, match="damaged"):
        reserve(record, ASKED)
