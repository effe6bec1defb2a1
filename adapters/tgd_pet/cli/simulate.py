"""`tgd pet simulate`: patients and their scans, into a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tgd_kit.cli.options import COUNT, FOLDER, SEED
from tgd_kit.cli.say import say
from tgd_pet.simulation.config import PatientConfig
from tgd_pet.simulation.files import simulate_set


@click.command("simulate")
@click.argument("folder", type=FOLDER)
@click.option("--patients", type=COUNT, default=8, help="Number of patients.")
@click.option("--seed", type=SEED, default=0, help="Seed of the first patient; the others count on from it.")
@click.option("--body-size", type=click.Choice(["low", "high", "mixed"]), default="mixed", help="BMI.")
@click.option("--feature", type=click.Choice(["none", "bladder", "line"]), default="none", help="Hot object.")
@click.option("--realisations", type=click.IntRange(min=0), default=0, help="Repeated short scans of each.")
@click.option("--workers", type=COUNT, default=2, help="Processes.")
def simulate_command(folder: Path, patients: int, seed: int, workers: int, **drawn: Any) -> None:
    """Simulate patients and their scans into FOLDER, each reconstructed as v1 and as v2 images.

    \b
    Example:
        tgd pet simulate patients/train --patients 20
    """
    config = replace(PatientConfig.demo(), **drawn)
    paths = simulate_set(folder, range(seed, seed + patients), config, workers=workers)
    say(f"{len(paths)} patients in {folder}")
