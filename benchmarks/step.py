"""What does a training step of the compact form cost, beside the other ways to fine-tune?

For each network, in a process of its own, the ways take turns, one step each, round after round, a full step in
each round:

* full: ordinary fine-tuning of all parameters;
* forward: only the forward pass of that step, without a graph;
* last layers: everything before the last three filter layers is frozen (the paper's FT-net);
* LoRA: rank 8 on every convolution without groups (PEFT);
* masked, full flow: TGD in its compact form at a share of the channels of every layer, with `flow="masked"` and
  `flow="full"`; the layers without a consumer are frozen, as in the paper, but for the share 1, where everything is
  trained;
* layers: the layers form with `flow="masked"`, at the share 0.25.

A step is forward, backward and a fused Adam. Its time is in CPU seconds of one thread; a ratio is that to the full
step of the same round, and its median over the rounds is given with the quartiles. Memory is what torch's allocator
held at most during a step beyond what it held before it, and the size of the optimizer's state.

The bound is that of a step which computes the forward, and of the backward only what the trainable share `a` needs.
With f for the forward's share of a full step it is `f + (1 - f) (a + a^2) / 2` where the flow is masked, and
`f + (1 - f) (a + 1) / 2` where it is full: the gradient of the loss needs the whole input gradient.

Run `make bench-step`; `python -m benchmarks.step_page` only rewrites docs/speed.md from the results.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import click
import monai.networks.nets as monai_nets
import torch
import torchvision
from peft import LoraConfig, inject_adapter_in_model
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import in_a_child, setting, write_json
from benchmarks.rows import moved
from benchmarks.step_page import RESULTS, write_page
from tgd_pet.network import DnCNN
from tgdsurgery import TGDPlan, apply_tgd, channel_map, plan_tgd

SHARES = (0.1, 0.25, 0.5, 0.9, 1.0)
LAYERS_SHARE = 0.25  # the layers form does the same work at any share
LIMIT = 1200.0  # seconds per network
RANK = 8
PROFILED = ("masked 0.25", "full flow 0.25")
MOVED = (*PROFILED, "masked 0.9", "full flow 0.9")
EVALUATED = PROFILED[0]  # in evaluation mode the flow makes no difference
WAYS_IN = 3  # how often the way in is measured
EVALUATIONS = 5  # rounds of forwards for each round of steps: they are short, and what is looked for is small
Result = dict[str, Any]


class Subject(NamedTuple):
    """A network, and the shape of the batch it is trained on."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    channels_last: bool = False


def dncnn() -> nn.Module:
    """The paper's denoiser, as if trained: a new one's last layer is zero, and scores nothing."""
    net = DnCNN()
    nn.init.kaiming_normal_(net.convolutions[-1].weight)
    return net


def unet(dims: int) -> nn.Module:
    """MONAI's U-Net with its usual widths."""
    widths, strides = (16, 32, 64, 128, 256), (2, 2, 2, 2)
    return monai_nets.UNet(dims, 1, 2, widths, strides, num_res_units=2)


SUBJECTS = {
    "DnCNN": Subject(dncnn, (8, 3, 32, 32)),
    "DnCNN, channels last": Subject(dncnn, (8, 3, 32, 32), channels_last=True),
    "ResNet-50": Subject(torchvision.models.resnet50, (4, 3, 128, 128)),
    "ResNet-18, small images": Subject(torchvision.models.resnet18, (8, 3, 32, 32)),
    "EfficientNet-B0": Subject(torchvision.models.efficientnet_b0, (8, 3, 128, 128)),
    "MONAI U-Net 2-d": Subject(partial(unet, 2), (8, 1, 96, 96)),
    "MONAI U-Net 3-d": Subject(partial(unet, 3), (2, 1, 48, 48, 48)),
}


