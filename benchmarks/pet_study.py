"""The quick PET study, and its page, figures and numbers put where they belong.

Run `make bench-pet-study`; docs/pet.md says how long it takes. Interrupted, the same goes on where it stopped.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from tgd_pet.experiment.run import run_study
from tgd_pet.experiment.settings import PROFILES, read_settings
from tgd_pet.report.page import IMAGES
from tgd_pet.report.write import write_report

ROOT = Path(__file__).parent.parent
PROFILE = "quick"


def publish(report: Path, root: Path = ROOT) -> None:
    """Copy what `write_report` left."""
    shutil.copy(report / "pet.md", root / "docs" / "pet.md")
    shutil.copytree(report / IMAGES, root / "docs" / IMAGES, dirs_exist_ok=True)
    shutil.copy(report / "results.json", root / "benchmarks" / "results" / "pet.json")


@click.command()
@click.option("--out", default="runs/pet", type=click.Path(path_type=Path), help="Folder of the study.")
def main(out: Path) -> None:
    """Run the study and publish it."""
    settings = read_settings(PROFILES / f"{PROFILE}.yaml")
    run_study(out, settings)
    publish(write_report(out, settings, PROFILE).parent)


if __name__ == "__main__":
    main()
