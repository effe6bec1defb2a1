"""What several commands share."""

from __future__ import annotations

import click
from torch import nn

from tgd_kit.arrays import FloatArray
from tgd_kit.progress import progress
from tgd_pet.denoising import denoise

VERSION = click.Choice(["v1", "v2"])


def denoise_with_progress(network: nn.Module, volume: FloatArray) -> FloatArray:
    """`denoise`, showing how many slices are done."""
    with progress("denoised slices", len(volume)) as task:
        return denoise(network, volume, progress=lambda done, _: task.advance(done - task.done))