class Way:
    """A way to fine-tune: a network, and the optimizer of its trainable parameters."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        self.net, self.x = net.train(), x
        self.trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=1e-6, fused=True)

    def step(self) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        y = self.net(self.x)
        F.mse_loss(y, torch.zeros_like(y)).backward()
        self.optimizer.step()

    def forward(self) -> None:
        """The forward pass of a step."""
        with torch.no_grad():
            self.net(self.x)

    def memory(self) -> Result:
        """Bytes at the peak of a step beyond those before it, and of the optimizer's state; after a first step."""
        state = [
            t for entry in self.optimizer.state.values() for t in entry.values() if isinstance(t, Tensor)
        ]
        self.optimizer.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        held = peak = 0
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return {
            "step_bytes": peak,
            "state_bytes": sum(t.nbytes for t in state),
            "trained": sum(parameter.numel() for parameter in self.trained),
        }


# Where the time of a step goes: the first group whose words are in the name of an op.
GROUPS = {
    "convolution backward": ("convolution_backward", "conv2d_backward", "conv3d_backward"),
    "convolution forward": ("convolution", "mkldnn", "slow_conv", "thnn_conv"),
    "normalisation": ("norm",),
    "gather and scatter": ("index", "scatter", "gather"),
    "copies and zeros": ("copy_", "fill_", "zero_", "clone", "cat"),
    "optimizer": ("adam",),
}


