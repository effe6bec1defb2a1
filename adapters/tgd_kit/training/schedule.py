"""How long and how fast to train, and on how many devices."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field

from tgd_kit.runs.settings import Count, Positive, checked

PATCH = 32


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Args:
        epochs: a checkpoint is written after each.
        steps: optimizer steps per epoch.
        batch: patches per step.
        rate: the highest learning rate.
        seed: of the patches; and of the first weights, where training starts from none.
        patch: edge length of a patch in pixels.
        devices: accelerators of a machine, or processes on its CPUs, that train together, each on batches of
            its own; Lightning starts them.
        nodes: machines that train together; the same is started on each.
    """

    epochs: Count = 20
    steps: Count = 100
    batch: Count = 16
    rate: Positive = 1e-3
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    patch: Annotated[int, Field(ge=2, le=2**12)] = PATCH
    devices: Count = 1
    nodes: Count = 1

    def check(self) -> None:
        """Refuse what cannot be trained by.

        Raises:
            RunError: a number is of another type, or out of its range.
        """
        checked(Schedule, asdict(self), "The schedule", "Correct it.")

    @property
    def processes(self) -> int:
        """How many train together, on all machines."""
        return self.devices * self.nodes

    def record(self) -> dict[str, object]:
        """What results depend on. How devices are spread over machines does not count."""
        asked = asdict(self)
        del asked["nodes"]
        return {**asked, "devices": self.processes}
