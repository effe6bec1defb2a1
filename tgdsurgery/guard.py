"""Frozen means frozen, whatever the optimizer does: the guard of the literal form, the audit of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tgdsurgery.errors import RewriteError
from tgdsurgery.records import TGDPlan
from tgdsurgery.report import as_text, table
from tgdsurgery.rewrite import tgd_form, trainable_entries, unwrapped
from tgdsurgery.sharding import gathered, is_sharded, like, local

# Integers of an element's size: equal integers are equal bits, whatever the type means by them.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_Index = tuple[Tensor, ...]


class Guard:
    """Handle of a guarded optimizer; `remove()`, or leaving it as a context manager, ends the guard.

    Args:
        optimizer: the optimizer.
        frozen: for each parameter, the index of its frozen entries (in this process's shard of it).
    """

    def __init__(self, optimizer: Optimizer, frozen: Mapping[nn.Parameter, _Index]) -> None:
        self._frozen = frozen
        self._kept: list[tuple[Tensor, _Index, Tensor]] = []
        self._handles = (
            optimizer.register_step_pre_hook(self._keep),
            optimizer.register_step_post_hook(self._put_back),
        )

    def remove(self) -> None:
        """Let the optimizer move all entries again."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @torch.no_grad()
    def _keep(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._kept = []
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if parameter in self._frozen:
                own = local(parameter)
                index = tuple(axis.to(own.device) for axis in self._frozen[parameter])
                self._kept.append((own, index, own[index].clone()))

    @torch.no_grad()
    def _put_back(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for own, index, values in self._kept:
            own[index] = values
        self._kept = []


def guard(optimizer: Optimizer, tgd_model: nn.Module) -> Guard:
    """Keep the frozen entries where they are in every `optimizer.step()`, bit for bit.

    A frozen entry's gradient is zero, but weight decay, momentum, and the state of an optimizer that was
    used before move it all the same. The guard copies the frozen entries before `step` runs, and puts them
    back after it. It works with every optimizer of `torch.optim` and all that build on its `Optimizer`, and
    with a GradScaler; with FSDP2, shard the model first. In the lowered form only the layers that could not
    be made compact need it: in all others, frozen entries are no parameters.

    Args:
        optimizer: holds all or some of the model's parameters.
        tgd_model: what apply_tgd returned; may be wrapped in DDP, DataParallel or torch.compile.

    Raises:
        RewriteError: `tgd_model` is no TGD network, or the optimizer holds none of its parameters.

    Example:
        >>> from tgdsurgery.records import Layer, LayerPlan, ParameterRows, TGDPlan
        >>> from tgdsurgery.rewrite import insert
        >>> layer = Layer("0", "filter", "Linear", 2, (ParameterRows("0.weight", (2, 1)),), (), ("0",), -1)
        >>> entry = LayerPlan(layer, (0.1, 0.9), (True, False))
        >>> plan = TGDPlan(0.3, None, 5, 1.0, "masked", "hold", (entry,))
        >>> net = insert(nn.Sequential(nn.Linear(1, 2, bias=False)), plan, torch.ones(1, 1))
        >>> _ = torch.nn.init.ones_(net.get_parameter("0.weight"))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=1.0)
        >>> with guard(optimizer, net):
        ...     net(torch.ones(1, 1)).sum().backward()
        ...     optimizer.step()
        >>> net.get_parameter("0.weight").flatten().tolist()
        [0.0, 1.0]
    """
    net = tgd_form(tgd_model)
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(net.parameters()):
        raise RewriteError(
            "The optimizer holds none of the TGD model's parameters (made from the model before apply_tgd?).",
            "Make it from the parameters of the network that apply_tgd returned.",
        )
    masks = trainable_entries(net, vars(net)["tgd_plan"])
    return Guard(optimizer, {p: _frozen_index(mask, p) for p, mask in masks.items() if not mask.all()})


def _frozen_index(trainable: Tensor, parameter: Any) -> _Index:
    """Index of the False entries over the leading axes only, as many as the mask varies along."""
    while trainable.ndim and (trainable.shape[-1] == 1 or trainable.stride(-1) == 0):
        trainable = trainable.select(-1, 0)
    if trainable.ndim and is_sharded(parameter):
        trainable = local(like(trainable.contiguous().to(parameter.device), parameter))
    return (~trainable).nonzero(as_tuple=True) if trainable.ndim else ()


@dataclass(frozen=True)
class AuditRow:
    """One parameter, or one running statistic: how many entries are frozen, and how many of these changed."""

    name: str
    frozen: int
    changed: int


@dataclass(frozen=True)
class Audit:
    """What `verify` found; prints as a table.

    Args:
        parameters: every parameter with frozen entries.
        statistics: every running statistic with frozen channels; empty if the plan lets them move.
    """

    parameters: tuple[AuditRow, ...]
    statistics: tuple[AuditRow, ...]

    @property
    def ok(self) -> bool:
        """Whether no frozen entry changed."""
        return not any(row.changed for row in (*self.parameters, *self.statistics))

    def __str__(self) -> str:
        rows = [
            (row.name, f"{row.frozen:,}", f"{row.changed:,}") for row in (*self.parameters, *self.statistics)
        ]
        verdict = "nothing frozen has changed" if self.ok else "FROZEN ENTRIES HAVE CHANGED"
        return as_text(table(("tensor", "frozen", "changed"), rows, title="TGD audit", caption=verdict))


def verify(
    before: nn.Module | Mapping[str, Tensor], after: nn.Module | Mapping[str, Tensor], plan: TGDPlan
) -> Audit:
    """Compare what the plan freezes, bit for bit (a NaN equals the same NaN, 0.0 is not -0.0).

    Running statistics count only with `norm_stats="hold"`; with "batch" they are meant to move. Where FSDP2
    keeps a network in pieces, all processes must call this.

    Args:
        before: the network, or its `state_dict`, before training (plain or rewritten: the keys are the same).
        after: the same after training.
        plan: what was to be frozen.

    Raises:
        RewriteError: one of the two lacks a tensor of the plan, or has another shape or dtype.
    """
    one, other = _state(before), _state(after)
    masks = dict(plan.parameter_masks())
    for name in plan.unmapped:
        masks[name] = torch.zeros_like(_tensor(one, name), dtype=torch.bool, device="cpu")  # type: ignore[assignment]
    parameters = [_row(name, mask, one, other) for name, mask in masks.items() if not mask.all()]
    statistics = []
    if plan.norm_stats == "hold":
        held = [(name, plan.trainable(e.layer.name)) for e in plan.entries for name in e.layer.statistics]
        statistics = [_row(name, mask, one, other) for name, mask in held if not mask.all()]
    return Audit(tuple(parameters), tuple(statistics))


def _row(name: str, trainable: Tensor, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> AuditRow:
    a, b = _tensor(one, name), _tensor(other, name)
    if a.shape != b.shape or a.shape != trainable.shape or a.dtype != b.dtype:
        raise RewriteError(
            f"{name!r} is {tuple(a.shape)} {a.dtype} before, {tuple(b.shape)} {b.dtype} after, "
            f"{tuple(trainable.shape)} in the plan.",
            "Compare two states of the network that the plan was made for.",
        )
    changed = (_bits(a) != _bits(b)) & ~trainable
    return AuditRow(name, int((~trainable).sum()), int(changed.sum()))


def _state(network: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return unwrapped(network).state_dict() if isinstance(network, nn.Module) else network


def _tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return gathered(state[name].detach()).cpu()
    except KeyError:
        raise RewriteError(
            f"There is no {name!r} to compare.", "Give two states of the network that the plan was made for."
        ) from None


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.element_size()])
