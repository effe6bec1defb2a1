"""Text: the direction classifier of RapidOCR, from clean print to print seen from behind."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, fx, nn
from torch.nn import functional as F

from benchmarks.adapt.task import Batch, Split, Task, outputs_of
from tgdsurgery import from_onnx

HEIGHT, WIDTH = 48, 192
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10", "cmtt10")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SIZES = {"tiny": (32, 32, 4), "quick": (256, 480, 80), "full": (1000, 2000, 400)}
ABOUT = """\
The direction classifier of [RapidOCR](https://pypi.org/project/rapidocr-onnxruntime/) (a MobileNetV3 from an ONNX file,
{parameters:.3g} million parameters) tells whether a line of text is upright or upside down. Old data: random words in
six fonts, dark on light. New data: the same mirrored, as print on glass or film seen from behind, with more noise;
{train} lines to train on. Untouched, the network can only guess there. Errors are of {test} lines of each kind."""


def make(profile: str, folder: Path) -> Task:
    """The task; all its data are made on the spot."""
    train, test, steps = SIZES[profile]
    network = classifier()
    return Task(
        name="text",
        title="Text direction (RapidOCR)",
        about=ABOUT.format(
            parameters=sum(p.numel() for p in network.parameters()) / 1e6, train=train, test=test
        ),
        error="the share of lines whose direction is wrong, in %",
        network=network,
        batches=lambda seed: batches(seed, train),
        loss=lambda outputs, targets: F.nll_loss(logarithm(outputs), targets),
        distance=divergence,
        errors=lambda net, split: (
            wrong(net, *data(split, "old", test)),
            wrong(net, *data(split, "new", test)),
        ),
        steps=steps,
        rates=(3e-4, 1e-3, 3e-3),
    )


def classifier() -> nn.Module:
    """The network; it ends in a softmax."""
    network = with_hardswish(rapidocr("ch_ppocr_mobile_v2.0_cls_infer"))
    return network.to(memory_format=torch.channels_last)


def rapidocr(name: str) -> fx.GraphModule:
    """The network in one of the wheel's ONNX files."""
    models = Path(str(distribution("rapidocr-onnxruntime").locate_file("rapidocr_onnxruntime/models")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_onnx(models / f"{name}.onnx")


def with_hardswish(network: fx.GraphModule) -> fx.GraphModule:
    """x * clip(x + 3, 0, 6) / 6, as the file spells it, in one op: a cheaper step, the same outputs."""
    for node in list(network.graph.nodes):
        if getattr(node.target, "__name__", "") == "div" and node.args[1] == 6.0:
            x, clipped = node.args[0].args
            if clipped.args == (clipped.args[0], 0.0, 6.0) and clipped.args[0].args == (x, 3.0):
                with network.graph.inserting_before(node):
                    node.replace_all_uses_with(network.graph.call_function(F.hardswish, (x,)))
    network.graph.eliminate_dead_code()
    network.recompile()
    return network


def logarithm(outputs: Tensor) -> Tensor:
    """Of probabilities."""
    return outputs.clamp_min(1e-7).log()


def divergence(outputs: Tensor, before: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the outputs from those of another network."""
    return F.kl_div(logarithm(outputs), before, reduction="batchmean")


def batches(seed: int, count: int, size: int = 16) -> Iterator[Batch]:
    """Endless batches of `count` new lines."""
    lines, directions = drawn(np.random.default_rng((1, seed)), count, new=True)
    order = np.random.default_rng((2, seed))
    while True:
        for chosen in np.array_split(order.permutation(count), count // size):
            yield lines[chosen], directions[chosen]


@lru_cache
def data(split: Split, kind: str, count: int) -> tuple[Tensor, Tensor]:
    """Lines and directions to measure with; half as many for validation."""
    count = count if split == "test" else count // 2
    return drawn(np.random.default_rng((3, split == "test", kind == "new")), count, new=kind == "new")


def drawn(generator: np.random.Generator, count: int, *, new: bool) -> tuple[Tensor, Tensor]:
    """(count, 3, 48, 192) lines from -1 to 1, and their directions: 0 upright, 1 upside down."""
    lines = np.stack([line(generator, new=new) for _ in range(count)])
    directions = generator.integers(0, 2, count)
    lines = np.where(directions[:, None, None] == 1, lines[:, ::-1, ::-1], lines)
    found = torch.from_numpy(lines).float()[:, None].repeat(1, 3, 1, 1)
    return found.contiguous(memory_format=torch.channels_last), torch.from_numpy(directions)


def line(generator: np.random.Generator, *, new: bool) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """A picture of a word, from -1 to 1."""
    word = "".join(generator.choice(list(LETTERS), generator.integers(4, 10)))
    dark, light = generator.uniform(0, 80), generator.uniform(170, 255)
    picture = Image.new("L", (WIDTH, HEIGHT), int(light))
    face = font(str(generator.choice(FONTS)), int(generator.integers(20, 34)))
    ImageDraw.Draw(picture).text((WIDTH / 2, HEIGHT / 2), word, int(dark), face, anchor="mm")
    noise = generator.uniform(5, 15) if new else generator.uniform(2, 8)
    values = np.asarray(picture, dtype=np.float64) + noise * generator.standard_normal((HEIGHT, WIDTH))
    values = values[:, ::-1] if new else values
    return np.clip(values, 0, 255) / 127.5 - 1


@lru_cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the fonts that matplotlib ships."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def wrong(network: nn.Module, lines: Tensor, directions: Tensor) -> float:
    """The error."""
    return 100 * float((outputs_of(network, lines).argmax(1) != directions).double().mean())
