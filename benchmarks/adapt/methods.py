"""The methods: what each trains of a pretrained network, and what it adds to the loss."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from benchmarks.adapt.scores import scorer
from benchmarks.adapt.task import Task
from tgd_kit.training.distillation import Distillation
from tgdsurgery import PlanWarning, apply_tgd, channel_map, plan_tgd, remove_tgd

Trains = Literal["all", "last", "norms", "biases", "lora", "tgd"]
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
KEEP = 1.0  # weight of the distillation


@dataclass(frozen=True)
class Method:
    """A way to adapt.

    Args:
        name: as in tables.
        group: methods of one group have one colour in figures.
        trains: all parameters; the last three layers; norms; biases; low-rank updates; or what TGD chooses.
        rank: of the low-rank updates.
        flow: of TGD.
        share: TGD's budget; None for the defaults of `apply_tgd`, whatever they are.
        score: what chooses TGD's filters.
        sampled: the share of the rows that the input gradient comes from; None for all that the flow allows.
        rounds: of TGD, each with masks of its own.
        head: whether TGD trains all of the last layer, too, which no layer reads: the paper freezes it.
        anchor: L2-SP's pull towards the weights before, `anchor / 2 * |w - w0|^2`.
        distil: weight of the distillation (LwF).
        rate_of: the name of the method whose learning rate it has; its own is looked for if empty.
    """

    name: str
    group: str
    trains: Trains = "all"
    rank: int = 0
    flow: Literal["masked", "full"] = "full"
    share: float | None = None
    score: str = "lowest KSE"
    sampled: float | None = None
    rounds: int = 1
    head: bool = False
    anchor: float = 0.0
    distil: float = 0.0
    rate_of: str = ""


def _tgd(
    flow: Literal["masked", "full"], percent: int, distil: float = 0.0, sampled: float | None = None
) -> Method:
    name = f"TGD {'sampled' if sampled else flow} {percent} %"
    group = f"TGD {'sampled' if sampled else flow}"
    if distil:
        name, group = f"{name} + Keep", f"{group} + Keep"
    return Method(name, group, "tgd", flow=flow, share=percent / 100, sampled=sampled, distil=distil)


SHARES, RANKS = (10, 25, 50), (2, 8, 32)
REFERENCE = "TGD full 25 %"
PEERS = (
    Method("full fine-tuning", "full fine-tuning"),
    Method("last layers", "last layers", "last"),
    Method("norms only", "norms only", "norms"),
    Method("biases only", "biases only", "biases"),
    Method("L2-SP", "L2-SP", anchor=0.1),
    Method("LwF", "LwF", distil=KEEP),
    *(Method(f"LoRA {rank}", "LoRA", "lora", rank) for rank in RANKS),
    Method("LoRA 8 + LwF", "LoRA + LwF", "lora", 8, distil=KEEP),
)
OURS = (
    *(_tgd("masked", share) for share in SHARES),
    *(_tgd("full", share) for share in SHARES),
    _tgd("full", 25, sampled=0.25),
    _tgd("masked", 25, KEEP),
    *(_tgd("full", share, KEEP) for share in SHARES),
    Method("TGD by default", "TGD by default", "tgd"),
)
CHOICES = tuple(
    Method(f"by {score}", "choice", "tgd", share=0.25, score=score, rate_of=REFERENCE)
    for score in ("lowest L1", "FPGM", "batch-norm scale", "KSE x gradient", "random", "highest KSE")
)


def _ingredient(
    name: str, percent: int = 25, distil: float = 0.0, *, head: bool = False, rounds: int = 1
) -> Method:
    return Method(
        name,
        "ingredient",
        "tgd",
        share=percent / 100,
        distil=distil,
        head=head,
        rounds=rounds,
        rate_of=REFERENCE,
    )


INGREDIENTS = (
    _ingredient("Keep 0.3", distil=0.3),
    _ingredient("Keep 3", distil=3.0),
    _ingredient("Keep, two rounds", distil=KEEP, rounds=2),
    _ingredient("last layer", head=True),
    _ingredient("Keep, last layer", distil=KEEP, head=True),
    _ingredient("Keep 0.3, last layer", distil=0.3, head=True),
    _ingredient("50 %, Keep 0.3", 50, 0.3),
    _ingredient("50 %, last layer", 50, head=True),
    _ingredient("50 %, Keep, last layer", 50, KEEP, head=True),
    _ingredient("50 %, Keep 0.3, last layer", 50, 0.3, head=True),
    *(
        Method(f"sampled, p = {p:g}", "sampled", "tgd", share=0.25, sampled=p, rate_of=REFERENCE)
        for p in (0.125, 0.5)
    ),
)
METHODS = {method.name: method for method in (*PEERS, *OURS, *CHOICES, *INGREDIENTS)}


def applies(method: Method, network: nn.Module) -> bool:
    """Whether the network has what the method needs."""
    needs_norms = method.trains == "norms" or method.score == "batch-norm scale"
    norms = (module for module in network.modules() if isinstance(module, NORMS))
    return not needs_norms or any(
        parameter.requires_grad for norm in norms for parameter in norm.parameters()
    )


def prepared(method: Method, task: Task, seed: int) -> nn.Module:
    """A copy of the task's network that trains only what the method trains, in the mode that it is trained in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the low-rank updates, and of random scores
        if method.trains == "tgd":
            return in_training(with_tgd(task.network, method, task, seed))
        network = copy.deepcopy(task.network)
        if method.trains == "lora":
            network = inject_adapter_in_model(
                LoraConfig(r=method.rank, target_modules=_filters(network)), network
            )
        elif method.trains != "all":
            network.requires_grad_(False)
            for parameter in _parameters(network, method, task):
                parameter.requires_grad_(True)
    return in_training(network)


