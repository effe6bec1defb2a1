"""Adapt a trained denoiser to another dose, kernel or task: with TGD, or in the ways it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from tgd_ct.case import Case, Task
from tgd_ct.networks.generator import SLICES, Generator
from tgd_ct.training.denoiser import Judges, train_denoiser
from tgd_ct.training.losses import Weights
from tgd_ct.training.samples import DEPTH
from tgd_kit.training.fit import NETWORK
from tgd_kit.training.lora import RANK, lora
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import PHI, Flow, Guarded, Tuned, with_tgd, without_tgd
from tgd_kit.training.weights import save_weights

Method = Literal["tgd", "full", "last3", "lora"]
METHODS: tuple[Method, ...] = get_args(Method)
LAST = 3  # convolutions


def adapt(
    network: Generator,
    cases: Sequence[Case],
    dose: float,
    task: Task,
    folder: Path,
    schedule: Schedule,
    *,
    weights: Weights,
    judges: Judges | None = None,
    method: Method = "tgd",
    phi: float = PHI,
    flow: Flow = "full",
    progress: bool = True,
) -> Tuned[Generator]:
    """Train a copy of `network` on few patients; see `train_denoiser` for the arguments they share.

    Args:
        method: "tgd" retrains the filters below `phi` in each layer and keeps the last convolution; "last3" the last
            three convolutions; "lora" low-rank updates of all; "full" everything.
        phi: threshold of TGD.
        flow: "full" lets gradients through frozen feature maps; "masked" stops them there, as the TGD paper does.

    Raises:
        RunError: the folder holds another run, or training diverged.
        TGDError: the network cannot be rewritten.
    """
    train = partial(
        train_denoiser,
        cases=cases,
        dose=dose,
        task=task,
        folder=folder / "adapters" if method == "lora" else folder,
        schedule=schedule,
        weights=weights,
        judges=judges,
        progress=progress,
    )
    tuned = adapted_by(method, network, train, phi=phi, flow=flow)
    if method == "lora":
        rank_zero_only(save_weights)(tuned.network, folder / NETWORK)
    return tuned


def adapted_by(
    method: Method, network: Generator, train: Callable[..., None], *, phi: float = PHI, flow: Flow = "full"
) -> Tuned[Generator]:
    """Let `train` move a copy of `network`, as a method allows it.

    Args:
        method: see `adapt`.
        network: stays as it is.
        train: takes the network to train, what it is for (`purpose`), and where they are needed modules to keep in
            eval mode (`held`) and Lightning's callbacks (`callbacks`).
        phi: threshold of TGD.
        flow: of TGD.
    """
    if method == "tgd":
        rewritten = with_tgd(network, example(network), phi, flow)
        train(rewritten, purpose=f"TGD, phi {phi:g}, flow {flow}", callbacks=[Guarded()])
        return without_tgd(network, rewritten)
    if method == "lora":
        return Tuned(*lora(network, partial(_lora, train)))
    tuned = copy.deepcopy(network)
    if method == "full":
        train(tuned, purpose="full fine-tuning")
        return Tuned(tuned, share=1.0)
    return _last(network, tuned, train)


def example(network: Generator) -> Tensor:
    """An input that the network takes."""
    depth = [DEPTH] if network.kind == "3d" else []
    return torch.zeros(1, SLICES[network.kind], *depth, 32, 32)


def _lora(train: Callable[..., None], network: nn.Module, held: Sequence[nn.Module]) -> None:
    train(network, purpose=f"LoRA of rank {RANK}", held=held)


def _last(network: Generator, tuned: Generator, train: Callable[..., None]) -> Tuned[Generator]:
    moving = list(tuned.convolutions[-LAST:].parameters())
    tuned.requires_grad_(False)
    for parameter in moving:
        parameter.requires_grad_(True)
    train(tuned, purpose=f"fine-tuning of the last {LAST} convolutions")
    tuned.requires_grad_(True)
    ours = {id(parameter) for parameter in moving}
    pairs = zip(network.parameters(), tuned.parameters(), strict=True)
    kept = all(torch.equal(before, after) for before, after in pairs if id(after) not in ours)
    total = sum(parameter.numel() for parameter in tuned.parameters())
    return Tuned(tuned, sum(parameter.numel() for parameter in moving) / total, kept)
