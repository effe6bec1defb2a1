"""What a finished study leaves to read: `report/ct_study.md` with its figures, and `report/results.json`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tgd_ct.experiment.run import Study
from tgd_ct.report.claims import claims
from tgd_ct.report.figures import draw_figures
from tgd_ct.report.page import IMAGES, page
from tgd_ct.report.results import gather, read_results
from tgd_kit.report.record import plain
from tgd_kit.runs.files import write_text


def write_report(study: Study, profile: str) -> Path:
    """Gather the results of a finished study, and write page, figures and numbers into its folder.

    Args:
        study: a finished one.
        profile: where its settings come from, as `tgd ct study --config` takes it.

    Returns:
        The page.
    """
    report = study.out / "report"
    results = gather(study)
    tested = [{**asdict(claim), "verdict": claim.verdict} for claim in claims(results)]
    whole = {"claims": tested, **asdict(results)}
    text = json.dumps(plain(whole), separators=(",", ":"), allow_nan=False)
    write_text(report / "results.json", text + "\n")
    draw_figures(study.out, results, report / IMAGES)
    # Of the numbers as they are written, so that the page can be made from them again.
    write_text(report / "ct_study.md", page(read_results(report / "results.json"), profile))
    return report / "ct_study.md"
