"""`tgd pet train`: a new network from simulated studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from lightning.pytorch.utilities import rank_zero_only

from tgd_pet.cli.shared import open_studies
from tgd_kit.cli.options import FOLDER, RUN, VERSION, schedule_options
from tgd_pet.network import new_network
from tgd_kit.training.fit import Schedule, fit


@click.command("train")
@click.argument("studies", type=FOLDER)
@RUN
@click.option("--images", type=VERSION, default="v1", help="Reconstruction to train on.")
@click.option("--validation", type=FOLDER, help="Studies whose error is shown after each epoch.")
@schedule_options(rate=1e-3)
def train_command(studies: Path, out: Path, images: str, validation: Path | None, **schedule: Any) -> None:
    """Train a new network on the simulated STUDIES of a folder."""
    watched = open_studies(validation) if validation else ()
    network = new_network(schedule["seed"])
    fit(network, open_studies(studies), images, out, Schedule(**schedule), validation=watched)
    rank_zero_only(click.echo)(f"Wrote {out / 'network.safetensors'}")
