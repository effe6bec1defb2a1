"""Stop training when it brings no more gain, and keep the best weights, also across an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from tgd_kit.training.module import network_of


class KeepBest(Callback):
    """Measures the network before the first step and after each epoch; training leaves the best one.

    The first of several processes measures and decides for all: running statistics differ between them, and a
    process that stops alone would leave the others waiting.

    Args:
        error: what is to be small.
        patience: training stops after so many epochs in a row without a smaller one.
        name: of the error beside the progress.
    """

    def __init__(self, error: Callable[[nn.Module], float], patience: int, name: str) -> None:
        self._error, self._patience, self._name = error, patience, name
        self._best, self._waited = float("inf"), 0
        self._weights: Mapping[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The network as it was given; a resumed run has measured it before."""
        if not self._weights:
            self._measure(trainer, network_of(pl_module))
        trainer.should_stop = self._waited >= self._patience

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, and decide."""
        error = self._measure(trainer, network_of(pl_module))
        pl_module.log(self._name, error, sync_dist=True)
        trainer.should_stop = self._waited >= self._patience

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best weights back."""
        network_of(pl_module).load_state_dict(self._weights)

    def _measure(self, trainer: L.Trainer, network: nn.Module) -> float:
        found = self._error(network) if trainer.is_global_zero else float("nan")
        error: float = trainer.strategy.broadcast(found)
        if error < self._best or not self._weights:
            self._best, self._waited = error, 0
            self._weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        else:
            self._waited += 1
        return error

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint of the epoch."""
        return {"best": self._best, "waited": self._waited, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint of an interrupted run."""
        self._best, self._waited, self._weights = (state_dict[key] for key in ("best", "waited", "weights"))
