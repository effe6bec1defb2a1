"""The proof: what the plan freezes, compared bit for bit before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tgdsurgery.core.bits import differing
from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.norm_statistics import held_statistics
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.sharding import gathered
from tgdsurgery.core.tables import as_text, table
from tgdsurgery.surgery.intact import refuse_replaced
from tgdsurgery.surgery.tgd_network import plan_of, unwrapped


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


Network = nn.Module | Mapping[str, Tensor]


def verify(before: Network, after: Network, plan: TGDPlan | None = None) -> Audit:
    """Compare what the plan freezes, bit for bit (a NaN equals the same NaN, 0.0 is not -0.0).

    Running statistics count only with `norm_stats="hold"`; with "batch" they are meant to move. Other buffers
    (counters, caches) are not compared: no plan freezes them. Where FSDP2
    keeps a network in pieces, all processes must call this.

    Args:
        before: the network, or its `state_dict`, before training (plain or rewritten: the keys are the same).
        after: the same after training.
        plan: what was to be frozen; that of the TGD network among the two if None.

    Raises:
        RewriteError: a layer of a TGD network was replaced or pruned after apply_tgd; one of the two lacks a tensor of
            the plan, or has another shape or dtype; or no plan is given and neither is a TGD network.

    Example:
        >>> from tgdsurgery import apply_tgd
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
        >>> tgd = apply_tgd(net, phi=0.5)
        >>> verify(net, tgd).ok
        True
    """
    plan = plan or _plan_among(after, before)
    one, other = _state(before), _state(after)
    masks = dict(plan.parameter_masks())
    for name in plan.unmapped:
        masks[name] = torch.zeros_like(_tensor(one, name), dtype=torch.bool, device="cpu")  # type: ignore[assignment]
    parameters = [_row(name, mask, one, other) for name, mask in masks.items() if not mask.all()]
    statistics = [_row(name, mask, one, other) for name, mask in held_statistics(plan).items()]
    return Audit(tuple(parameters), tuple(statistics))


def _plan_among(*networks: Network) -> TGDPlan:
    """The plan of the first TGD network among these."""
    for network in networks:
        if isinstance(network, nn.Module) and "tgd_plan" in vars(unwrapped(network)):
            return plan_of(network)
    raise RewriteError(
        "Neither of the two is a TGD network, so nothing says what was to be frozen.",
        "Pass the plan: verify(before, after, plan).",
    )


def _row(name: str, trainable: Tensor, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> AuditRow:
    a, b = _tensor(one, name), _tensor(other, name)
    if a.shape != b.shape or a.shape != trainable.shape or a.dtype != b.dtype:
        raise RewriteError(
            f"{name!r} is {tuple(a.shape)} {a.dtype} before, {tuple(b.shape)} {b.dtype} after, "
            f"{tuple(trainable.shape)} in the plan.",
            "Compare two states of the network that the plan was made for.",
        )
    changed = differing(a, b) & ~trainable
    return AuditRow(name, int((~trainable).sum()), int(changed.sum()))


def _state(network: Network) -> Mapping[str, Tensor]:
    if not isinstance(network, nn.Module):
        return network
    net = unwrapped(network)
    if "tgd_plan" in vars(net):
        refuse_replaced(net)
    return net.state_dict()


def _tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return gathered(state[name].detach()).cpu()
    except KeyError:
        raise RewriteError(
            f"There is no {name!r} to compare.", "Give two states of the network that the plan was made for."
        ) from None
