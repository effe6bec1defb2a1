"""The table of what is sent in a step is the one that was measured."""

from __future__ import annotations

import json

from benchmarks.measuring import RESULTS, markdown
from benchmarks.traffic import COLUMNS, Traffic
from tests.distributed.launching import ROOT


def test_the_page_shows_the_results():
    results = json.loads((RESULTS / "traffic.json").read_text(encoding="utf-8"))
    table = markdown(COLUMNS, [Traffic(**row).cells() for row in results["rows"]])
    assert table in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