def in_training(network: nn.Module) -> nn.Module:
    """The network in training mode, but for batch norms: they keep their running statistics in all methods."""
    network.train()
    for module in network.modules():
        if isinstance(module, _NormBase):
            module.eval()
    return network


def with_tgd(network: nn.Module, method: Method, task: Task, seed: int) -> nn.Module:
    """TGD applied to a plain network."""
    inputs, targets = next(task.batches(seed))
    if method.share is None:
        with warnings.catch_warnings():  # that it trains very little is seen in the results
            warnings.simplefilter("ignore", PlanWarning)
            return apply_tgd(network, inputs)
    score = scorer(method.score, network, inputs, lambda outputs: task.loss(outputs, targets), seed)
    plan = plan_tgd(network, inputs, budget=method.share, flow=method.flow, score=score)
    if method.head:
        last = [entry.layer.name for entry in plan.entries if entry.layer.role == "filter"][-1]
        plan = plan.override({last: "train"})
    return apply_tgd(network, inputs, plan=plan)


def another_round(network: nn.Module, method: Method, task: Task, seed: int) -> nn.Module:
    """TGD taken out and applied again: the masks are those of the weights now."""
    return in_training(with_tgd(remove_tgd(network).eval(), method, task, seed))


def added_loss(method: Method, task: Task, network: nn.Module) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What the method adds to the loss, of inputs and outputs; None if nothing."""
    if method.distil:
        return Distillation(task.network, method.distil, task.distance)
    if method.anchor:
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        before = [parameter.detach().clone() for parameter in trained]
        pull = method.anchor / 2

        def anchored(inputs: Tensor, outputs: Tensor) -> Tensor:
            return pull * sum(((p - b) ** 2).sum() for p, b in zip(trained, before, strict=True))

        return anchored
    return None


@contextlib.contextmanager
def scaled(network: nn.Module, base: nn.Module, scale: float) -> Iterator[nn.Module]:
    """The network with a share of what training changed, for a while."""
    updates = [module for module in network.modules() if isinstance(module, LoraLayer)]
    if updates:
        for module in updates:
            module.scale_layer(scale)
        yield network
        for module in updates:
            module.unscale_layer()
        return
    plain = remove_tgd(network) if hasattr(network, "tgd_plan") else copy.deepcopy(network)
    before = base.state_dict()
    state = {
        name: torch.lerp(before[name], value, scale) if value.is_floating_point() else value
        for name, value in plain.state_dict().items()
    }
    plain.load_state_dict(state)
    yield plain.eval()


def _filters(network: nn.Module) -> list[str]:
    """Convolutions without groups, and linear layers."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and module.groups == 1)
    ]


def _parameters(network: nn.Module, method: Method, task: Task) -> Iterator[nn.Parameter]:
    if method.trains == "biases":
        yield from (parameter for name, parameter in network.named_parameters() if name.endswith("bias"))
    elif method.trains == "norms":
        for module in network.modules():
            if isinstance(module, NORMS):
                yield from module.parameters(recurse=False)
    else:
        layers = channel_map(network, next(task.batches(0))[0]).layers
        third_last = [name for name, layer in layers.items() if layer.role == "filter"][-3]
        for name in list(layers)[list(layers).index(third_last) :]:
            yield from network.get_submodule(name).parameters(recurse=False)
