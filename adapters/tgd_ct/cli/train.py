"""`tgd ct train`: a denoiser, with or without critic and task loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from lightning.pytorch.utilities import rank_zero_only

from tgd_ct.case import Task
from tgd_ct.cli.shared import PATCH, SEGMENTER, TASK, dose_option, judges, loss_options, losses
from tgd_ct.loading import load_cases
from tgd_ct.networks.files import load_generator
from tgd_ct.networks.generator import KINDS, WIDTHS, Kind, new_generator
from tgd_ct.training.denoiser import train_denoiser
from tgd_kit.cli.options import COUNT, FILE, FOLDER, RUN, schedule_options
from tgd_kit.cli.say import say
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.schedule import Schedule


@click.command("train")
@click.argument("cases", type=FOLDER)
@RUN
@TASK
@dose_option(0.05)
@click.option("--kind", type=click.Choice(KINDS), default="2d", help="Slices, triplets of them, or blocks.")
@click.option(
    "--widths",
    type=COUNT,
    nargs=4,
    default=WIDTHS,
    help="Channels of the first four convolutions, which the next three mirror.",
)
@click.option("--attention", is_flag=True, help="With self-attention, as SA-WGAN has.")
@click.option("--start", type=FILE, help="A trained denoiser to go on with, instead of a new one.")
@SEGMENTER
@loss_options(mse=1.0, gan=0.0, task=0.0)
@PATCH
@schedule_options(rate=1e-3, batch=4)
def train_command(
    cases: Path,
    out: Path,
    task: Task,
    dose: float,
    kind: Kind,
    widths: tuple[int, ...],
    attention: bool,
    start: Path | None,
    segmenter: Path | None,
    patch: int,
    **rest: Any,
) -> None:
    """Train a denoiser on the CASES of a folder: images at --dose in, images at normal dose out.

    TOD-Net is trained in two steps: by MSE first, then from there with critic and task loss at a tenth of the rate,
    as in `tgd ct train CASES --start mse/network.safetensors --gan 1e-3 --task-loss 1e-3 --rate 1e-4 --segmenter ...`.
    """
    weights, schedule = losses(rest), Schedule(patch=patch, **rest)
    network = (
        load_generator(start) if start else new_generator(schedule.seed, kind, widths, attention=attention)
    )
    train_denoiser(
        network, load_cases(cases), dose, task, out, schedule, weights=weights, judges=judges(segmenter)
    )
    rank_zero_only(say)(f"Wrote {out / NETWORK}")
