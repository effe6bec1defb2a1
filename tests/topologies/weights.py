"""Kernels that are computed, fixed, or depend on the input."""

from __future__ import annotations

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, parametrize

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


@topology("orthogonal weights")
def orthogonal_weights() -> nn.Module:
    """Of a convolution every spatial kernel is orthogonal; of a linear layer the whole weight."""
    return nn.Sequential(
        parametrizations.orthogonal(nn.Conv2d(3, 4, 3, padding=1), orthogonal_map="matrix_exp"),
        nn.SiLU(),
        parametrizations.orthogonal(nn.Conv2d(4, 4, 3, padding=1), orthogonal_map="cayley"),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"),
        nn.SiLU(),
        nn.Linear(4, 2),
    )


class Centred(nn.Module):
    """Every filter minus its own mean."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean((1, 2, 3), keepdim=True)


class LowRankUpdate(nn.Module):
    """The weight plus a matrix of low rank, which has parameters of its own."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(len(weight), rank))
        self.down = nn.Parameter(torch.zeros(rank, weight[0].numel()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


@topology("parametrizations of one's own")
def own_parametrizations() -> nn.Module:
    """Without parameters, with parameters, two on one weight, and one on a bias."""
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    parametrize.register_parametrization(first, "weight", Centred())
    parametrize.register_parametrization(first, "bias", nn.Softplus())
    parametrize.register_parametrization(second, "weight", LowRankUpdate(second.weight, rank=2))
    parametrize.register_parametrization(second, "weight", Centred())
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Conv2d(4, 2, 1))


@topology("old weight and spectral norm")
def old_norms() -> nn.Module:
    """The weight is no parameter: a hook computes it before each call, and leaves it as an attribute."""
    with warnings.catch_warnings(), torch.no_grad():  # what autograd has computed cannot be deep-copied
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(
            nn.utils.weight_norm(nn.Conv2d(3, 4, 3, padding=1)),
            nn.LeakyReLU(),
            nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
            nn.LeakyReLU(),
            nn.utils.weight_norm(nn.ConvTranspose2d(4, 4, 2, 2), dim=1),
            nn.LeakyReLU(),
            nn.Conv2d(4, 2, 1),
        )


class Reparameterised(nn.Module):
    """Branches of several sizes, each with its norm, that `deploy` fuses into one convolution (RepVGG)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.square = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.point = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "fused"):
            return F.relu(self.fused(x))
        return F.relu(self.square(x) + self.point(x) + self.identity(x))

    @torch.no_grad()
    def deploy(self) -> None:
        """Replace the branches by one convolution that computes the same in evaluation mode."""
        channels = self.identity.num_features
        unit = nn.Conv2d(channels, channels, 1, bias=False).to(self.identity.weight)
        nn.init.dirac_(unit.weight)
        branches = [(self.square[0], self.square[1]), (self.point[0], self.point[1]), (unit, self.identity)]
        folded = [
            fuse_conv_bn_eval(copy.deepcopy(conv).eval(), copy.deepcopy(norm).eval())
            for conv, norm in branches
        ]
        self.fused = nn.Conv2d(channels, channels, 3, padding=1).to(self.identity.weight)
        sides = [(3 - conv.kernel_size[0]) // 2 for conv in folded]
        kernels = [F.pad(conv.weight, [side] * 4) for conv, side in zip(folded, sides, strict=True)]
        self.fused.weight.copy_(torch.stack(kernels).sum(0))
        self.fused.bias.copy_(torch.stack([conv.bias for conv in folded]).sum(0))
        del self.square, self.point, self.identity


def deployed(model: nn.Module) -> nn.Module:
    """The model with all its reparameterised blocks fused, in place."""
    for block in [module for module in model.modules() if isinstance(module, Reparameterised)]:
        block.deploy()
    return model


@topology("reparameterised blocks in branches")
def branches() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), Reparameterised(4), Reparameterised(4), nn.Conv2d(4, 2, 1)
    )


@topology("reparameterised blocks fused")
def fused() -> nn.Module:
    return deployed(branches())


@topology("parameters in lists and dicts")
class ParameterContainers(nn.Module):
    """Kernels in a ParameterList, a scale per channel in a ParameterDict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.kernels = nn.ParameterList([torch.zeros(4, 4, 3, 3), torch.zeros(4, 2, 3, 3)])
        self.scales = nn.ParameterDict({"first": torch.zeros(4, 1, 1), "last": torch.zeros(1, 4, 1, 1)})
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * self.scales["first"]
        for groups, kernel in enumerate(self.kernels, 1):
            x = F.silu(F.conv2d(x, kernel, padding=1, groups=groups))
        return self.head(x * self.scales["last"])


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
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
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
