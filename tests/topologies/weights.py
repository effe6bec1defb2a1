"""Kernels that are computed, fixed, or depend on the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.topologies.registry import topology


class StandardisedConv2d(nn.Conv2d):
    """Weights brought to mean 0 and variance 1 per filter at every call."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Blur(nn.Module):
    """Every channel through one fixed kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, stride=2, padding=1, groups=x.shape[1])


@topology("standardised weights")
def standardised_weights() -> nn.Module:
    return nn.Sequential(
        StandardisedConv2d(3, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        StandardisedConv2d(4, 4, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )


@topology("weight norm")
def weight_norm() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1)),
        nn.LeakyReLU(),
        parametrizations.weight_norm(nn.ConvTranspose2d(4, 4, 3, padding=1), dim=1),
        nn.LeakyReLU(),
        nn.Conv2d(4, 2, 1),
    )


@topology("spectral norm")
def spectral_norm() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, padding=1)),
        nn.LeakyReLU(),
        parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
        nn.LeakyReLU(),
        nn.Conv2d(4, 2, 1),
    )


@topology("fixed blur")
def fixed_blur() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        Blur(4),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.ReLU(inplace=True),
        Blur(3),
        nn.Conv2d(3, 2, 1),
    )


@topology("edge detector in front")
class FixedFront(nn.Module):
    """A fixed kernel on the network's input, and one that mixes all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.randn(4, 3, 3, 3))
        self.register_buffer("mixing", torch.randn(3, 4, 1, 1))
        self.body = nn.Sequential(nn.Conv2d(4, 3, 1), nn.SiLU(), nn.Conv2d(3, 4, 3, padding=1))
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.body(F.conv2d(x, self.edges, padding=1)))
        return self.head(F.conv2d(x, self.mixing))


@topology("mixture of kernels")
class MixtureOfKernels(nn.Module):
    """The input decides, per sample, how two kernels are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.routing = nn.Linear(3, 2)
        self.experts = nn.Parameter(torch.zeros(2, 4 * 3 * 9))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weight = (self.routing(x.mean((2, 3))).sigmoid() @ self.experts).view(-1, 3, 3, 3)
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, padding=1, groups=x.shape[0])
        return self.head(y.view(x.shape[0], 4, *x.shape[2:]))


@topology("learned position code")
class PositionCode(nn.Module):
    """A parameter with a value per channel and position; another is what a convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.code = nn.Parameter(torch.zeros(1, 4, 3, 3))
        self.seed = nn.Parameter(torch.zeros(1, 2, 3, 3))
        self.from_seed = nn.Conv2d(2, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x) + self.code + self.from_seed(self.seed))
