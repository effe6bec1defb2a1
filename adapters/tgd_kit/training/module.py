"""What every training does with a network, whatever its loss: modes, layout, optimizer, several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import nn

from tgd_kit.training.schedule import Schedule

if TYPE_CHECKING:
    from typing_extensions import Self


def network_of(module: L.LightningModule) -> nn.Module:
    """The network that a `NetworkTraining` trains, for callbacks: Lightning hands them any module."""
    return cast(nn.Module, module.network)


class NetworkTraining(L.LightningModule):
    """Trains `network`; a subclass has the `training_step`.

    Args:
        network: what has `requires_grad` moves.
        schedule: how long and how fast.
        held: modules kept in eval mode, so that their running statistics stay.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, held: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.network = network
        self._schedule, self._held = schedule, tuple(held)

    def train(self, mode: bool = True) -> Self:
        """Switch to training, except for the held modules."""
        super().train(mode)
        for module in self._held:
            module.eval()
        return self

    def setup(self, stage: str) -> None:
        """Channels-last convolutions are quicker on CPUs and GPUs. DDP looks at the layout next."""
        solid = any(parameter.ndim == 5 for parameter in self.network.parameters())
        layout = torch.channels_last_3d if solid else torch.channels_last
        self.network.to(memory_format=layout)  # type: ignore[call-overload]

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """What a step draws, such as dropout, is the same in a resumed run."""
        step = self.current_epoch * self._schedule.steps + index
        torch.manual_seed((1_000_003 * self._schedule.seed + step) % 2**63)

    def on_fit_start(self) -> None:
        """Lightning's loop does not switch to training by itself."""
        self.train()

    def on_train_end(self) -> None:
        """Every process continues with the same network: until here their running statistics differ."""
        if self.trainer.world_size > 1:
            state = {name: value.cpu() for name, value in self.network.state_dict().items()}
            self.network.load_state_dict(self.trainer.strategy.broadcast(state))

    def configure_optimizers(self) -> Any:
        """Adam with one cycle of the learning rate, stepped after every batch.

        The rate rises over the first tenth of all steps and then falls to nearly zero along a cosine.
        """
        moving = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        rate, steps = self._schedule.rate, self._schedule.epochs * self._schedule.steps
        optimizer = torch.optim.Adam(moving, lr=rate)
        rise = 0.1 if steps > 10 else 0.0  # a tenth of ten steps has no length, and torch divides by it
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=rise)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
