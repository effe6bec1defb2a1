"""Progress bars, on standard error."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress
from torch import nn

from tgd_pet.denoising import denoise
from tgd_kit.imaging.slabs import Voxels


def denoise_with_bar(network: nn.Module, volume: Voxels) -> Voxels:
    """`denoise` with a bar that counts slices."""
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("denoising slices")
        return denoise(network, volume, progress=lambda done, of: bar.update(task, completed=done, total=of))
