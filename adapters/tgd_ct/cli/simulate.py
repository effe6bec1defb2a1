"""`tgd ct simulate`: patients and their scans at every dose, into a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from tgd_ct.simulation.config import PatientConfig
from tgd_ct.simulation.files import PARTS, Part, part_seeds, simulate_set
from tgd_kit.cli.options import COUNT, FOLDER, SEED
from tgd_kit.cli.say import say
from tgd_kit.simulation.fbp import KERNELS, Kernel
from tgd_kit.simulation.torso import BodySize

SIZES = {"quick": PatientConfig.quick, "full": PatientConfig.full, "tiny": PatientConfig.tiny}


@click.command("simulate")
@click.argument("folder", type=FOLDER)
@click.option("--patients", type=COUNT, default=8, help="Number of patients.")
@click.option(
    "--part", type=click.Choice(PARTS), default="train", help="What they are for; no patient is in two."
)
@click.option(
    "--seed", type=SEED, default=0, help="Number of the first patient of the part; others count on."
)
@click.option(
    "--size",
    type=click.Choice(list(SIZES)),
    default="quick",
    help="Of the images: quick has 16 slices of 128 x 128 voxels, full 32 of 256 x 256.",
)
@click.option("--kernel", type=click.Choice(KERNELS), default="standard", help="Of the reconstruction.")
@click.option("--body-size", type=click.Choice(["low", "high", "mixed"]), default="mixed", help="BMI.")
@click.option("--workers", type=COUNT, default=2, help="Processes.")
def simulate_command(
    folder: Path,
    patients: int,
    part: Part,
    seed: int,
    size: str,
    kernel: Kernel,
    body_size: BodySize,
    workers: int,
) -> None:
    """Simulate patients with tumours in liver and kidneys into FOLDER, each scanned at 100 to 1 % of the dose.

    \b
    Example:
        tgd ct simulate patients/train --patients 40
    """
    config = SIZES[size]()
    config = replace(config, scanner=replace(config.scanner, kernel=kernel), body_size=body_size)
    paths = simulate_set(folder, part_seeds(part, seed, patients), config, workers=workers)
    say(f"{len(paths)} patients in {folder}")
