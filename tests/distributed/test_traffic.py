"""The table of what is sent in a step is the one that was measured."""

from __future__ import annotations

import json

from benchmarks.measuring import RESULTS
from benchmarks.traffic import Traffic, markdown
from tests.distributed.launching import ROOT


def test_the_page_shows_the_results():
    results = json.loads((RESULTS / "traffic.json").read_text(encoding="utf-8"))
    rows = [Traffic(**row) for row in results["rows"]]
    assert markdown(rows) in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
