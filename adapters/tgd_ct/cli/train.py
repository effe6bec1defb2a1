"""`tgd ct train`: a denoiser, with or without critic and task loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from lightning.pytorch.utilities import rank_zero_only

from tgd_ct.case import Task
from tgd_ct.cli.shared import EXTRACTOR, PATCH, SEGMENTER, TASK, dose_option, judges, loss_options, losses
from tgd_ct.loading import load_cases
from tgd_ct.networks.files import load_generator, load_segmenter
from tgd_ct.networks.generator import KINDS, WIDTHS, Generator, Kind, new_generator
from tgd_ct.networks.segmenters import Segmenter
from tgd_ct.training.denoiser import train_denoiser
from tgd_ct.training.joint import train_jointly
from tgd_ct.training.losses import Weights
from tgd_kit.cli.options import COUNT, FILE, FOLDER, RUN, schedule_options
from tgd_kit.cli.say import say
from tgd_kit.errors import RunError
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.weights import save_weights


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
@EXTRACTOR
@click.option("--joint", is_flag=True, help="Train the segmenter along, by MSE and task loss.")
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
    extractor: Path | None,
    joint: bool,
    patch: int,
    **rest: Any,
) -> None:
    """Train a denoiser on the CASES of a folder: images at --dose in, images at normal dose out.

    TOD-Net is trained in two steps: by MSE first, then from there with critic and task loss at a tenth of the rate.

    \b
    Example:
        tgd ct train patients/train --out mse --dose 0.05
        tgd ct train patients/train --out tod --dose 0.05 \\
            --start mse/network.safetensors --rate 1e-4 --gan 1e-3 \\
            --task-loss 1e-2 --segmenter unet/network.safetensors
    """
    weights, schedule = losses(rest), Schedule(patch=patch, **rest)
    network = (
        load_generator(start) if start else new_generator(schedule.seed, kind, widths, attention=attention)
    )
    if joint:
        moving = _segmenter_to_move(segmenter, weights)
        train_jointly(
            network,
            moving,
            load_cases(cases),
            dose,
            task,
            out,
            schedule,
            task_weight=weights.task / weights.mse,
        )
        _save_both(network, moving, out)
        return
    fixed = judges(segmenter, extractor)
    train_denoiser(network, load_cases(cases), dose, task, out, schedule, weights=weights, judges=fixed)
    rank_zero_only(say)(f"Wrote {out / NETWORK}")


def _segmenter_to_move(segmenter: Path | None, weights: Weights) -> Segmenter:
    """That of a joint training, which knows two losses."""
    if segmenter is None or not (weights.task and weights.mse) or weights.gan or weights.perceptual:
        raise RunError(
            "--joint trains by MSE and task loss, with a segmenter to begin with.",
            "Give --segmenter and --task-loss, and leave out --gan and --perceptual.",
        )
    return load_segmenter(segmenter)


@rank_zero_only
def _save_both(denoiser: Generator, segmenter: Segmenter, out: Path) -> None:
    """Both networks in files of their own, as the other commands take them."""
    for name, network in (("denoiser", denoiser), ("segmenter", segmenter)):
        save_weights(network, out / name / NETWORK)
        say(f"Wrote {out / name / NETWORK}")
