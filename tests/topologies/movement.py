"""Channels added, joined, cut, reordered, and moved between the channel axis and space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.topologies.registry import topology


@topology("chain")
def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 2, 3, padding=1),
    )


@topology("memory filled piece by piece")
class PieceByPiece(nn.Module):
    """Memory that comes empty: a border, the inside, and channels in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.border = nn.Conv2d(3, 4, 3), nn.Parameter(torch.zeros(4, 1, 1))
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        out = y.new_empty(*y.shape[:2], y.shape[2] + 2, y.shape[3] + 2)
        out[...] = self.border
        out[:, ::2, 1:-1, 1:-1] = y[:, 2:]
        out[:, 1::2, 1:-1, 1:-1] = y[:, :2]
        return self.last(out)


@topology("chain 3d", (2, 1, 4, 4, 4))
def chain_3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.InstanceNorm3d(4, affine=True),
        nn.PReLU(4),
        nn.ConvTranspose3d(4, 4, 2, 2, groups=2),
        nn.GroupNorm(2, 4),
        nn.ELU(),
        nn.Conv3d(4, 1, 1),
    )


@topology("global residual")
class GlobalResidual(nn.Module):
    """A denoiser: the output is the input minus what the body found."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)


@topology("residual stages")
class ResidualStages(nn.Module):
    """Two residual blocks in a row: the second's input has three producers per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 3, 3, padding=1, bias=False),
                nn.BatchNorm2d(3),
                nn.ReLU(inplace=True),
                nn.Conv2d(3, 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(4),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = block(x)
            y += x
            x = F.leaky_relu(y, inplace=True)
        return self.head(x.mean((2, 3)))


@topology("padded shortcut")
class PaddedShortcut(nn.Module):
    """A residual network's parameter-free shortcut: every second position, zeros for the new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3, padding=1)
        self.body = nn.Conv2d(2, 6, 3, 2, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.leaky_relu(self.body(x) + shortcut))


@topology("cat with itself")
class CatSelf(nn.Module):
    """One tensor side by side with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([x, x], 1))


@topology("u-net")
class UNet(nn.Module):
    """A skip joined with what came back up through a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.bottom = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU())
        self.up = nn.ConvTranspose2d(4, 2, 2, 2)
        self.head = nn.Sequential(nn.Conv2d(5, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(torch.cat((self.up(self.bottom(skip)), skip), dim=1))


@topology("dense block")
class DenseBlock(nn.Module):
    """Everything so far is the input of every next layer; the norm comes before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(3 + 2 * step), nn.LeakyReLU(), nn.Conv2d(3 + 2 * step, 2, 3, padding=1)
            )
            for step in range(3)
        )
        self.head = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x)


@topology("reordered channels")
class Reordered(nn.Module):
    """Channels by index, reversed and rolled: four orders, four consumers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(4, 1, 1) for _ in range(4))
        self.register_buffer("order", torch.tensor([1, 3, 0, 2]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        orders = (x[:, [2, 0, 1, 3]], x.flip(1), x.roll(1, 1), x.index_select(1, self.order))
        return sum(head(y) for head, y in zip(self.heads, orders, strict=True))


@topology("channel shuffle")
def channel_shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.ChannelShuffle(3),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.ChannelShuffle(2),
        nn.Conv2d(6, 4, 1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )


@topology("chunk, swap, cat")
class ChunkSwap(nn.Module):
    """Half of the channels through a branch, then the halves interleaved and exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        keep, change = self.stem(x).chunk(2, dim=1)
        y = torch.cat((self.branch(change), keep), dim=1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(y)


@topology("split of splits")
class SplitOfSplits(nn.Module):
    """Parts of uneven size, each added to what the one before became."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 1)
        self.steps = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
        self.head = nn.Conv2d(7, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *parts, last = torch.split(self.stem(x), [1, 2, 2, 2], 1)
        made = [first]
        carried = last
        for step, part in zip(self.steps, parts, strict=True):
            carried = step(part + carried)
            made.append(carried)
        return self.head(torch.cat([*made, last], 1))


@topology("pixel shuffle", (2, 2, 4, 4))
def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.PixelShuffle(2),
        nn.LeakyReLU(),
        nn.Conv2d(2, 2, 3, padding=1),
        nn.PixelUnshuffle(2),
        nn.Conv2d(8, 3, 1),
        nn.ReLU(),
        nn.Conv2d(3, 1, 1),
    )


@topology("space to depth by view")
class SpaceToDepth(nn.Module):
    """Patches moved into channels with view and permute, as in focus stems and patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 1)
        self.mix = nn.Conv2d(8, 3, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        patches = (
            x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
        )
        corners = torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)
        return torch.cat([self.mix(patches), self.head(corners)], 1)


