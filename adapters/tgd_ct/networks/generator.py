"""The denoiser of TOD-Net: eight convolutions with additive skips, in 2-D, 2.5-D and 3-D.

Axis letters: B batch, S slices, D H W the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tgd_ct.networks.attention import SelfAttention

Kind = Literal["2d", "2.5d", "3d"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SLICES: dict[Kind, int] = {"2d": 1, "2.5d": 3, "3d": 1}  # channels of the input
WIDTHS = (32, 64, 128, 256)
HU_SCALE = 400.0  # the width of the published window
HU_LIMITS = (-1024.0, 1500.0)
SLOPE = 0.2


class Generator(nn.Module):
    """Adds a correction to the image: HU in, HU out.

    Half of the convolutions widen the network, half narrow it; none changes the size of the image. An instance norm
    without weights and a leaky ReLU follow each but the last. The outputs of the widening convolutions are added to
    those of the narrowing ones, before their norms; the image is added to the last.

    The published code takes images in [0, 1] and ends with ``tanh(correction + image)``. That cannot return its input
    (tanh 1 is .76) and never reaches 1. Here the last convolution starts at zero and nothing follows the sum: an
    untrained network returns its input, and no value is out of reach. The network sees HU clipped to -1024 and 1500,
    divided by 400.

    Args:
        kind: "2d" one slice; "2.5d" three neighbouring slices in, the centre one out; "3d" a block of slices.
        widths: output channels of the widening convolutions. The default is that of the published code.
        attention: with a self-attention block at the widest place, as in SA-WGAN.

    Shapes: (B, 1, H, W), (B, 3, H, W) or (B, 1, D, H, W) in; the same with one channel out.

    Reference: Zhang et al., "Task-Oriented Low-Dose CT Image Denoising", MICCAI 2021, and its code.

    >>> network, slices = Generator(widths=(4, 4, 4, 4)).eval(), torch.randn(1, 1, 16, 16)
    >>> torch.equal(network(slices), slices)
    True
    """

    def __init__(self, kind: Kind = "2d", widths: Sequence[int] = WIDTHS, *, attention: bool = False) -> None:
        super().__init__()
        self.kind = kind
        solid = kind == "3d"
        channels = [SLICES[kind], *widths, *reversed(widths[:-1]), 1]
        pairs = list(pairwise(channels))
        self.convolutions = nn.ModuleList(
            (nn.Conv3d if solid else nn.Conv2d)(into, out, 3, padding=1) for into, out in pairs
        )
        self.norms = nn.ModuleList(
            (nn.InstanceNorm3d if solid else nn.InstanceNorm2d)(out) for _, out in pairs[:-1]
        )
        self.activation = nn.LeakyReLU(SLOPE)
        self.attention = SelfAttention(widths[-1]) if attention else None
        for parameter in self.convolutions[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Denoised images in HU from noisy ones."""
        centre = images[:, 1:2] if self.kind == "2.5d" else images
        return centre + HU_SCALE * self.correction(images.clamp(*HU_LIMITS) / HU_SCALE)

    def correction(self, scaled: Tensor) -> Tensor:
        """What to add to the image, in units of `HU_SCALE`."""
        half = len(self.convolutions) // 2
        widening: list[Tensor] = []
        maps = scaled
        for index, convolution in enumerate(self.convolutions):
            maps = convolution(maps)
            if index < half - 1:
                widening.append(maps)
            elif half <= index and widening:
                maps = maps + widening.pop()
            if index < len(self.norms):
                maps = self.activation(self.norms[index](maps))
            if index == half - 1 and self.attention is not None:
                maps = self.attention(maps)
        return maps


def new_generator(
    seed: int, kind: Kind = "2d", widths: Sequence[int] = WIDTHS, *, attention: bool = False
) -> Generator:
    """An untrained network whose weights follow from `seed`; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(kind, widths, attention=attention)


def kind_of(network: nn.Module) -> Kind:
    """Whether a denoiser takes slices, triplets or volumes, as its first convolution says."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    if isinstance(first, nn.Conv3d):
        return "3d"
    return "2d" if first.in_channels == 1 else "2.5d"
