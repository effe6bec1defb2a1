"""What a finished study leaves to read: `report/pet.md` with its figures, and `report/results.json`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tgd_kit.runs.files import write_text
from tgd_pet.experiment.settings import Settings
from tgd_pet.report.claims import claims
from tgd_pet.report.figures import draw_figures
from tgd_pet.report.page import IMAGES, page
from tgd_pet.report.results import gather, read_results, write_results


def write_report(out: Path, settings: Settings, profile: str) -> Path:
    """Gather the results of a finished study in `out`, and write page, figures and numbers.

    Args:
        out: folder of the study.
        settings: of the study.
        profile: where they come from, as `tgd pet study --config` takes it.

    Returns:
        The page.
    """
    report = out / "report"
    found = gather(out, settings)
    tested = [{**asdict(claim), "verdict": claim.verdict} for claim in claims(found)]
    write_results(found, report / "results.json", tested)
    results = read_results(report / "results.json")  # so that the page is what the file makes
    draw_figures(out, results, report / IMAGES)
    write_text(report / "pet.md", page(results, profile))
    return report / "pet.md"
