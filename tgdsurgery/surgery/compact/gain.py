"""Whether a compact backward of a convolution gains anything over the plain one, by its shape and shares.

A compact backward multiplies less, but moves more: it gathers and scatters channels of feature maps. All is counted in
multiplications that take as long, as measured on one core of a CPU.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tgdsurgery.core.torch_private import ConvNd
from tgdsurgery.surgery.compact.twin import Compaction

PER_NUMBER = 30  # of a feature map, to be gathered, scattered or masked
PER_WEIGHT = 100  # for a weight that is put together by a copy, and its gradient taken apart
PER_CALL = 4_000_000  # what Python takes for a compact backward beyond a plain one
BLOCK = 16  # channels that are multiplied in the time of one, if a kernel has more than one weight
IN_GROUPS = 12  # per multiplication of a convolution that has groups


class Gain(NamedTuple):
    """What the compact backward gains: `by_pixel` of the input, more if its gradient is computed, and `fixed`."""

    by_pixel: float
    by_pixel_of_input: float
    fixed: float

    def pays(self, pixels: int, input_needed: bool) -> bool:
        """Whether it is worth it for a batch of so many pixels."""
        by_pixel = self.by_pixel + (self.by_pixel_of_input if input_needed else 0.0)
        return by_pixel * pixels + self.fixed > 0


def gain(conv: ConvNd, known: Compaction, reads_all: bool) -> Gain:
    """The gain for a convolution.

    Args:
        conv: the layer.
        known: which of its channels are trainable and needed.
        reads_all: whether its trainable channels read all input channels; those of a conv with groups may not.
    """
    if not known.trainable:  # the plain backward keeps the input, which is of no use then
        return Gain(0.0, 0.0, 1.0)
    inputs, outputs = conv.in_channels, conv.out_channels
    fewer = math.prod(conv.stride)
    after = fewer if conv.transposed else 1 / fewer  # pixels of the output by one of the input
    weights = inputs * outputs // conv.groups * math.prod(conv.kernel_size)
    products = weights * min(1.0, after) * (1 if conv.groups == 1 else IN_GROUPS)
    share = known.trainable / outputs
    by_block = conv.groups == 1 and math.prod(conv.kernel_size) > 1
    multiplied = _blocks(known.trainable) / _blocks(outputs) if by_block else share
    needed = 1.0 if known.needs is None else sum(known.needs) / inputs
    gathered = share * (outputs * after + (0 if reads_all else inputs))
    if known.stops_gradient:  # the plain backward masks the gradient; the compact one scatters the input's
        moved, through = gathered - outputs * after, multiplied
        scattered = inputs * (needed if reads_all else share) if known.needs or not reads_all else 0.0
    else:  # the compact backward reads the gradient a second time, for the input
        moved, through = 2 * gathered, 1.0
        scattered = inputs * needed if known.needs else 0.0
    by_rows = (1 - multiplied) * products
    by_input = (1 - through * (needed if reads_all else 1.0)) * products
    fixed = PER_WEIGHT * weights - PER_CALL
    return Gain(by_rows - PER_NUMBER * moved, by_input - PER_NUMBER * scattered, fixed)


def _blocks(channels: int) -> int:
    return math.ceil(channels / BLOCK)