@topology("flatten head")
def flatten_head() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


@topology("unflatten decoder", (2, 5))
def unflatten_decoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 12),
        nn.LeakyReLU(),
        nn.Unflatten(1, (3, 2, 2)),
        nn.ConvTranspose2d(3, 4, 4, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 1, 3, padding=1),
    )


@topology("channels-last block")
class ChannelsLastBlock(nn.Module):
    """Depthwise convolution, then norm and linear layers with the channels as last axis, then a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.mix = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4)
        self.grow, self.shrink = nn.Linear(4, 6), nn.Linear(6, 4)
        self.gamma = nn.Parameter(torch.full((4,), 0.1))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.gamma * self.shrink(F.gelu(self.grow(y)))
        return self.head(x + y.permute(0, 3, 1, 2))


@topology("slices written in place")
class SliceWrites(nn.Module):
    """An empty tensor filled part by part; one part is written over, another added to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        joined = x.new_zeros(x.shape[0], 6, *x.shape[2:])
        joined[:, :3] = a
        joined[:, 2:4] = b
        joined[:, 5, 1:] += b[:, 0, 1:]
        return self.head(joined)


@topology("stack and sum")
class StackSum(nn.Module):
    """Branches stacked on a new axis: summed, the largest taken, and the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, 3, size, padding=size // 2) for size in (1, 3, 5))
        self.heads = nn.ModuleList(nn.Conv2d(3, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([branch(x) for branch in self.branches], dim=1)
        joined = (stacked.sum(1), stacked.max(dim=1).values, stacked[:, :2].mean(1))
        return torch.cat([head(y) for head, y in zip(self.heads, joined, strict=True)], 1)


@topology("maxout and crelu")
class MaxoutCrelu(nn.Module):
    """The larger of two channels; and every channel with its negative beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.middle = nn.Conv2d(3, 2, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stem(x).unflatten(1, (3, 2)).amax(2))
        return self.head(torch.relu(torch.cat([x, -x], 1)))


@topology("chosen element by element")
class Where(nn.Module):
    """The sign of one branch chooses between the other two; masked positions are filled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 2, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.a(x), self.b(x), self.c(x)
        chosen = torch.where(a[:, :1] > 0, b, c)
        return self.head(chosen.masked_fill(a > 1, 0.5))


@topology("unfold and fold")
class UnfoldFold(nn.Module):
    """Sliding blocks as columns: a linear layer reads them, and their overlaps are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 1)
        self.patches = nn.Linear(8, 3)
        self.head = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(self.stem(x), 2)
        tokens = self.patches(columns.transpose(1, 2))
        return self.head(F.fold(columns, x.shape[2:], 2)).mean((2, 3)), tokens


@topology("upsampled and added")
class FeaturePyramid(nn.Module):
    """Lateral convolutions, and the coarse map interpolated and added to the fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 3, 3, padding=1)
        self.coarse = nn.Conv2d(3, 4, 3, 2, 1)
        self.laterals = nn.ModuleList([nn.Conv2d(3, 2, 1), nn.Conv2d(4, 2, 1)])
        self.outputs = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = F.silu(self.fine(x))
        coarse = F.silu(self.coarse(fine))
        top = self.laterals[1](coarse)
        bottom = self.laterals[0](fine) + F.interpolate(top, size=fine.shape[-2:], mode="bilinear")
        return [output(y) for output, y in zip(self.outputs, (bottom, top), strict=True)]


@topology("two resolutions")
class Octave(nn.Module):
    """High- and low-resolution channels that exchange at every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.split = nn.ModuleDict({"high": nn.Conv2d(3, 3, 1), "low": nn.Conv2d(3, 2, 1)})
        self.up, self.down = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.split["high"](x), self.split["low"](F.avg_pool2d(x, 2))
        new_high = high + F.interpolate(self.up(low), scale_factor=2)
        new_low = low + self.down(F.avg_pool2d(high, 2))
        return self.head(torch.cat([new_high, F.interpolate(new_low, scale_factor=2)], 1))


@topology("sampled on a grid")
class GridSample(nn.Module):
    """A flow field of two channels says where the features are read."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.flow = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.tanh(self.flow(x)).permute(0, 2, 3, 1)
        return self.head(F.grid_sample(self.features(x), grid, align_corners=False))
