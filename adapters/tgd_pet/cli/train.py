"""`tgd pet train`: a new network from simulated patients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from lightning.pytorch.utilities import rank_zero_only

from tgd_kit.cli.options import FOLDER, RUN, schedule_options
from tgd_kit.cli.say import say
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.schedule import Schedule
from tgd_pet.cli.shared import VERSION
from tgd_pet.network import new_network
from tgd_pet.simulation.files import load_set
from tgd_pet.training.fit import fit


@click.command("train")
@click.argument("patients", type=FOLDER)
@RUN
@click.option("--images", type=VERSION, default="v1", help="Reconstruction to train on.")
@click.option("--validation", type=FOLDER, help="Patients whose error is shown after each epoch.")
@schedule_options(rate=1e-3)
def train_command(patients: Path, out: Path, images: str, validation: Path | None, **schedule: Any) -> None:
    """Train a new network on the simulated PATIENTS of a folder.

    \b
    Example:
        tgd pet train patients/train --out v1
    """
    watched = load_set(validation) if validation else ()
    network = new_network(schedule["seed"])
    fit(network, load_set(patients), images, out, Schedule(**schedule), validation=watched)
    rank_zero_only(say)(f"Wrote {out / NETWORK}")
