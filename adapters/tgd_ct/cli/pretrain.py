"""`tgd ct pretrain`: a segmenter, trained on normal dose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from lightning.pytorch.utilities import rank_zero_only

from tgd_ct.case import Task
from tgd_ct.cli.shared import PATCH, TASK, dose_option
from tgd_ct.loading import load_cases
from tgd_ct.networks.segmenters import ARCHITECTURES, Architecture, new_segmenter
from tgd_ct.training.segmenter import train_segmenter
from tgd_kit.cli.options import COUNT, FOLDER, RUN, schedule_options
from tgd_kit.cli.say import say
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.schedule import Schedule


@click.command("pretrain")
@click.argument("cases", type=FOLDER)
@RUN
@TASK
@click.option("--architecture", type=click.Choice(ARCHITECTURES), default="unet", help="Of the segmenter.")
@click.option("--width", type=COUNT, default=16, help="Channels of its first layer; a V-Net has 16.")
@dose_option(1.0)
@PATCH
@schedule_options(rate=3e-3, batch=8)
def pretrain_command(
    cases: Path,
    out: Path,
    task: Task,
    architecture: Architecture,
    width: int,
    dose: float,
    patch: int,
    **schedule: Any,
) -> None:
    """Train a segmenter of an organ and its tumours on the CASES of a folder, by Dice loss and without added noise.

    CASES is a folder of `tgd ct simulate` or of `tgd ct prepare`.
    """
    network = new_segmenter(schedule["seed"], architecture, width)
    train_segmenter(network, load_cases(cases), task, out, Schedule(patch=patch, **schedule), dose=dose)
    rank_zero_only(say)(f"Wrote {out / NETWORK}")
