"""The quick CT study, and its page, figures and numbers put where they belong.

Run `make bench-ct-study`; docs/ct_study.md says how long it takes. Interrupted, the same goes on where it stopped.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from tgd_ct.experiment.run import run_study
from tgd_ct.experiment.settings import PROFILES, read_settings
from tgd_ct.report.page import IMAGES
from tgd_ct.report.write import write_report

ROOT = Path(__file__).parent.parent
PROFILE = "quick"


def publish(report: Path, root: Path = ROOT) -> None:
    """Copy what `write_report` left."""
    shutil.copy(report / "ct_study.md", root / "docs" / "ct_study.md")
    shutil.copytree(report / IMAGES, root / "docs" / IMAGES, dirs_exist_ok=True)
    shutil.copy(report / "results.json", root / "benchmarks" / "results" / "ct.json")


@click.command()
@click.option("--out", default="runs/ct", type=click.Path(path_type=Path), help="Folder of the study.")
def main(out: Path) -> None:
    """Run the study and publish it."""
    study = run_study(out, read_settings(PROFILES / f"{PROFILE}.yaml"))
    publish(write_report(study, PROFILE).parent)


if __name__ == "__main__":
    main()
