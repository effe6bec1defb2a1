"""Adapt a trained network with TGD: what every adapter does around its own training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from tgd_kit.training.module import network_of
from tgdsurgery import TGDPlan, apply_tgd, guard, plan_of, remove_tgd, verify

Flow = Literal["masked", "full"]
PHI = 0.3

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Tuned(Generic[Network]):
    """A network after fine-tuning, and the proof of what stayed.

    Args:
        network: a plain network, in eval mode.
        share: share of the parameters that were trainable.
        kept: whether every frozen entry, running statistics included, equals the one before bit for bit;
            None where nothing was frozen.
        plan: what TGD retrained; None for the other methods.
    """

    network: Network
    share: float
    kept: bool | None = None
    plan: TGDPlan | None = None


@dataclass(frozen=True)
class Outcome:
    """What of `Tuned` is kept on file."""

    share: float
    kept: bool | None


def with_tgd(network: nn.Module, example: Tensor, phi: float, flow: Flow) -> nn.Module:
    """A copy of the network of which training changes only the filters below `phi`."""
    return apply_tgd(network, example, phi=phi, flow=flow)


def without_tgd(network: Network, rewritten: nn.Module) -> Tuned[Network]:
    """The plain network from what `with_tgd` made of `network`, after training."""
    plan, tuned = plan_of(rewritten), cast(Network, remove_tgd(rewritten))
    return Tuned(tuned, plan.share, verify(network, tuned, plan).ok, plan)


class Guarded(Callback):
    """Hands the network's optimizer to the guard, once it exists."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first optimizer is the network's."""
        guard(trainer.optimizers[0], network_of(pl_module))
