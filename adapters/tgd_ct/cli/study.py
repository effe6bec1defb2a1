"""`tgd ct study`: TOD-Net against its rivals, and adapted with TGD, from one file of settings."""

from __future__ import annotations

from pathlib import Path

import click

from tgd_ct.experiment.run import run_study
from tgd_ct.experiment.settings import PROFILES, read_settings
from tgd_ct.report.write import write_report
from tgd_kit.cli.options import FOLDER
from tgd_kit.cli.say import say

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
    """Simulate, train segmenters, find a dose with head-room, train denoisers, adapt TOD-Net with TGD, and measure.

    "quick" is for two cores; "tiny" is for tests (its networks learn nothing useful); "full" has the published sizes,
    is meant for a GPU, and has not been run. Every step leaves a file: the same command continues an interrupted study.

    \b
    Example:
        tgd ct study --config tiny -o runs/ct
    """
    settings = read_settings(PROFILES / f"{config}.yaml" if config in SHIPPED else Path(config))
    study = run_study(out, settings)
    say(f"Tables and figures: {write_report(study, config)}")
