"""Networks from the weights that a run left: what a file holds says which network it is."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from tgd_ct.networks.extractors import load_vgg, new_autoencoder
from tgd_ct.networks.generator import SLICES, Generator, Kind
from tgd_ct.networks.segmenters import ARCHITECTURES, Segmenter
from tgd_kit.errors import printable
from tgd_kit.training.weights import check_finite, read_weights
from tgdsurgery import CheckpointError

GENERATOR = "Pass the network.safetensors of a `tgd ct train`, `adapt` or `demo` run."
EXTRACTOR = "Pass the network.safetensors of a `tgd ct pretrain --architecture autoencoder` run."
SEGMENTER = "Pass the network.safetensors of a `tgd ct pretrain` run."

Network = TypeVar("Network", bound=nn.Module)


def load_generator(path: Path) -> Generator:
    """The denoiser of a training run, in eval mode.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    weights = read_weights(path, GENERATOR)
    shapes = _shapes(weights, "convolutions.{}.weight")
    half = len(shapes) // 2
    widths = [shape[0] for shape in shapes[:half]]
    kinds = [kind for kind in SLICES if shapes and _first_of(kind) == (shapes[0][1], len(shapes[0]) - 2)]
    attention = any(name.startswith("attention.") for name in weights)
    if not kinds or shapes != _expected(kinds[0], widths):  # a small file could claim a network of any size
        raise _other(path, "denoiser", GENERATOR)
    return _filled(Generator(kinds[0], widths, attention=attention), weights, path, "denoiser", GENERATOR)


def load_segmenter(path: Path) -> Segmenter:
    """The segmenter of a pre-training run, in eval mode.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    weights = read_weights(path, SEGMENTER)
    found = [name for name in ARCHITECTURES if any(key.startswith(f"{name}.") for key in weights)]
    first = next((value for value in weights.values() if value.ndim == 4 and value.shape[1] == 1), None)
    if len(found) != 1 or first is None or not 0 < first.shape[0] <= 1024:
        raise _other(path, "segmenter", SEGMENTER)
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in Segmenter(found[0], first.shape[0]).state_dict().items()
        }
    if shapes != {name: value.shape for name, value in weights.items()}:
        raise _other(path, "segmenter", SEGMENTER)
    return _filled(Segmenter(found[0], first.shape[0]), weights, path, "segmenter", SEGMENTER)


def load_extractor(path: Path) -> nn.Module:
    """The network of a perceptual loss, in eval mode: a trained autoencoder (.safetensors), or else VGG-19.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    if path.suffix.lower() != ".safetensors":
        return load_vgg(path)
    weights = read_weights(path, EXTRACTOR)
    first = weights.get("encoder.0.weight")
    if first is None or first.ndim != 4 or not 0 < first.shape[0] <= 1024:
        raise _other(path, "autoencoder", EXTRACTOR)
    return _filled(new_autoencoder(0, first.shape[0]), weights, path, "autoencoder", EXTRACTOR)


def _filled(network: Network, weights: Mapping[str, Tensor], path: Path, what: str, remedy: str) -> Network:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise _other(path, what, remedy) from error
    check_finite(network, printable(path))
    return network.eval()


def _other(path: Path, what: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{printable(path)} does not hold the weights of this package's {what}.", remedy)


def _shapes(weights: Mapping[str, Tensor], name: str) -> list[tuple[int, ...]]:
    """Shapes of the tensors of this name with 0, 1, 2 ... in it."""
    shapes: list[tuple[int, ...]] = []
    while (found := weights.get(name.format(len(shapes)))) is not None:
        shapes.append(tuple(found.shape))
    return shapes


def _first_of(kind: Kind) -> tuple[int, int]:
    """Input channels and axes."""
    return SLICES[kind], 3 if kind == "3d" else 2


def _expected(kind: Kind, widths: list[int]) -> list[tuple[int, ...]]:
    first, axes = _first_of(kind)
    channels = [first, *widths, *reversed(widths[:-1]), 1]
    return [(out, into, *[3] * axes) for into, out in pairwise(channels)]
