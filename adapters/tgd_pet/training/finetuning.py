"""Adapt a trained denoiser to new images: with TGD, or in the ways it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from tgd_kit.training.fit import NETWORK
from tgd_kit.training.lora import RANK, lora
from tgd_kit.training.schedule import Schedule
from tgd_kit.training.tgd import PHI, Flow, Guarded, Tuned, with_tgd, without_tgd
from tgd_kit.training.weights import save_weights
from tgd_pet.network import DnCNN
from tgd_pet.training.fit import fit
from tgd_pet.training.patches import Scans
from tgd_pet.training.peers import l2_sp, learning_without_forgetting

Method = Literal["full", "last3", "tgd", "l2-sp", "lwf", "lora"]
METHODS: tuple[Method, ...] = get_args(Method)
PEERS = {"l2-sp": l2_sp, "lwf": learning_without_forgetting}


def finetune(
    network: DnCNN,
    patients: Sequence[Scans],
    version: str,
    folder: Path,
    schedule: Schedule,
    *,
    method: Method = "tgd",
    phi: float = PHI,
    flow: Flow = "full",
    progress: bool = True,
) -> Tuned[DnCNN]:
    """Train a copy of `network` on few patients; see `tgd_pet.training.fit.fit` for the arguments they share.

    Args:
        method: "tgd" retrains the filters below `phi` in each layer and keeps the last convolution, as the
            paper does; "last3" the last three convolutions with their norms (the paper's FT-net); "full" all;
            the others are in `tgd_pet.training.peers`.
        phi: threshold of TGD; the paper's 0.3 by default.
        flow: "full" lets gradients through frozen feature maps; "masked" stops them there, as the paper does.

    Raises:
        RunError: the folder holds another run, or training diverged.
        TGDError: the network cannot be rewritten.
    """
    train = partial(
        fit, patients=patients, version=version, folder=folder, schedule=schedule, progress=progress
    )
    if method == "tgd":
        return _tgd(network, phi, flow, train)
    if method in PEERS:
        return Tuned(*PEERS[method](network, train))
    if method == "lora":
        merged, share = lora(network, partial(_lora, train, folder / "adapters"))
        rank_zero_only(save_weights)(merged, folder / NETWORK)
        return Tuned(merged, share)
    tuned = copy.deepcopy(network)
    if method == "full":
        train(tuned, purpose="full fine-tuning")
        return Tuned(tuned, share=1.0)
    return _last_three(network, tuned, train)


def _tgd(network: DnCNN, phi: float, flow: Flow, train: Callable[..., None]) -> Tuned[DnCNN]:
    rewritten = with_tgd(network, triplet(network), phi, flow)
    train(rewritten, purpose=f"TGD fine-tuning, phi {phi:g}, flow {flow}", callbacks=[Guarded()])
    return without_tgd(network, rewritten)


def triplet(network: DnCNN) -> Tensor:
    """An input that the network takes."""
    return torch.zeros(1, network.convolutions[0].in_channels, 32, 32)


def _lora(train: Callable[..., None], folder: Path, network: nn.Module, held: Sequence[nn.Module]) -> None:
    train(network, folder=folder, purpose=f"LoRA of rank {RANK}", held=held)


def _last_three(network: DnCNN, tuned: DnCNN, train: Callable[..., None]) -> Tuned[DnCNN]:
    frozen = _before_last_three(tuned).requires_grad_(False)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in tuned.parameters()]
    train(tuned, purpose="fine-tuning of the last three convolutions", held=[frozen])
    tuned.requires_grad_(True)
    before, after = _before_last_three(network).state_dict(), frozen.state_dict()
    kept = all(torch.equal(before[name], after[name]) for name in before)
    return Tuned(tuned, sum(size for size, moves in sizes if moves) / sum(size for size, _ in sizes), kept)


def _before_last_three(network: DnCNN) -> nn.Sequential:
    """Every layer before the third-last convolution."""
    layers = list(network.noise)
    return cast(nn.Sequential, network.noise[: layers.index(network.convolutions[-3])])
