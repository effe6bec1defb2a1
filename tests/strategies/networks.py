"""Random networks for Hypothesis, valid by construction: every layer's sizes are drawn to fit the one before.

Groups are drawn before channels, parts of a split before its branches; nothing is drawn and thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import nn

from tests.strategies import blocks
from tests.strategies.case import Case, randomise

MOST_CHANNELS = 6
# Even, or halved and doubled again; never below 2, where padding by reflection and instance norms end.
SIZES = {1: (4, 6, 8), 2: (4, 6, 8), 3: (4,)}
# Strictly monotonous nearly everywhere: an influence shows in the output, whatever the sign of the input.
SMOOTH = ("LeakyReLU", "ELU", "SiLU", "Softplus")
SATURATING = ("ReLU", "ReLU6", "Hardswish", "Tanh")
IN_PLACE = ("LeakyReLU", "ELU", "SiLU", "ReLU", "ReLU6", "Hardswish")
NORMS = ("none", "batch", "batch without affine", "instance", "group", "layer", "frozen", "by hand")


class Shape(NamedTuple):
    """What a block reads or makes: spatial dimensions, channels, and elements along each spatial axis."""

    dims: int
    channels: int
    size: int


class Drawn(NamedTuple):
    """A block and the shape it makes."""

    module: nn.Module
    shape: Shape


class Options(NamedTuple):
    """Hypothesis's draw, and whether every influence is to show."""

    draw: Callable
    smooth: bool

    def choose(self, *values):
        return self.draw(st.sampled_from(values))

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def order(self, count: int) -> list[int]:
        return self.draw(st.permutations(range(count)))


