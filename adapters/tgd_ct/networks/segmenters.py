"""The downstream task: networks that segment an organ and its tumours in slices of CT.

Axis letters: B batch, C classes (the rest, organ, tumour), H W a slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from monai.networks.nets.unet import UNet
from monai.networks.nets.vnet import VNet
from torch import Tensor, nn

from tgd_ct.networks.voxresnet import VoxResNet

Architecture = Literal["unet", "vnet", "resunet", "voxresnet"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
CLASSES = 3
HU_WINDOW = (-200.0, 300.0)  # the published [-200, 200] would cut enhanced kidneys
MULTIPLE = 16  # of pixels, which four halvings need
_LEVELS = 4


def _unet(width: int, units: int = 0) -> nn.Module:
    channels = [width * 2**level for level in range(_LEVELS)]
    network: nn.Module = UNet(
        2, 1, CLASSES, channels, strides=[2] * (_LEVELS - 1), num_res_units=units, norm="batch"
    )
    return network


def _vnet(width: int) -> nn.Module:
    """MONAI's V-Net has 16 channels in its first layer, whatever is asked."""
    network: nn.Module = VNet(spatial_dims=2, in_channels=1, out_channels=CLASSES)
    return network


_NEW: dict[Architecture, Callable[[int], nn.Module]] = {
    "unet": _unet,
    "vnet": _vnet,
    "resunet": lambda width: _unet(width, units=2),
    "voxresnet": lambda width: VoxResNet(CLASSES, axes=2, width=width),
}


class Segmenter(nn.Module):
    """One of four networks, with the window of HU that it sees.

    Args:
        architecture: "unet" and "vnet" of MONAI; "resunet", MONAI's U-Net with two residual units per level; or
            "voxresnet".
        width: output channels of the first layer; V-Net has 16.

    Shapes: slices (B, 1, H, W) in HU, of any size, to logits (B, C, H, W).

    Reference: the four of Zhang et al., MICCAI 2021, in two dimensions.

    >>> Segmenter("unet", width=4).eval()(torch.zeros(2, 1, 20, 33)).shape
    torch.Size([2, 3, 20, 33])
    """

    def __init__(self, architecture: Architecture = "unet", width: int = 16) -> None:
        super().__init__()
        self.architecture = architecture
        self.add_module(architecture, _NEW[architecture](width))

    def forward(self, slices: Tensor) -> Tensor:
        """Logits of each class."""
        low, high = HU_WINDOW
        seen = (slices.clamp(low, high) - low) / (high - low)
        height, width = seen.shape[-2:]
        padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        padded = nn.functional.pad(seen, padding, mode="replicate")
        logits: Tensor = self.get_submodule(self.architecture)(padded)[..., :height, :width]
        return logits


def new_segmenter(seed: int, architecture: Architecture, width: int = 16) -> Segmenter:
    """An untrained segmenter whose weights follow from `seed`; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Segmenter(architecture, width)
