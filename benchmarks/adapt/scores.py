"""What could choose the filters instead of the lowest KSE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tgdsurgery import channel_map, kse

Score = Callable[[nn.Module, Tensor], Tensor]


def scorer(
    name: str, network: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor], seed: int
) -> Score | None:
    """A score for `apply_tgd`; None for its own, KSE.

    Args:
        name: of the score.
        network: whose filters are chosen.
        inputs: a batch of new data.
        loss: of the outputs for it.
        seed: of random scores.
    """
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Callable[[], Score | None]] = {
        "lowest KSE": lambda: None,
        "highest KSE": lambda: lambda module, weight: 1 - _kse(module, weight),
        "lowest L1": lambda: lambda module, weight: _ranked(_l1(_kernels(module, weight))),
        "FPGM": lambda: lambda module, weight: _ranked(_distance_sums(_kernels(module, weight))),
        "random": lambda: (
            lambda module, weight: torch.rand(len(_kernels(module, weight)), generator=generator)
        ),
        "batch-norm scale": lambda: _by_norm_scale(network, inputs),
        "KSE x gradient": lambda: _by_kse_and_gradient(network, loss(network(inputs))),
    }
    return made[name]()


def _kernels(module: nn.Module, weight: Tensor) -> Tensor:
    """(C, n, D): the kernels that read each input channel."""
    weight = weight.detach()
    weight = weight if weight.dim() > 2 else weight.unsqueeze(2)
    groups = getattr(module, "groups", 1)
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    if getattr(module, "transposed", False):  # (g, C/g, N/g, *K)
        return by_group.flatten(0, 1).flatten(2)
    return by_group.transpose(1, 2).flatten(0, 1).flatten(2)


def _kse(module: nn.Module, weight: Tensor) -> Tensor:
    return kse(weight, groups=getattr(module, "groups", 1), transposed=getattr(module, "transposed", False))


def _l1(kernels: Tensor) -> Tensor:
    """Summed absolute weights of each channel (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""
    return kernels.abs().sum((1, 2))


def _distance_sums(kernels: Tensor) -> Tensor:
    """Summed distances to the other channels: the least is nearest to their geometric median (FPGM, CVPR 2019)."""
    flat = kernels.flatten(1)
    return torch.cdist(flat, flat).sum(1)


def _ranked(values: Tensor) -> Tensor:
    """The ranks, from 0 to 1: only the order counts."""
    return values.argsort().argsort().double() / max(len(values) - 1, 1)


def _by_norm_scale(network: nn.Module, inputs: Tensor) -> Score:
    """The scale of the batch norm that a channel comes from (Network Slimming, ICCV 2017); 1 if there is none."""
    found = channel_map(network, inputs)
    names = {module: name for name, module in network.named_modules()}

    def scale(module: nn.Module, weight: Tensor) -> Tensor:
        name = names[module]
        layers = found.channel_layers(name)
        # The features of a linear layer after a flatten that come from one channel count as one, in the map's order.
        _, first = np.unique(found.inputs[name], return_index=True)
        chosen = range(len(layers)) if weight.shape[1] == len(layers) or weight.dim() > 3 else first
        scales = torch.ones(len(chosen), dtype=torch.float64)
        for channel, feature in enumerate(chosen):
            for producer in layers[feature]:
                norm = network.get_submodule(producer.layer)
                if isinstance(norm, _BatchNorm) and norm.weight is not None:
                    scales[channel] = norm.weight[producer.channel].detach().abs()
        return _ranked(scales)

    return scale


def _by_kse_and_gradient(network: nn.Module, loss: Tensor) -> Score:
    """Low where the score is low and the gradient on new data is large (as GaLLoP, 2025, chooses single weights)."""
    parameters = list(network.parameters())
    found = dict(zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))

    def score(module: nn.Module, weight: Tensor) -> Tensor:
        gradient = found.get(module.weight)
        if gradient is None:
            return _kse(module, weight)
        small = 1 - _ranked(_l1(_kernels(module, gradient.reshape(weight.shape))))
        return (_ranked(_kse(module, weight)) + small) / 2

    return score