def profiled(way: Way) -> dict[str, float]:
    """Shares of the CPU time of a few steps, by kind of op."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            way.step()
    spent = dict.fromkeys([*GROUPS, "the rest"], 0.0)
    for event in profiler.key_averages():
        name = event.key.lower()
        group = next((g for g, words in GROUPS.items() if any(w in name for w in words)), "the rest")
        spent[group] += event.self_cpu_time_total
    return {group: round(time / sum(spent.values()), 4) for group, time in spent.items()}


def at_share(plan: TGDPlan, share: float) -> dict[str, Any]:
    """Overrides that make this share of the channels of each layer trainable: those that score least."""
    if share == 1:
        return dict.fromkeys(plan.layers, "train")
    chosen: dict[str, Any] = {}
    for entry in plan.entries:
        known = sorted(score for score in entry.scores if score is not None)
        if known:
            chosen[entry.layer.name] = known[min(len(known) - 1, round(share * len(known)))]
    return chosen


def last_layers(net: nn.Module, plan: TGDPlan) -> nn.Module:
    """All frozen before the third-last filter layer."""
    filters = [entry.layer.name for entry in plan.entries if entry.layer.role == "filter"]
    names = plan.layers[plan.layers.index(filters[-3]) :]
    net = copy.deepcopy(net).requires_grad_(False)
    for name in names:
        net.get_submodule(name).requires_grad_(True)
    return net


def lora(net: nn.Module) -> nn.Module:
    """Low-rank adapters beside every convolution without groups."""
    kinds = (nn.Conv2d, nn.Conv3d)
    names = [n for n, m in net.named_modules() if isinstance(m, kinds) and m.groups == 1]
    return inject_adapter_in_model(LoraConfig(r=RANK, target_modules=names), copy.deepcopy(net))


def groups(subject: Subject) -> Iterator[dict[str, Way]]:
    """All ways for one network, a few at a time, each time beside the full step: nobody trains a dozen at once."""
    torch.manual_seed(0)
    layout = torch.channels_last if subject.channels_last else torch.contiguous_format
    net = subject.make().train().to(memory_format=layout)
    x = torch.rand(subject.shape).to(memory_format=layout)
    example = (x[(slice(2), slice(None), *[slice(32)] * (x.dim() - 2))],)
    plan = plan_tgd(net, example)

    def beside_full(**found: nn.Module) -> dict[str, Way]:
        return {name: Way(each, x) for name, each in {"full": copy.deepcopy(net), **found}.items()}

    yield beside_full(**{"last layers": last_layers(net, plan), "LoRA": lora(net)})
    for share in SHARES:
        masked = replace(plan.override(at_share(plan, share)), flow="masked")
        found = {
            f"masked {share:g}": apply_tgd(net, example, plan=masked),
            f"full flow {share:g}": apply_tgd(net, example, plan=replace(masked, flow="full")),
        }
        if share == LAYERS_SHARE:
            found[f"layers {share:g}"] = apply_tgd(net, example, plan=masked, form="layers")
        yield beside_full(**found)


def measure(name: str, rounds: int) -> Result:
    """Times and memory of all ways."""
    warnings.simplefilter("ignore")
    os.environ["KINETO_LOG_LEVEL"] = "5"
    result: Result = {"shape": list(SUBJECTS[name].shape), "way_in": way_in(SUBJECTS[name])}
    result |= {"ratios": {}, "memory": {}, "products": {}, "moved": {}}
    full: list[float] = []
    for found in groups(SUBJECTS[name]):
        for way in found.values():
            way.step()
        result["memory"] |= {way: each.memory() for way, each in found.items()}
        result["products"] |= products(found)
        runs: dict[str, Callable[[], None]] = {way: each.step for way, each in found.items()}
        if not full:
            runs["forward"] = found["full"].forward
        result["moved"] |= {way: moved(found[way].step) for way in MOVED if way in found}
        seconds = taking_turns(runs, rounds)
        full += seconds["full"]
        result["ratios"] |= {way: ratios(each, seconds["full"]) for way, each in seconds.items()}
        if EVALUATED in found:
            result["profile"] = {way: profiled(found[way]) for way in ("full", *PROFILED)}
            control = Way(copy.deepcopy(found["full"].net), found["full"].x)
            result["evaluation"] = evaluated({**found, "control": control}, rounds)
    return result | {"seconds": statistics.median(full)}


def way_in(subject: Subject) -> dict[str, float]:
    """CPU seconds until a network can be trained: its map alone, with the scores, and all, the comparison included."""
    torch.manual_seed(0)
    net, x = subject.make(), torch.rand(subject.shape)
    parts: dict[str, Callable[[], object]] = {
        "map": lambda: channel_map(net, x),
        "plan": lambda: plan_tgd(net, x, budget=LAYERS_SHARE),
        "apply": lambda: apply_tgd(net, x, budget=LAYERS_SHARE),
    }
    channel_map(net, x)  # torch loads what it needs
    rounds = [taking_turns(parts, 1) for _ in range(WAYS_IN)]
    return {part: round(statistics.median(each[part][0] for each in rounds), 3) for part in parts}


def taking_turns(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return seconds


def evaluated(found: Mapping[str, Way], rounds: int) -> Result:
    """The forward of the compact network in evaluation mode, and of a second plain copy, against the plain one."""
    runs = {"full": found["full"], "control": found["control"], EVALUATED: found[EVALUATED]}
    for way in runs.values():
        way.net.eval()
        way.forward()
    seconds = taking_turns({name: way.forward for name, way in runs.items()}, EVALUATIONS * rounds)
    more = statistics.median(a - b for a, b in zip(seconds[EVALUATED], seconds["full"], strict=True))
    layers = sum(type(module).__name__.startswith("Compact") for module in found[EVALUATED].net.modules())
    result = {name: ratios(each, seconds["full"]) for name, each in seconds.items()}
    return result | {"per_layer_us": round(1e6 * more / layers, 1)}


def products(found: Mapping[str, Way]) -> dict[str, float]:
    """What torch counts of the multiplications of a step, as ratios to those of the full step."""
    counted = {}
    for name, way in found.items():
        if not any(getattr(module, "groups", 1) > 1 for module in way.net.modules()):
            with FlopCounterMode(display=False) as counter:
                way.step()
            counted[name] = counter.get_total_flops()
    return {name: round(count / counted["full"], 4) for name, count in counted.items()}


def ratios(one: list[float], other: list[float]) -> list[float]:
    """Quartiles of the ratio, round by round."""
    return [round(q, 4) for q in statistics.quantiles([a / b for a, b in zip(one, other, strict=True)])]


@click.command()
@click.option("--only", default="", help="Only networks whose name has this in it.")
@click.option("--rounds", default=11, show_default=True, help="Steps of each way.")
def main(only: str, rounds: int) -> None:
    """Measure the cost of a training step."""
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"networks": {}}
    found["setting"] = setting("torchvision", "monai", "peft", threads=1, rounds=rounds, rank=RANK)
    for name in track([name for name in SUBJECTS if only in name], description="networks"):
        found["networks"][name] = in_a_child(measure, name, rounds, limit=LIMIT)
        write_json(RESULTS, found)
    write_page()


if __name__ == "__main__":
    main()
