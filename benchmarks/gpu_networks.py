"""Networks for `benchmarks/gpu.py`: two that are written out, so that a plain checkout is enough, and torchvision's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn

from tgd_pet.network import DnCNN


class Bottleneck(nn.Module):
    """A block of ResNet-50 (He et al., CVPR 2016), with the stride in the middle as in torchvision."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            skip = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.skip = nn.Sequential(skip, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4 * width, ...)."""
        y: Tensor = self.body(x) + self.skip(x)
        return y.relu()


def resnet50() -> nn.Module:
    """ResNet-50 for 1000 classes."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class UNet(nn.Module):
    """A U-Net as nnU-Net plans it (Isensee et al., 2021): instance norms, leaky ReLU, strided convolutions."""

    def __init__(self, dims: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2]
        up = (nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 2]

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for count, step in ((inputs, stride), (outputs, 1)):
                layers += [
                    conv(count, outputs, 3, step, 1),
                    norm(outputs, affine=True),
                    nn.LeakyReLU(0.01, inplace=True),
                ]
            return nn.Sequential(*layers)

        pairs = list(itertools.pairwise(widths))
        self.first = stage(1, widths[0], 1)
        self.down = nn.ModuleList(stage(a, b, 2) for a, b in pairs)
        self.up = nn.ModuleList(up(b, a, 2, 2) for a, b in reversed(pairs))
        self.after = nn.ModuleList(stage(2 * a, a, 1) for a, _ in reversed(pairs))
        self.head = conv(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, ...) scores of two classes."""
        kept = [self.first(x)]
        for down in self.down:
            kept.append(down(kept[-1]))
        y = kept.pop()
        for up, after in zip(self.up, self.after, strict=True):
            y = after(torch.cat([up(y), kept.pop()], 1))
        scores: Tensor = self.head(y)
        return scores


def dncnn() -> nn.Module:
    """The TGD paper's denoiser, as if trained: a new one's last layer is zero, and scores nothing."""
    net = DnCNN()
    nn.init.kaiming_normal_(net.convolutions[-1].weight)
    return net


def of_torchvision(name: str) -> nn.Module:
    """One of torchvision's networks, with random weights; ImportError without torchvision."""
    options = {"init_weights": False} if name == "googlenet" else {}
    net: nn.Module = getattr(import_module("torchvision.models"), name)(weights=None, **options)
    return net


OWN: dict[str, Callable[[], nn.Module]] = {
    "DnCNN": dncnn,
    "ResNet-50": resnet50,
    "U-Net 2-d": partial(UNet, 2, (32, 64, 128, 256, 512)),
    "U-Net 3-d": partial(UNet, 3, (32, 64, 128, 256)),
}
OTHERS = (
    *("efficientnet_b0", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x1_0"),
    *("regnet_y_400mf", "convnext_tiny", "mnasnet0_5", "squeezenet1_1"),
)

# The weights of VGG-16 (Simonyan and Zisserman, 2015, table 1, D) as KSE sees them: the first linear layer reads a
# flattened feature map, so that it has kernels of 7 x 7.
_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG16 = [(n, c, 3, 3) for c, n in itertools.pairwise(_WIDTHS)] + [
    (4096, 512, 7, 7),
    (4096, 4096),
    (1000, 4096),
]
