"""The denoiser of the TGD paper: a 2.5-D DnCNN of eight convolutions, and its weights as a file.

Axis letters: B batch, S slices of a triplet, H and W in-plane.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tgd_kit.errors import printable
from tgd_kit.training.weights import check_finite, read_weights
from tgdsurgery import CheckpointError

WIDTHS = (64, 64, 128, 128, 128, 256, 256, 3)
SUV_SCALE = 5.0
SUV_LIMIT = 12.0
REMEDY = "Pass the network.safetensors of a `tgd pet train`, `finetune`, `online` or `demo` run."


class DnCNN(nn.Module):
    """Predicts the noise of three neighbouring slices and subtracts it: SUV in, SUV out.

    Every convolution is 3x3, stride 1, zero-padded. The first is followed by ReLU, all between by batch norm
    and ReLU, the last by nothing; where a batch norm follows, the convolution has no bias. The last one
    starts at zero, so an untrained network returns its input.

    The noise is predicted from SUV / 5, a fixed and linear scale on which most tissue lies in [0, 1], clipped at
    SUV 12, about the largest in training: the network sees a bladder of SUV 60 as one of SUV 12. Such an organ
    keeps its value, and the halo around it is far smaller than with values that training never showed.
    Scale and limit are buffers, stored with the weights.

    Args:
        widths: output channels of each convolution. The last is the number of slices, which is also the
            number of input channels. The default is that of the paper, with 1,298,880 weights in its convolutions.
        limit: SUV above which the network sees no difference.

    Reference: Chen, Asma and Chan, "Targeted Gradient Descent: A Novel Method for Convolutional Neural
    Networks Fine-tuning and Online-learning", MICCAI 2021, section 2 and figure 1. The paper does not say
    whether convolutions have biases, how images are scaled, or how weights start: these are choices here.

    >>> network = DnCNN(widths=(4, 4, 3)).eval()
    >>> triplet = torch.rand(1, 3, 16, 16)
    >>> torch.equal(network(triplet), triplet)
    True
    """

    suv_scale: Tensor
    suv_limit: Tensor

    def __init__(self, widths: Sequence[int] = WIDTHS, limit: float = SUV_LIMIT) -> None:
        super().__init__()
        self.register_buffer("suv_scale", torch.tensor(SUV_SCALE))
        self.register_buffer("suv_limit", torch.tensor(limit))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, last = widths[-1], len(widths)
        for index, width in enumerate(widths, start=1):
            normed = 1 < index < last
            layers[f"conv{index}"] = nn.Conv2d(channels, width, 3, padding=1, bias=not normed)
            if normed:
                layers[f"norm{index}"] = nn.BatchNorm2d(width)
            if index < last:
                layers[f"relu{index}"] = nn.ReLU(inplace=True)
            channels = width
        self.noise = nn.Sequential(layers)
        for parameter in self.convolutions[-1].parameters():
            nn.init.zeros_(parameter)

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The convolutions, first to last."""
        return [module for module in self.noise if isinstance(module, nn.Conv2d)]

    def forward(self, triplets: Tensor) -> Tensor:
        """Denoised slices (B, S, H, W) from noisy ones, both in SUV; the centre slice is the one to use."""
        seen = torch.clamp(triplets, max=self.suv_limit) / self.suv_scale
        noise: Tensor = self.noise(seen)
        return triplets - noise * self.suv_scale


def new_network(seed: int, widths: Sequence[int] = WIDTHS, limit: float = SUV_LIMIT) -> DnCNN:
    """An untrained network whose weights follow from `seed`; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DnCNN(widths, limit)


def load_network(path: Path) -> DnCNN:
    """The network whose weights a training run left, in eval mode; its widths are those of the weights.

    Raises:
        CheckpointError: the file is missing, damaged, or not one of this network.
    """
    return network_from(read_weights(path, REMEDY), str(path))


def network_from(weights: Mapping[str, Tensor], source: str) -> DnCNN:
    """A network with these weights, in eval mode.

    Args:
        weights: a state_dict of `DnCNN`, of any widths.
        source: where the weights come from, for the message.

    Raises:
        CheckpointError: the weights are not those of a `DnCNN`, or not finite.
    """
    problem = f"{printable(source)} does not hold the weights of this package's DnCNN."
    count = sum(value.ndim == 4 for value in weights.values())
    shapes = [tuple(weights.get(f"noise.conv{i}.weight", torch.empty(0)).shape) for i in range(1, count + 1)]
    widths = [shape[0] for shape in shapes]
    # Checked first: a network of the widths that a small file claims could fill the memory.
    fit = shapes == [
        (width, before, 3, 3) for width, before in zip(widths, widths[-1:] + widths, strict=False)
    ]
    if not (fit and widths and min(widths) > 0):
        raise CheckpointError(problem, REMEDY)
    network = DnCNN(widths)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(problem, REMEDY) from error
    check_finite(network, printable(source))
    if network.suv_scale <= 0 or network.suv_limit <= 0:
        raise CheckpointError(problem, REMEDY)
    return network.eval()
