"""What do a checkpoint and an average of weights cost on a TGD network, beside the plain one?

What is done between epochs, not steps, on the compact network and on a plain copy of it, which take turns round after
round:

* state_dict: `state_dict()`. A plain network's is its own memory, a compact one's is put together;
* load: `load_state_dict` of a checkpoint that is in memory;
* save: `torch.save` of the `state_dict`, to memory;
* average: an update of `torch.optim.swa_utils.AveragedModel` as an exponential moving average.

CPU seconds of one thread; a ratio is that to the plain network in the same round, and the median is given with the
quartiles.

Run `python -m benchmarks.epoch_end`; it writes docs/epoch_end.md too.
"""

from __future__ import annotations

import copy
import io
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import measuring
from benchmarks.gpu_networks import OWN
from benchmarks.measuring import cpu_seconds, markdown, setting, write_json
from benchmarks.traffic import resnet18
from tgdsurgery import apply_tgd

PAGE = Path(__file__).parent.parent / "docs" / "epoch_end.md"
RESULTS = measuring.RESULTS / "epoch_end.json"
BUDGET = 0.25
GOAL = 1.5
COLUMNS = ("network", "work", "plain, ms", "compact, ms", "ratio", "quartiles")
Result = Mapping[str, Any]

TEXT = """\
# What the end of an epoch costs

Made by `python -m benchmarks.epoch_end` from [its results](../benchmarks/results/epoch_end.json); do not edit.
{setting}.

Checkpoints and averages of weights, on a TGD network in its compact form ({budget:.0%} of the filters' parameters
trainable) and on the plain network. The two take turns. CPU time of one thread. The ratio is to the plain network in
the same round: the median, and the quartiles.

* *state_dict*: `state_dict()`. A plain network hands out its own memory and copies nothing. The compact form puts whole
  parameters together from trainable and frozen rows.
* *load*: `load_state_dict` of a checkpoint in memory.
* *save*: `torch.save` of the `state_dict`, to memory.
* *average*: an update of `torch.optim.swa_utils.AveragedModel`, as an exponential moving average.

{table}

The goal is a ratio of {goal:g} at most; what misses it is bold. `state_dict` must miss it: beside a network that copies
nothing, every copy is many times as slow. Loading fills a buffer of each whole parameter, as in a plain network, and
then gathers the trainable rows and copies them to where they train. Once in an epoch, both are milliseconds.
"""


NETWORKS = {"DnCNN": OWN["DnCNN"], "ResNet-18": resnet18, "ResNet-50": OWN["ResNet-50"]}


def work(net: nn.Module, state: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """All that is measured, for one network."""
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    return {
        "state_dict": net.state_dict,
        "load": lambda: net.load_state_dict(state),
        "save": lambda: torch.save(net.state_dict(), io.BytesIO()),
        "average": lambda: average.update_parameters(net),
    }


def measure(make: Callable[[], nn.Module], rounds: int) -> dict[str, Any]:
    """Seconds of the plain network and of the compact one, and quartiles of their ratio."""
    torch.manual_seed(0)
    net = make()
    state = copy.deepcopy(net.state_dict())
    plain, compact = work(net, state), work(apply_tgd(net, torch.zeros(2, 3, 32, 32), budget=BUDGET), state)
    found = {}
    for name in plain:
        pairs = [(cpu_seconds(plain[name]), cpu_seconds(compact[name])) for _ in range(rounds + 1)][1:]
        found[name] = {
            "plain": statistics.median(one for one, _ in pairs),
            "compact": statistics.median(other for _, other in pairs),
            "ratio": [round(q, 2) for q in statistics.quantiles(other / one for one, other in pairs)],
        }
    return found


def rows(networks: Result) -> list[list[str]]:
    """The table's lines."""
    lines = []
    for network, found in networks.items():
        for name, one in found.items():
            low, middle, high = one["ratio"]
            ratio = f"{middle:.2f}" if middle <= GOAL else f"**{middle:.2f}**"
            times = [f"{1e3 * one[form]:.2f}" for form in ("plain", "compact")]
            lines.append([network, name, *times, ratio, f"{low:.2f}-{high:.2f}"])
    return lines


def page(results: Result) -> str:
    """The page, in Markdown."""
    versions = ", ".join(f"{name} {value}" for name, value in results["setting"].items())
    table = markdown(COLUMNS, rows(results["networks"]))
    return TEXT.format(setting=versions, budget=BUDGET, goal=GOAL, table=table)


@click.command()
@click.option("--rounds", default=31, show_default=True, help="How often each is done.")
def main(rounds: int) -> None:
    """Measure what is done between epochs."""
    torch.set_num_threads(1)
    networks = {name: measure(make, rounds) for name, make in NETWORKS.items()}
    results = {"setting": setting(threads=1, rounds=rounds), "networks": networks}
    write_json(RESULTS, results)
    PAGE.write_text(page(results), encoding="utf-8")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
