"""Self-attention over places of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOKENS = 32  # at most so many places along each axis


class SelfAttention(nn.Module):
    """Adds to each place what it reads from all others; a plain convolution sees its neighbours only.

    Maps larger than `TOKENS` along an axis are averaged down first: attention between all pixels of a slice would need
    more memory than its images. The sum starts with a weight of zero, so an untrained block changes nothing.

    Args:
        channels: of the maps, in-plane axes last: (B, C, H, W) or (B, C, D, H, W).

    Reference: Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019, section 3.

    >>> maps = torch.randn(2, 8, 40, 40)
    >>> torch.equal(SelfAttention(8)(maps), maps)
    True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query = nn.Linear(channels, inner)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, channels)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        """The maps with what attention adds."""
        sizes = maps.shape[2:]
        small = [min(size, TOKENS) for size in sizes]
        up = "trilinear" if maps.ndim == 5 else "bilinear"
        pooled = nn.functional.interpolate(maps, small, mode="area")
        tokens = pooled.flatten(2).transpose(1, 2)  # (B, places, C)
        read = nn.functional.scaled_dot_product_attention(
            self.query(tokens), self.key(tokens), self.value(tokens)
        )
        grid = read.transpose(1, 2).unflatten(2, small)
        return maps + self.weight * nn.functional.interpolate(grid, sizes, mode=up)
