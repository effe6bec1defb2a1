"""VoxResNet, in 2-D and 3-D."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class VoxRes(nn.Module):
    """A residual block: norm, ReLU and convolution, twice, beside the identity (figure 1b)."""

    def __init__(self, axes: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(layer for _ in range(2) for layer in (*_normed(axes, width), _convolution(axes, width, width)))
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, ...) to the same."""
        added: Tensor = maps + self.body(maps)
        return added


class VoxResNet(nn.Module):
    """Residual blocks at four sizes, each with a classifier; the sum of their scores is the result.

    Sizes 1, 1/2, 1/4 and 1/8: each strided convolution is followed by two residual blocks, and each size has its own
    transposed convolution up to the size of the image. The classifiers share the loss of their sum; the paper trains
    with those of all four besides (deep supervision).

    Args:
        classes: number of output channels.
        axes: 2 or 3; the paper's are 3.
        width: output channels of the first two convolutions; the others have twice as many. The paper has 32.

    Shapes: (B, 1, H, W) or (B, 1, D, H, W) in, each a multiple of 8; (B, classes, ...) logits out.

    Reference: Chen et al., "VoxResNet: Deep Voxelwise Residual Networks for Brain Segmentation from 3D MR Images",
    NeuroImage 2018, section 2.2 and figure 1a.

    >>> VoxResNet(3, axes=2, width=4)(torch.zeros(1, 1, 16, 24)).shape
    torch.Size([1, 3, 16, 24])
    """

    def __init__(self, classes: int, axes: int = 3, width: int = 32) -> None:
        super().__init__()
        wide = 2 * width
        first = _convolution(axes, 1, width), *_normed(axes, width), _convolution(axes, width, width)
        stages = [nn.Sequential(*first)]
        for into in (width, wide, wide):
            down = *_normed(axes, into), _convolution(axes, into, wide, stride=2)
            stages.append(nn.Sequential(*down, VoxRes(axes, wide), VoxRes(axes, wide)))
        self.stages = nn.ModuleList(stages)
        self.classifiers = nn.ModuleList(
            _classifier(axes, into, classes, 2**level) for level, into in enumerate((width, wide, wide, wide))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each class."""
        maps, scores = images, []
        for stage, classifier in zip(self.stages, self.classifiers, strict=True):
            maps = stage(maps)
            scores.append(classifier(maps))
        return torch.stack(scores).sum(0)


def _normed(axes: int, width: int) -> tuple[nn.Module, nn.Module]:
    return _BATCH_NORM[axes](width), nn.ReLU()


def _convolution(axes: int, into: int, out: int, stride: int = 1) -> nn.Module:
    return _CONVOLUTION[axes](into, out, 3, stride, padding=1)


def _classifier(axes: int, width: int, classes: int, scale: int) -> nn.Module:
    """Scores at the size of the image."""
    score = _CONVOLUTION[axes](width, classes, 1)
    if scale == 1:
        return nn.Sequential(*_normed(axes, width), score)
    up = _TRANSPOSED[axes](width, width, 2 * scale, scale, padding=scale // 2)
    return nn.Sequential(*_normed(axes, width), up, nn.ReLU(), score)
