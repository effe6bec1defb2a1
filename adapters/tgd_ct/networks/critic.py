"""The critic of a Wasserstein GAN: how likely an image is one of normal dose, up to a constant."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tgd_ct.networks.generator import HU_LIMITS, HU_SCALE, SLOPE

Lipschitz = Literal["clip", "penalty"]
WIDTHS = (32, 64, 128)


class Critic(nn.Module):
    """Three convolutions, of which two halve the image, and a mean over all places.

    The published critic ends in a linear layer over 128 * 4 * 32 * 32 values and takes images of 256 x 256 x 32 only.
    Here that layer is over the mean of each of the 128 maps: any size will do.

    Args:
        axes: 2 for (B, 1, H, W), 3 for (B, 1, D, H, W), in HU.
        lipschitz: "clip" has batch norms, as published. "penalty" has group norms of one group: the penalty is on the
            gradient of each image, which batch norms would mix (Gulrajani et al., NeurIPS 2017, section 4).
        widths: output channels.

    Reference: Zhang et al., "Task-Oriented Low-Dose CT Image Denoising", MICCAI 2021, and its code.

    >>> Critic()(torch.zeros(2, 1, 40, 24)).shape
    torch.Size([2])
    """

    def __init__(
        self, axes: int = 2, lipschitz: Lipschitz = "clip", widths: tuple[int, int, int] = WIDTHS
    ) -> None:
        super().__init__()
        convolution = nn.Conv3d if axes == 3 else nn.Conv2d
        batch_norm = nn.BatchNorm3d if axes == 3 else nn.BatchNorm2d
        layers: list[nn.Module] = []
        for into, out, stride in zip((1, *widths), widths, (2, 2, 1), strict=False):
            layers += [
                convolution(into, out, 3, stride, padding=1),
                batch_norm(out) if lipschitz == "clip" else nn.GroupNorm(1, out),
                nn.LeakyReLU(SLOPE),
            ]
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """One number per image, (B,); training makes it smaller for images of normal dose."""
        maps = self.features(images.clamp(*HU_LIMITS) / HU_SCALE)
        score: Tensor = self.score(maps.flatten(2).mean(2))[:, 0]
        return score


def new_critic(seed: int, axes: int, lipschitz: Lipschitz) -> Critic:
    """An untrained critic whose weights follow from `seed`; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(axes, lipschitz)
