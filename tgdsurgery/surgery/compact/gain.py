"""Whether a compact backward of a convolution gains anything over the plain one, by its shape and shares.

A compact backward multiplies less, but moves more: it gathers and scatters channels of feature maps. All is counted in
multiplications that take as long, as measured on one core of a CPU.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tgdsurgery.core.torch_private import ConvNd
from tgdsurgery.surgery.compact.twin import Compaction

PER_NUMBER = 45  # of a feature map, to be gathered, scattered or masked
PER_WEIGHT = 100  # for a weight that is put together by a copy, and its gradient taken apart
PER_CALL = 3_000_000  # what Python takes for a compact backward beyond a plain one
BLOCK = 16  # channels that are multiplied in the time of one
IN_GROUPS = 9  # per multiplication of a convolution that has groups


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
    inputs, outputs = conv.in_channels, conv.out_channels
    fewer = math.prod(conv.stride)
    after = fewer if conv.transposed else 1 / fewer  # pixels of the output by one of the input
    weights = inputs * outputs // conv.groups * math.prod(conv.kernel_size)
    products = weights * min(1.0, after) * (1 if conv.groups == 1 else IN_GROUPS)
    trainable = known.trainable / outputs
    needed = 1.0 if known.needs is None else sum(known.needs) / inputs
    multiplied = trainable if conv.groups > 1 else _blocks(known.trainable) / _blocks(outputs)
    moved = outputs * after * (trainable - (1 if known.stops_gradient else 0))
    scattered = 0.0
    if not reads_all:
        moved, scattered = moved + trainable * inputs, (1 + trainable) * inputs
    elif known.needs is not None:
        scattered = (1 + needed) * inputs
    by_rows = (1 - multiplied) * products if known.trainable else 0.0
    by_input = (1 - needed * (multiplied if known.stops_gradient else 1.0)) * products
    by_weight = PER_WEIGHT * weights if known.trainable else 0
    return Gain(by_rows - PER_NUMBER * moved, by_input - PER_NUMBER * scattered, by_weight - PER_CALL)


def _blocks(channels: int) -> int:
    return math.ceil(channels / BLOCK)