@st.composite
def cases(draw: Callable, *, smooth: bool = False) -> Case:
    """A random network in evaluation mode with random weights, and a small batch that it accepts.

    Args:
        draw: given by Hypothesis.
        smooth: nothing that could hide an influence: no activations that saturate, and no channels of zeros,
            which a gate or a scale leaves as they are. And a larger batch: where an element is positive in
            every sample, a PReLU's slope does not show. Such networks are not for training: they overwrite
            what a gradient would need.
    """
    options = Options(draw, smooth)
    dims = options.choose(2, 1, 3)
    first = Shape(dims, options.integer(1, 4), options.choose(*SIZES[dims]))
    seed = options.integer(0, 2**16)
    # The default initial weights are drawn from torch's generator, and overwritten below.
    with torch.random.fork_rng(devices=[]):
        stem, shape = _conv(options, first)
        parts = [stem]
        for _ in range(options.integer(1, 4)):
            block, shape = options.choose(*_applicable(shape))(options, shape)
            parts.append(block)
        parts.extend(_head(options, shape))
    model = randomise(nn.Sequential(*parts), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    batch = 16 if smooth else 2
    return Case(model, torch.randn(batch, first.channels, *[first.size] * dims, generator=generator))


def _applicable(shape: Shape) -> list[Callable]:
    found = [_conv, _residual, _split, _reorder, _gate, _twice, _scale, _transposed, _writes]
    small = shape.channels <= MOST_CHANNELS
    if small:
        found += [_concat, _pad, _depthwise]
    if shape.size >= 4 and shape.size % 2 == 0:
        found += [_pool, _strided]
        found += [_pixel_unshuffle] if shape.dims == 2 and small else []
    if shape.size <= 4:
        found += [_resize]
        found += [_pixel_shuffle] if shape.dims == 2 else []
    return found


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


def _conv(options: Options, shape: Shape, channels: int | None = None, *, bare: bool = False) -> Drawn:
    """A convolution of stride 1 with a norm, an activation and dropout, or bare of the last two."""
    dims, c_in, _ = shape
    groups = options.choose(*_divisors(math.gcd(c_in, channels) if channels else c_in))
    c_out = channels or groups * options.integer(1, max(1, MOST_CHANNELS // groups))
    kernel = options.choose(1, 3)
    padding_mode = options.choose("zeros", "circular", "reflect")
    conv = blocks.CONV[dims](
        c_in,
        c_out,
        kernel,
        padding=kernel // 2,
        groups=groups,
        bias=options.choose(True, False),
        padding_mode=padding_mode,
    )
    made = shape._replace(channels=c_out)
    parts = [conv, *_norm(options, made)]
    if not bare:
        parts += [
            *_activation(options, made),
            *options.choose((), (nn.Dropout(),), (blocks.DROPOUT[dims](),)),
        ]
    return Drawn(nn.Sequential(*parts), made)


def _norm(options: Options, shape: Shape) -> list[nn.Module]:
    dims, channels, _ = shape
    kind = options.choose(*NORMS)
    if kind == "none":
        return []
    if kind in ("batch", "batch without affine"):
        momentum = options.choose(0.1, None)
        return [blocks.BATCH_NORM[dims](channels, momentum=momentum, affine=kind == "batch")]
    if kind == "instance":
        return [blocks.INSTANCE_NORM[dims](channels, affine=options.choose(True, False))]
    if kind == "group":
        return [nn.GroupNorm(options.choose(*_divisors(channels)), channels)]
    if kind == "layer":
        return [blocks.ChannelsLast(nn.LayerNorm(channels))]
    return [blocks.FrozenNorm(channels) if kind == "frozen" else _norm_by_hand(options, channels)]


def _norm_by_hand(options: Options, channels: int) -> nn.Module:
    way = options.choose("assigned", "in place")
    if options.choose(False, True):
        return blocks.NormByHand(channels, 1, way)
    return blocks.ChannelsLast(blocks.NormByHand(channels, -1, way))


def _activation(options: Options, shape: Shape) -> list[nn.Module]:
    name = options.choose("none", "PReLU", *SMOOTH, *(() if options.smooth else SATURATING))
    if name == "none":
        return []
    if name == "PReLU":
        return [nn.PReLU(options.choose(1, shape.channels))]
    inplace = {"inplace": True} if name in IN_PLACE and options.choose(True, False) else {}
    return [getattr(nn, name)(**inplace)]


def _residual(options: Options, shape: Shape) -> Drawn:
    inner, middle = _conv(options, shape)
    outer, _ = _conv(options, middle, shape.channels, bare=True)
    form = options.choose(*blocks.Residual.FORMS)
    return Drawn(blocks.Residual(nn.Sequential(inner, outer), form), shape)


def _concat(options: Options, shape: Shape) -> Drawn:
    branches, channels = [], 0
    for _ in range(options.integer(1, 2)):
        branch, made = _conv(options, shape, options.integer(1, 3))
        repeats = options.choose(1, 2)
        branches += [branch] * repeats
        channels += made.channels * repeats
    if options.choose(True, False):
        branches.append(nn.Identity())
        channels += shape.channels
    order = options.order(len(branches))
    return Drawn(blocks.Concat([branches[index] for index in order]), shape._replace(channels=channels))


def _split(options: Options, shape: Shape) -> Drawn:
    cuts = (
        sorted(options.draw(st.sets(st.integers(1, shape.channels - 1), max_size=2)))
        if shape.channels > 1
        else []
    )
    sizes = [end - start for start, end in zip([0, *cuts], [*cuts, shape.channels], strict=True)]
    branches, channels = [], 0
    for size in sizes:
        part = shape._replace(channels=size)
        branch, made = _conv(options, part) if options.choose(True, False) else Drawn(nn.Identity(), part)
        branches.append(branch)
        channels += made.channels
    return Drawn(blocks.Split(sizes, branches, options.order(len(sizes))), shape._replace(channels=channels))


def _reorder(options: Options, shape: Shape) -> Drawn:
    how = options.choose("shuffle", "flip", "roll", "index")
    setting = {
        "shuffle": lambda: options.choose(*_divisors(shape.channels)),
        "flip": lambda: 0,
        "roll": lambda: options.integer(1, 3),
        "index": lambda: options.draw(
            st.lists(st.integers(0, shape.channels - 1), min_size=1, max_size=MOST_CHANNELS)
        ),
    }[how]()
    channels = len(setting) if isinstance(setting, list) else shape.channels
    return Drawn(blocks.Reorder(how, setting), shape._replace(channels=channels))


def _gate(options: Options, shape: Shape) -> Drawn:
    if options.choose(True, False):
        return Drawn(blocks.ChannelGate(shape.dims, shape.channels, options.integer(1, 3)), shape)
    return Drawn(blocks.SpatialGate(shape.dims, shape.channels), shape)


def _writes(options: Options, shape: Shape) -> Drawn:
    """Where every influence is to show no gradient is asked for: then what was read may be overwritten."""
    steps, layers = [], []
    for _ in range(options.integer(1, 3)):
        read, write = _part(options, shape.channels), _part(options, shape.channels)
        ways = [way for way in blocks.Writes.WAYS if way != "multiplied" or options.smooth]
        steps.append((read, write, options.choose(*ways)))
        layer, _ = _conv(options, shape._replace(channels=read[2]), write[2], bare=True)
        layers.append(layer)
    memory = options.choose(*(kind for kind in blocks.Writes.MEMORY if kind != "input" or options.smooth))
    return Drawn(blocks.Writes(memory, steps, layers, clones=not options.smooth), shape)


def _part(options: Options, channels: int) -> tuple[str, int, int]:
    """How some of the channels are looked at, the first of them, and how many they are."""
    kind, start = options.choose(*blocks.Writes.VIEWS), options.integer(0, channels - 1)
    most = channels - start
    return kind, start, options.integer(1, (most + 1) // 2 if kind == "strided" else most)


def _twice(options: Options, shape: Shape) -> Drawn:
    body, _ = _conv(options, shape, shape.channels)
    return Drawn(blocks.Twice(body), shape)


def _scale(options: Options, shape: Shape) -> Drawn:
    return Drawn(blocks.LayerScale(shape.dims, shape.channels), shape)


def _pad(options: Options, shape: Shape) -> Drawn:
    most = 0 if options.smooth else 2
    before, after = options.integer(0, most), options.integer(0, most)
    mode = options.choose("constant", "replicate", "circular")
    made = shape._replace(channels=before + shape.channels + after)
    return Drawn(blocks.Pad(shape.dims, before, after, mode), made)


def _depthwise(options: Options, shape: Shape) -> Drawn:
    c_out = shape.channels * options.integer(1, 2)
    conv = blocks.CONV[shape.dims](shape.channels, c_out, 3, padding=1, groups=shape.channels)
    made = shape._replace(channels=c_out)
    return Drawn(nn.Sequential(conv, *_norm(options, made), *_activation(options, made)), made)


def _transposed(options: Options, shape: Shape) -> Drawn:
    stride = options.choose(1, 2) if shape.size <= 4 else 1
    groups = options.choose(*_divisors(shape.channels))
    made = shape._replace(
        channels=groups * options.integer(1, max(1, MOST_CHANNELS // groups)), size=shape.size * stride
    )
    conv = blocks.TRANSPOSED[shape.dims](
        shape.channels,
        made.channels,
        3 if stride == 1 else 2,
        stride,
        padding=1 if stride == 1 else 0,
        groups=groups,
        bias=options.choose(True, False),
    )
    return Drawn(nn.Sequential(conv, *_norm(options, made), *_activation(options, made)), made)


def _strided(options: Options, shape: Shape) -> Drawn:
    groups = options.choose(*_divisors(shape.channels))
    made = shape._replace(
        channels=groups * options.integer(1, max(1, MOST_CHANNELS // groups)), size=shape.size // 2
    )
    conv = blocks.CONV[shape.dims](shape.channels, made.channels, 3, 2, 1, groups=groups)
    return Drawn(nn.Sequential(conv, *_activation(options, made)), made)


def _pool(options: Options, shape: Shape) -> Drawn:
    # The largest of four is positive in every sample now and then, and then a PReLU's slope does not show.
    kind = blocks.AVG_POOL if options.smooth else options.choose(blocks.MAX_POOL, blocks.AVG_POOL)
    return Drawn(kind[shape.dims](2), shape._replace(size=shape.size // 2))


def _resize(options: Options, shape: Shape) -> Drawn:
    mode = options.choose("nearest", blocks.LINEAR_MODE[shape.dims])
    return Drawn(blocks.Resize(mode), shape._replace(size=shape.size * 2))


def _pixel_unshuffle(options: Options, shape: Shape) -> Drawn:
    return Drawn(nn.PixelUnshuffle(2), shape._replace(channels=shape.channels * 4, size=shape.size // 2))


def _pixel_shuffle(options: Options, shape: Shape) -> Drawn:
    channels = options.integer(1, 2)
    conv, _ = _conv(options, shape, channels * 4, bare=True)
    made = shape._replace(channels=channels, size=shape.size * 2)
    return Drawn(nn.Sequential(conv, nn.PixelShuffle(2)), made)


def _head(options: Options, shape: Shape) -> list[nn.Module]:
    dims, channels, size = shape
    kind = options.choose("conv", "pool", "flatten", "channels last", "none")
    outputs = options.integer(1, 3)
    if kind == "conv":
        return [blocks.CONV[dims](channels, outputs, 1)]
    if kind == "pool":
        return [blocks.GLOBAL_POOL[dims](1), nn.Flatten(), nn.Linear(channels, outputs)]
    if kind == "flatten":
        return [nn.Flatten(), nn.Linear(channels * size**dims, outputs)]
    if kind == "channels last":
        return [blocks.ChannelsLast(nn.Linear(channels, outputs))]
    return []
