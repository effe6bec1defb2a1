"""`tgd pet study`: the paper's study on simulated scans, from one file of settings."""

from __future__ import annotations

from pathlib import Path

import click

from tgd_kit.cli.options import FOLDER
from tgd_kit.cli.say import say
from tgd_pet.experiment.run import run_study
from tgd_pet.experiment.settings import PROFILES, read_settings
from tgd_pet.report.write import write_report

SHIPPED = [path.stem for path in sorted(PROFILES.glob("*.yaml"))]


@click.command("study")
@click.option(
    "--config",
    default="quick",
    help=f"A YAML file of settings, or one of those shipped: {', '.join(SHIPPED)}.",
)
@click.option(
    "--out", "-o", type=FOLDER, required=True, help="Folder of the study; the same again resumes it."
)
def study_command(config: str, out: Path) -> None:
    """Simulate, train, adapt, learn online and measure, as in the TGD paper; write tables and figures.

    "quick" is what docs/pet.md shows, which says how long it took; "tiny" is for tests (its networks learn nothing
    useful); "full" has the paper's widths and has not been run. Every step leaves a file: the same command continues
    an interrupted study.

    \b
    Example:
        tgd pet study --config tiny -o runs/pet
    """
    settings = read_settings(PROFILES / f"{config}.yaml" if config in SHIPPED else Path(config))
    run_study(out, settings)
    say(f"Tables and figures: {write_report(out, settings, config)}")
