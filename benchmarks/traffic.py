"""How much do machines send each other in a step of data-parallel training, with TGD and without?

Two processes with gloo train the same network in DistributedDataParallel. Counted in the second step (torch
arranges its buckets in the first): the bytes of all gradient buckets, by a communication hook that sums
them as torch does, and those of the buffers that torch sends before the forward. Random weights: a trainable
share is what counts, not which channels it is.

Run `python -m benchmarks.traffic`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measuring import RESULTS, markdown, print_table, setting, write_json
from tgd_pet.network import new_network
from tgdsurgery import apply_tgd

WORLD = 2
SHARES = (0.1, 0.25, 0.5)
COLUMNS = ("network", "training", "trainable", "gradients MiB", "buffers MiB", "of full")


class Block(nn.Module):
    """Two convolutions and a shortcut (He et al., 2016, figure 2)."""

    def __init__(self, incoming: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, width, 3, stride, 1, bias=False)
        self.norm1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if (incoming, 1) != (width, stride):
            self.shortcut = nn.Sequential(
                nn.Conv2d(incoming, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """The 18 layers of He et al., 2016, table 1."""
    blocks, incoming = [], 64
    for width in (64, 128, 256, 512):
        for stride in (1 if width == 64 else 2, 1):
            blocks.append(Block(incoming, width, stride))
            incoming = width
    stem = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"DnCNN": lambda: new_network(0), "ResNet-18": resnet18}


@dataclass(frozen=True)
class Traffic:
    """What one process sends in one step, in bytes.

    Args:
        network: its name.
        training: how it is trained.
        trainable: share of all parameters that may move.
        gradients: bytes of the gradients that are summed over processes.
        buffers: bytes of the buffers that are sent from the first process to the others.
        of_full: both together, against full fine-tuning.
    """

    network: str
    training: str
    trainable: float
    gradients: int
    buffers: int
    of_full: float

    def cells(self) -> tuple[str, ...]:
        sizes = (f"{size / 2**20:.2f}" for size in (self.gradients, self.buffers))
        return (self.network, self.training, f"{self.trainable:.1%}", *sizes, f"{self.of_full:.1%}")


def bytes_per_step(net: nn.Module) -> tuple[int, int]:
    """Of the second step: gradients and buffers."""
    wrapped = DistributedDataParallel(net.train())
    sent: list[int] = []

    def count(state, bucket):  # torch reads the annotations, and wants none that are strings
        sent.append(bucket.buffer().nbytes)
        return allreduce_hook(None, bucket)

    wrapped.register_comm_hook(None, count)
    for _ in range(2):
        sent.clear()
        wrapped(torch.randn(2, 3, 64, 64)).square().mean().backward()
    return sum(sent), sum(buffer.nbytes for buffer in wrapped.modules_buffers)


def measure(rank: int, folder: str) -> None:
    """In each of the processes; the first one writes the results."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    rows = []
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model = make()
        full = bytes_per_step(model)
        rows.append(Traffic(name, "full", 1.0, *full, 1.0))
        for share in SHARES:
            tgd = apply_tgd(model, torch.zeros(1, 3, 64, 64), budget=share)
            found = bytes_per_step(tgd)
            of_full = sum(found) / sum(full)
            rows.append(Traffic(name, f"TGD, budget {share}", tgd.tgd_plan.share, *found, of_full))
    if rank == 0:
        torch.save([asdict(row) for row in rows], Path(folder) / "rows.pt")
    dist.destroy_process_group()


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "traffic.json")
def main(out: Path) -> None:
    """Count what is sent in a step, for some networks and trainable shares."""
    used = setting(processes=WORLD)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (folder,), WORLD)
        rows = [Traffic(**row) for row in torch.load(Path(folder) / "rows.pt", weights_only=True)]
    caption = (
        f"{', '.join(f'{name} {value}' for name, value in used.items())}; float32, random weights, one step.\n"
        "Trainable: share of all parameters. Gradients are summed over processes, buffers are sent to all."
    )
    cells = [row.cells() for row in rows]
    print_table("Sent in a step", COLUMNS, cells, caption)
    print(markdown(COLUMNS, cells))
    write_json(out, {"setting": used, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
