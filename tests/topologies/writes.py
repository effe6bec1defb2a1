"""Memory that is read and then written to: what was read is what was there at that moment.

Most of these cannot train as they are: they overwrite what the backward pass needs. Networks of this kind run so in
evaluation, and clone what they read in training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.topologies.registry import Factory, topology

Write = Callable[[Tensor, nn.Module], Tensor]


class Written(nn.Module):
    """A stem, a write to what it made by a layer that reads it, and heads that see it before and after."""

    def __init__(self, layer: nn.Module, write: Write, channels: int = 6) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 6, 3, padding=1), layer
        self.write = write
        self.before, self.after = nn.Conv2d(6, 1, 1), nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.stem(x))
        before = self.before(y)
        return torch.cat([self.after(self.write(y, self.layer)), before], 1)


def written(name: str, layer: Callable[[], nn.Module], channels: int = 6) -> Callable[[Write], Write]:
    """Register the network that writes by the decorated function."""

    def register(write: Write) -> Write:
        def make() -> nn.Module:
            return Written(layer(), write, channels)

        topology(name, trains=False)(make)
        return write

    return register


def conv(c_in: int, c_out: int, groups: int = 1) -> Factory:
    return lambda: nn.Conv2d(c_in, c_out, 3, padding=1, groups=groups)


@written("partial convolution", conv(4, 4))
def partial(y: Tensor, layer: nn.Module) -> Tensor:
    y[:, :4] = layer(y[:, :4])
    return y


@written("partial grouped convolution", conv(4, 4, groups=2))
def partial_grouped(y: Tensor, layer: nn.Module) -> Tensor:
    y[:, 2:] = layer(y[:, 2:])
    return y


@written("partial depthwise convolution, by copy_", conv(3, 3, groups=3))
def partial_depthwise(y: Tensor, layer: nn.Module) -> Tensor:
    part = y[:, 1:4]
    part.copy_(layer(part))
    return y


@written("partial transposed convolution", lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2))
def partial_transposed(y: Tensor, layer: nn.Module) -> Tensor:
    y[:, :4] = layer(y[:, :4])
    return y


@written("partial linear layer", lambda: nn.Linear(3, 3))
def partial_linear(y: Tensor, layer: nn.Module) -> Tensor:
    last = y.permute(0, 2, 3, 1)
    last[..., 3:] = layer(last[..., 3:])
    return y


@written("every second channel written", conv(3, 3))
def strided(y: Tensor, layer: nn.Module) -> Tensor:
    y[:, ::2].copy_(layer(y[:, 1::2]))
    y[:, 1::2] = layer(y[:, ::2])
    return y


@written("added to a part", conv(2, 3))
def added(y: Tensor, layer: nn.Module) -> Tensor:
    y[:, 3:].add_(layer(y[:, 2:4]))
    y[:, 1] *= y[:, 0]
    return y


@written("a view of a view of a view", conv(2, 2))
def nested(y: Tensor, layer: nn.Module) -> Tensor:
    inner = y[:, 1:].flatten(2)[:, ::2].unflatten(2, y.shape[2:])[:, 1:]
    inner.copy_(layer(inner))
    return y


@written("halves exchanged", conv(3, 3))
def exchanged(y: Tensor, layer: nn.Module) -> Tensor:
    one, other = y[:, :3], y[:, 3:]
    made = layer(one)
    one.copy_(other)
    other.copy_(made)
    return y


@written("cleared after it was read", conv(6, 2))
def cleared(y: Tensor, layer: nn.Module) -> Tensor:
    made = layer(y)
    y.zero_()
    y[:, 4:] = made
    return y


@written("all of it multiplied", conv(6, 1))
def multiplied(y: Tensor, layer: nn.Module) -> Tensor:
    gate = layer(y)
    y.mul_(gate)
    return y


@written("by places", conv(6, 2))
def by_places(y: Tensor, layer: nn.Module) -> Tensor:
    made = layer(y)
    y.index_copy_(1, torch.tensor([3, 0]), made)
    y.index_add_(1, torch.tensor([1, 3]), made.flip(1))
    return y


@written("by a mask", conv(6, 6))
def by_mask(y: Tensor, layer: nn.Module) -> Tensor:
    made = layer(y)
    mask = (torch.arange(6) % 3 == 0)[:, None, None]
    y.copy_(torch.where(mask, made, y))
    return y


@written("windows that overlap", lambda: nn.Linear(2, 2))
def windows(y: Tensor, layer: nn.Module) -> Tensor:
    sliding = y.unfold(1, 2, 1)  # (B, 5, H, W, 2)
    made = layer(sliding[:, 1])
    y[:, 4:] = made.movedim(-1, 1)
    return y


@written("shifted in place", conv(2, 2))
def shifted(y: Tensor, layer: nn.Module) -> Tensor:
    y[:, :2, 1:] = layer(y[:, :2])[:, :, :-1]
    y[:, 2:4, :-1] = y[:, 2:4, 1:].clone()
    return y


@topology("scratch memory used again", trains=False)
class Scratch(nn.Module):
    """One piece of memory that every layer reads from, and that is filled anew in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 1)
        self.layers = nn.ModuleList(nn.Conv2d(4, 2, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        scratch = y.new_zeros(y.shape[0], 4, *y.shape[2:])
        for step, layer in enumerate(self.layers):
            scratch[:, step % 2 : step % 2 + 2] = y
            y = layer(scratch)
        scratch[:, ::2] += y
        return self.head(scratch)


@topology("cloned, then written to in part")
class PartialCloned(nn.Module):
    """As a partial convolution trains: it reads a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(4, 4, 3, padding=1),
                nn.Conv2d(4, 4, 3, padding=1, groups=2),
                nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
            ]
        )
        self.linear = nn.Linear(3, 3)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for shift, layer in enumerate(self.convs):
            y = y.clone()
            y[:, shift : shift + 4] = layer(y[:, shift : shift + 4].clone())
            y[:, 0].mul_(0.5)
        last = y.permute(0, 2, 3, 1)
        last[..., ::2] = self.linear(last[..., ::2].clone())
        return self.head(y)
