"""`tgd pet finetune`: a trained network, adapted to simulated patients."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from tgd_kit.cli.options import FILE, FOLDER, RUN, schedule_options
from tgd_kit.cli.tuned import say_tuned
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import PHI, Flow
from tgd_pet.cli.shared import VERSION
from tgd_pet.network import load_network
from tgd_pet.simulation.files import load_set
from tgd_pet.training.finetuning import METHODS, finetune


@click.command("finetune")
@click.argument("network", type=FILE)
@click.argument("patients", type=FOLDER)
@RUN
@click.option("--method", type=click.Choice(METHODS), default="tgd", help="What is trained.")
@click.option("--phi", type=float, default=PHI, help="Threshold of TGD.")
@click.option(
    "--flow", type=click.Choice(get_args(Flow)), default="full", help="Whether gradients pass frozen maps."
)
@click.option("--images", type=VERSION, default="v2", help="Reconstruction to train on.")
@schedule_options(rate=3e-4)
def finetune_command(
    network: Path, patients: Path, out: Path, method: Any, phi: float, flow: Any, images: str, **schedule: Any
) -> None:
    """Adapt a trained NETWORK to the simulated PATIENTS of a folder.

    \b
    Example:
        tgd pet finetune v1/network.safetensors patients/few \\
            --out adapted
    """
    given, scans = load_network(network), load_set(patients)
    tuned = finetune(given, scans, images, out, Schedule(**schedule), method=method, phi=phi, flow=flow)
    say_tuned(tuned, out)
