"""What several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from torch import nn

from tgd_ct.case import TASKS
from tgd_ct.inference import denoise
from tgd_ct.networks.files import load_extractor, load_segmenter
from tgd_ct.training.denoiser import Judges
from tgd_ct.training.losses import Weights
from tgd_kit.arrays import FloatArray
from tgd_kit.cli.options import FILE
from tgd_kit.progress import progress

TASK = click.option(
    "--task", type=click.Choice(TASKS), default="liver", help="The organ whose tumours matter."
)
PATCH = click.option(
    "--patch", type=click.IntRange(16, 2**12), default=128, help="Edge of a sample, in pixels."
)
EXTRACTOR = click.option(
    "--extractor",
    type=FILE,
    help="Of the perceptual loss: torchvision's file of VGG-19, or network.safetensors of an autoencoder's run.",
)
SEGMENTER = click.option(
    "--segmenter", type=FILE, help="Of the task loss: network.safetensors of a `tgd ct pretrain` run."
)


def dose_option(default: float) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """The dose of the images."""
    return click.option(
        "--dose",
        type=click.FloatRange(0, 1, min_open=True),
        default=default,
        help="Of the images, as a share of the normal one.",
    )


def loss_options(
    *, mse: float, gan: float, task: float
) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """How much each loss counts."""
    weight = click.FloatRange(min=0)
    options = (
        click.option("--mse", type=weight, default=mse, help="Weight of the MSE, in (400 HU)^2."),
        click.option("--gan", type=weight, default=gan, help="Weight of the critic; 0 for none."),
        click.option("--task-loss", type=weight, default=task, help="Weight of 1 - Dice of the segmenter."),
        click.option("--perceptual", type=weight, default=0.0, help="Weight of the extractor's features."),
        click.option(
            "--lipschitz",
            type=click.Choice(["clip", "penalty"]),
            default="clip",
            help="How the critic is kept smooth.",
        ),
    )

    def with_options(command: click.decorators.FC) -> click.decorators.FC:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


def denoise_with_progress(network: nn.Module, volume: FloatArray) -> FloatArray:
    """`denoise`, showing how many slices are done."""
    with progress("denoised slices", len(volume)) as task:
        return denoise(network, volume, progress=task.advance)


def losses(options: dict[str, Any]) -> Weights:
    """The weights that `loss_options` gave, taken out of all options."""
    same = {name: name for name in ("mse", "gan", "perceptual", "lipschitz")}
    names = {**same, "task_loss": "task"}
    return Weights(**{name: options.pop(option) for option, name in names.items()})


def judges(segmenter: Path | None, extractor: Path | None) -> Judges:
    """The fixed networks of the losses."""
    return Judges(
        load_segmenter(segmenter) if segmenter else None, load_extractor(extractor) if extractor else None
    )
