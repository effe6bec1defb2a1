"""What a training step costs in each way of adapting, against one of full fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import nn

from tgd_ct.networks.critic import new_critic
from tgd_ct.networks.generator import Generator
from tgd_ct.training.adapting import METHODS, Method, adapted_by
from tgd_ct.training.denoiser import Judges, loss_parts, weighted
from tgd_ct.training.losses import Weights
from tgd_ct.training.samples import Sample
from tgd_kit.training.tgd import PHI, Flow

WARM_UP = 3  # steps before the clock counts
RUNS = 40  # steps of each network


def step_costs(
    network: Generator,
    sample: Sample,
    weights: Weights,
    judges: Judges,
    *,
    phi: float = PHI,
    flow: Flow = "full",
    runs: int = RUNS,
) -> dict[str, float]:
    """The time of a step of each method over that of full fine-tuning: medians of steps taken in turns.

    A step is forward, backward and optimizer of the denoiser, through segmenter and critic. The critic's own step is
    left out: it is the same for all.

    Args:
        network: a trained denoiser; stays as it is.
        sample: one batch, as `Samples` draws it.
        weights: of the losses.
        judges: the fixed networks that the losses need.
        phi: threshold of TGD.
        flow: of TGD.
        runs: steps of each network that are timed.
    """
    full = _step(copy.deepcopy(network), sample, weights, judges)
    found: dict[str, float] = {}

    def time(method: Method, trained: nn.Module, held: Sequence[nn.Module] = (), **_: object) -> None:
        found[method] = _ratio(_step(trained, sample, weights, judges, held), full, runs)

    for method in METHODS:
        adapted_by(method, network, partial(time, method), phi=phi, flow=flow)
    return found


def _step(
    network: nn.Module, sample: Sample, weights: Weights, judges: Judges, held: Sequence[nn.Module] = ()
) -> Callable[[], None]:
    """One training step of a network."""
    noisy, clean, labels = sample
    critic = new_critic(0, clean.ndim - 2, weights.lipschitz).requires_grad_(False)
    network.train()
    for module in held:
        module.eval()
    optimizer = torch.optim.RMSprop([p for p in network.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        denoised = network(noisy)
        loss = weighted(weights, loss_parts(weights, judges, denoised, clean, labels))
        if weights.gan:
            loss = loss + weights.gan * critic(denoised).mean()
        loss.backward()
        optimizer.step()

    return step


def _ratio(first: Callable[[], None], second: Callable[[], None], runs: int) -> float:
    """Of their median times, taken in turns: what else the machine does slows both."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(WARM_UP + runs):
        for step, taken in zip((first, second), times, strict=True):
            start = perf_counter()
            step()
            if run >= WARM_UP:
                taken.append(perf_counter() - start)
    return median(times[0]) / median(times[1])
