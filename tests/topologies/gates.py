"""Channels multiplied by channels: gates, attention, recurrence; and parameters that belong to no layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.topologies.registry import topology


@topology("squeeze and excite")
class SqueezeExcite(nn.Module):
    """All channels decide about each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU())
        self.squeeze, self.excite = nn.Linear(4, 3), nn.Linear(3, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.excite(F.silu(self.squeeze(x.mean((2, 3)))))
        return self.head(x * torch.sigmoid(gate)[:, :, None, None])


@topology("channel attention by 1-d convolution")
class EfficientChannelAttention(nn.Module):
    """The channels are the positions of a convolution with one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU(), nn.Conv2d(3, 4, 3, padding=1))
        self.across = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = F.adaptive_avg_pool2d(x, 1)
        gate = self.across(pooled.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return self.head(x * gate.sigmoid())


@topology("spatial attention")
class SpatialAttention(nn.Module):
    """Mean and maximum over the channels make a gate of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU(), nn.Conv2d(3, 4, 3, padding=1))
        self.score = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        summary = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.head(x * torch.sigmoid(self.score(summary)))


@topology("attention gate", [(2, 3, 6, 6), (2, 2, 3, 3)])
class AttentionGate(nn.Module):
    """A coarse signal and the skip make a gate of one channel for the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Conv2d(3, 3, 3, padding=1)
        self.from_skip, self.from_coarse = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 2, 1)
        self.score = nn.Sequential(nn.LeakyReLU(), nn.Conv2d(2, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        skip = self.skip(x)
        signal = F.interpolate(self.from_coarse(coarse), scale_factor=2, mode="nearest")
        return self.head(skip * self.score(self.from_skip(skip) + signal))


@topology("gate by halves")
class SimpleGate(nn.Module):
    """One half of the channels times the other, with no squashing in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        c, d = self.middle(a * b).chunk(2, 1)
        return self.head(c * d)


@topology("gated linear unit")
def gated_linear_unit() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GLU(1), nn.Conv2d(3, 2, 1))


@topology("broadcast products")
class BroadcastProducts(nn.Module):
    """A vector per channel times a map per position times a full tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.full, self.vector, self.map = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 1, 1)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        vector = self.vector(x).mean((2, 3), keepdim=True)
        return self.head(self.full(x) * vector / (1 + self.map(x).square()))


@topology("layer scale and broadcast bias")
class LayerScaleBias(nn.Module):
    """Parameters per channel that no layer class owns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.bias = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.gamma = nn.Parameter(torch.ones(4))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x) + self.bias)
        return self.head(x + self.gamma.view(1, -1, 1, 1) * self.body(x))


@topology("scalar gains")
class ScalarGains(nn.Module):
    """A residual branch scaled by one number, which is a channel layer's only channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.gain * F.silu(self.branch(F.silu(x))))


@topology("relative positions")
class RelativePositions(nn.Module):
    """Attention over places, with a bias per head that is looked up in a table by distance."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Linear(4, 12)
        self.table = nn.Parameter(torch.zeros(17, 2))
        self.project, self.head = nn.Linear(4, 3), nn.Linear(3, 2)
        places = torch.arange(9)
        self.register_buffer("distance", places[:, None] - places + 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)  # (B, 9, 4)
        q, k, v = self.qkv(x).reshape(-1, 9, 3, 2, 2).permute(2, 0, 3, 1, 4)  # each (B, heads, 9, 2)
        weights = q @ k.transpose(-1, -2) + self.table[self.distance].permute(2, 0, 1)
        x = (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(F.gelu(self.project(x)))


@topology("parametric rectifiers")
def parametric_rectifiers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.PReLU(4),
        nn.Conv2d(4, 3, 1),
        nn.PReLU(),
        nn.Conv2d(3, 2, 1),
    )


