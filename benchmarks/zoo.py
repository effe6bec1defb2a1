"""Which of the networks people use can be mapped and operated on, how long does it take, and in how much memory?

Every network of `tests/zoo/networks.py` at its smallest input, and four large ones on an image of their native size, in
a process of its own each, one thread, CPU seconds (steadier than the clock on a busy machine):

* forward: one plain forward pass of the batch, the second of two;
* map: `channel_map`, which records a run in evaluation and one in training mode;
* plan: `plan_tgd`, which maps the network and scores all its layers;
* apply: `apply_tgd` with that plan, in the layers form, compared with the original's outputs and gradients;
* Torch-Pruning: building its dependency graph, the peer's equivalent of the map.

Memory is the growth of the resident memory in `plan_tgd` (Linux only).
Results are written after every network; a run that was stopped goes on where it was.

Run `make bench-zoo`; `python -m benchmarks.zoo_page` only rewrites docs/zoo.md from the results.
"""

from __future__ import annotations

import json
import time
import warnings
from typing import Any

import click
import torch
import torch_pruning
from rich.progress import track
from torch import nn

from benchmarks.measuring import forget_peak, in_a_child, peak_mib, setting, write_json
from benchmarks.zoo_page import RESULTS, write_page
from tests.zoo.networks import GIANTS, NETWORKS
from tgdsurgery import apply_tgd, channel_map, plan_tgd

BUDGET = 0.25
NATIVE = {
    "torchvision/densenet201": 224,
    "torchvision/efficientnet_b7": 600,
    "torchvision/resnet152": 224,
    "torchvision/vgg16": 224,
}
LIMIT = 900.0  # seconds per network
PEER_LIMIT = 30.0

Result = dict[str, Any]


class Stopwatch:
    """CPU seconds since it was last looked at."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def __call__(self) -> float:
        now = time.process_time()
        self._last, elapsed = now, now - self._last
        return round(elapsed, 3)


def subject(name: str, size: int | None) -> tuple[nn.Module, torch.Tensor]:
    """The network, and its smallest input or one image of a size."""
    net, images = NETWORKS[name].make(size)
    return net, images if size is None else images[:1]


def ours(name: str, size: int | None) -> Result:
    """Everything from the network to its TGD form."""
    net, image = subject(name, size)
    result: Result = {"parameters": sum(p.numel() for p in net.parameters()), "input": list(image.shape)}
    with torch.no_grad():
        net(image)
        watch = Stopwatch()
        net(image)
    result["forward"] = watch()
    channel_map(net, image)
    result["map"] = watch()
    forget_peak()
    before = peak_mib()
    watch()
    plan = plan_tgd(net, image, budget=BUDGET)
    result["plan"] = watch()
    result["mib"], result["total_mib"] = round(peak_mib() - before), round(peak_mib())
    result |= {"layers": len(plan.entries), "share": plan.share, "unmapped": len(plan.unmapped)}
    if name in GIANTS:
        return result
    watch()
    tgd = apply_tgd(net, image, plan=plan, form="layers")
    result["apply"] = watch()
    result["form"] = "graph" if isinstance(tgd, torch.fx.GraphModule) else "copy"
    return result


def peer(name: str, size: int | None) -> Result:
    """Torch-Pruning's graph."""
    net, image = subject(name, size)
    watch = Stopwatch()
    torch_pruning.DependencyGraph().build_dependency(net, example_inputs=image)
    return {"seconds": watch()}


def measure(name: str, size: int | None) -> Result:
    """One row."""
    result = in_a_child(ours, name, size, limit=LIMIT)
    return {**result, "peer": in_a_child(peer, name, size, limit=PEER_LIMIT)}


@click.command()
@click.option("--only", default="", help="Only networks whose name has this in it.")
@click.option("--again", is_flag=True, help="Measure again what is in the results already.")
def main(only: str, again: bool) -> None:
    """Measure coverage, time and memory on the zoo."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"networks": {}}
    libraries = ("torchvision", "timm", "monai", "segmentation_models_pytorch", "torch-pruning")
    found["setting"] = setting(*libraries, threads=1, budget=BUDGET)
    rows = {name: (name, None) for name in NETWORKS}
    rows |= {f"{name} at {size}": (name, size) for name, size in NATIVE.items()}
    wanted = [row for row in rows if only in row and (again or row not in found["networks"])]
    known = found["networks"]
    for row in track(wanted, description="networks"):
        known[row] = measure(*rows[row])
        found["networks"] = {each: known[each] for each in rows if each in known}
        write_json(RESULTS, found)
    write_page()


if __name__ == "__main__":
    main()
