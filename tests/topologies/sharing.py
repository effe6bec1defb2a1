"""Layers called more than once, weights in more than one layer, and layers under more than one name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.topologies.registry import topology


@topology("called twice")
class CalledTwice(nn.Module):
    """A convolution, its norm and its activation, twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU())
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.body(self.stem(x))))


@topology("head shared by levels")
class SharedHead(nn.Module):
    """One tower for all resolutions, as in one-stage detectors; its calls read different producers."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            [nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, 2, 1)]
        )
        self.tower = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        self.score, self.box = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        scores, boxes = [], []
        for level in self.levels:
            x = F.leaky_relu(level(x))
            features = self.tower(x)
            scores.append(self.score(features))
            boxes.append(self.box(features))
        return {"scores": scores, "boxes": boxes}


@topology("siamese", [(2, 3, 6, 6), (2, 3, 6, 6)])
class Siamese(nn.Module):
    """Two inputs through one encoder; both sets of features side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(first), self.encoder(second)], 1))


@topology("one module, two names")
class TwoNames(nn.Module):
    """The same convolution registered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.middle = nn.Conv2d(3, 3, 1)
        self.again = self.first
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.again(F.silu(self.middle(F.silu(self.first(x)))))))


@topology("tied weights")
class TiedWeights(nn.Module):
    """Two convolutions with one weight, and biases of their own; a decoder with the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.second.weight = self.first.weight
        self.decoder = nn.ConvTranspose2d(4, 3, 3, padding=1)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.second(F.silu(self.first(F.silu(self.encoder(x))))))
        return self.head(F.silu(self.decoder(x)))


@topology("several call sites")
class SeveralCallSites(nn.Module):
    """One convolution called in three places: on the input of a block, inside it, and on its output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        y = self.other(F.silu(self.shared(x)))
        return self.head(self.shared(x + y) + self.shared(y.flip(1)))


@topology("containers")
class Containers(nn.Module):
    """Layers reached by index, by key, by slice and by getattr."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)
        )
        self.heads = nn.ModuleDict({"0": nn.Conv2d(3, 2, 1)})
        for index in range(2):
            setattr(self, f"layer{index}", nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.steps[-1:](self.steps[2](self.steps[:2](x)))
        for index in range(2):
            x = F.silu(getattr(self, f"layer{index}")(x))
        return self.heads["0"](x)


@topology("functional convolution")
class FunctionalConv(nn.Module):
    """Convolutions called on parameters: one of a module of its own, one of the model, called twice."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(4, 3, 3, 3)), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, self.bias, padding=1)

    def __init__(self) -> None:
        super().__init__()
        self.own = self.Own()
        self.kernel = nn.Parameter(torch.zeros(4, 2, 3, 3))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.own(x))
        x = F.silu(F.conv2d(x, self.kernel, padding=1, groups=2))
        return self.head(F.conv2d(x, self.kernel, padding=1, groups=2))
