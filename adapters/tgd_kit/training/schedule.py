"""How long and how fast to train, and on how many devices."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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

    epochs: int = 20
    steps: int = 100
    batch: int = 16
    rate: float = 1e-3
    seed: int = 0
    patch: int = PATCH
    devices: int = 1
    nodes: int = 1

    @property
    def processes(self) -> int:
        """How many train together, on all machines."""
        return self.devices * self.nodes

    def record(self) -> dict[str, object]:
        """What results depend on. How devices are spread over machines does not count."""
        asked = asdict(self)
        del asked["nodes"]
        return {**asked, "devices": self.processes}
