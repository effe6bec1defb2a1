"""`tgd ct pretrain`: a segmenter, or the extractor of a perceptual loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click
from lightning.pytorch.utilities import rank_zero_only

from tgd_ct.case import Task
from tgd_ct.cli.shared import PATCH, TASK, dose_option
from tgd_ct.loading import load_cases
from tgd_ct.networks.extractors import new_autoencoder
from tgd_ct.networks.segmenters import ARCHITECTURES, Architecture, new_segmenter
from tgd_ct.training.extractor import train_extractor
from tgd_ct.training.segmenter import train_segmenter
from tgd_kit.cli.options import COUNT, FOLDER, RUN, schedule_options
from tgd_kit.cli.say import say
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.schedule import Schedule

AUTOENCODER: Literal["autoencoder"] = "autoencoder"


@click.command("pretrain")
@click.argument("cases", type=FOLDER)
@RUN
@TASK
@click.option(
    "--architecture",
    type=click.Choice([*ARCHITECTURES, AUTOENCODER]),
    default="unet",
    help="Of the segmenter; the autoencoder is an extractor for a perceptual loss.",
)
@click.option("--width", type=COUNT, default=16, help="Channels of its first layer; a V-Net has 16.")
@dose_option(1.0)
@PATCH
@schedule_options(rate=3e-3, batch=8)
def pretrain_command(
    cases: Path,
    out: Path,
    task: Task,
    architecture: Architecture | Literal["autoencoder"],
    width: int,
    dose: float,
    patch: int,
    **rest: Any,
) -> None:
    """Train a segmenter of an organ and its tumours on the CASES of a folder, by Dice loss and without added noise.

    An extractor is trained to return the images of normal dose. CASES is a folder of `tgd ct simulate` or of
    `tgd ct prepare`.

    \b
    Example:
        tgd ct pretrain patients/train --out unet
    """
    schedule = Schedule(patch=patch, **rest)
    if architecture == AUTOENCODER:
        train_extractor(new_autoencoder(schedule.seed, width), load_cases(cases), task, out, schedule)
    else:
        network = new_segmenter(schedule.seed, architecture, width)
        train_segmenter(network, load_cases(cases), task, out, schedule, dose=dose)
    rank_zero_only(say)(f"Wrote {out / NETWORK}")