@topology("response norm")
class GlobalResponseNorm(nn.Module):
    """Each channel by its share of all channels' energy, with a scale and a shift of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.gamma, self.beta = (nn.Parameter(torch.zeros(1, 4, 1, 1)) for _ in range(2))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        energy = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        share = energy / (energy.mean(1, keepdim=True) + 1e-6)
        return self.head(self.gamma * (x * share) + self.beta + x)


@topology("local response norm")
def local_response_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1),
        nn.LocalResponseNorm(3),
        nn.Conv2d(7, 6, 3, padding=1),
        nn.LocalResponseNorm(4, k=2.0, alpha=0.5),
        nn.Conv2d(6, 2, 1),
    )


@topology("largest of neighbouring channels")
class MaxoutByPooling(nn.Module):
    """Channels taken for an axis of space: windows apart, overlapping, spread out, and as many as asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.apart, self.mean = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 1, 1)
        self.overlapping, self.spread = nn.Conv2d(8, 1, 1), nn.Conv2d(4, 1, 1)
        self.asked = nn.Conv2d(3, 1, 1)
        self.all = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Tanh(), nn.Conv2d(6, 2, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.stem(x)
        depth = y.unsqueeze(1)
        return [
            self.all(y),
            self.apart(F.max_pool3d(y, (2, 1, 1))),
            self.mean(F.avg_pool3d(depth, (3, 1, 1), (2, 1, 1), (1, 0, 0)).squeeze(1)),
            self.overlapping(F.max_pool3d(depth, 3, 1, 1).squeeze(1)),
            self.spread(F.max_pool3d(depth, (2, 1, 1), (1, 1, 1), dilation=(4, 1, 1)).squeeze(1)),
            self.asked(F.adaptive_avg_pool3d(depth, (3, None, None)).squeeze(1)),
        ]


@topology("unit length")
class UnitLength(nn.Module):
    """Features divided by their length over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU(), nn.Conv2d(3, 4, 3, padding=1))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.normalize(self.stem(x), dim=1))


@topology("norms over channels")
def norms_over_channels() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.LeakyReLU(),
        nn.Conv2d(4, 4, 1),
        nn.LayerNorm([4, 6, 6]),
        nn.Conv2d(4, 3, 1),
        nn.GroupNorm(1, 3, affine=False),
        nn.Conv2d(3, 2, 1),
    )


@topology("norms with statistics")
def norms_with_statistics() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4, affine=False),
        nn.LeakyReLU(),
        nn.Conv2d(4, 4, 1),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.Conv2d(4, 3, 1),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3, momentum=None),
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3, momentum=0.0),
        nn.Conv2d(3, 2, 1),
    )


@topology("self-attention between convolutions")
class SelfAttention(nn.Module):
    """Positions attend to each other in two heads; torch takes a fused path without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


@topology("non-local block")
class NonLocal(nn.Module):
    """Attention written with 1x1 convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1)
        self.output = nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        return self.head(x + self.output((value @ weights.transpose(1, 2)).view_as(x)))


@topology("convolutional recurrence", (2, 3, 2, 4, 4))
class ConvGRU(nn.Module):
    """A gated recurrent cell over three frames that starts from a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate = nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)
        self.head = nn.Conv2d(3, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        state = frames.new_zeros(frames.shape[0], 3, *frames.shape[3:])
        for frame in frames.unbind(1):
            update, reset = self.gates(torch.cat([frame, state], 1)).sigmoid().chunk(2, 1)
            new = torch.tanh(self.candidate(torch.cat([frame, reset * state], 1)))
            state = (1 - update) * state + update * new
        return self.head(state)


@topology("losses in the forward", [(2, 3, 6, 6), (2, 4, 6, 6)], trains=False)
class Losses(nn.Module):
    """Numbers made by losses, per element and in all, go on; and distances between features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.elements, self.whole = nn.Conv2d(12, 2, 1), nn.Linear(4, 2)
        self.classes, self.near = nn.Conv2d(1, 2, 1), nn.Linear(36, 2)

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        a, b = self.stem(x), self.other(y)
        target = b.detach().sigmoid()
        by_element = [
            F.mse_loss(a, b, reduction="none"),
            F.smooth_l1_loss(a, b.flip(1), reduction="none"),
            F.binary_cross_entropy_with_logits(a, target, reduction="none"),
        ]
        summed = [
            F.mse_loss(a, b),
            F.huber_loss(a[:, :2], b[:, :2]),
            F.l1_loss(a[:, 3:], b[:, 3:]),
        ]
        summed.append(F.cross_entropy(a, y.argmax(1)))
        classes = F.cross_entropy(a, y.argmax(1), reduction="none")
        distances = torch.cdist(a[:, :2].flatten(2).mT, b[:, 2:].flatten(2).mT)
        return [
            self.elements(torch.cat(by_element, 1)),
            self.whole(torch.stack(summed).unsqueeze(0)),
            self.classes(classes.unsqueeze(1)),
            self.near(distances),
        ]


@topology("cross product of channels")
class CrossProduct(nn.Module):
    """Three channels taken for a vector in space."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.linalg.cross(self.a(x), self.b(x), dim=1))
