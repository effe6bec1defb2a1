"""States of networks as training leaves them, and what is done to them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from tgdsurgery import TGDPlan
from tgdsurgery.certificate.rules import COUNTER, rule_for, rules_of
from tgdsurgery.core.bits import as_bits

State = dict[str, Tensor]


def denoiser() -> nn.Sequential:
    """A small network whose statistics are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1)
        )
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def random_plan(plan: TGDPlan, seed: int) -> TGDPlan:
    """The same layers with channels that are trainable by chance."""
    draw = torch.Generator().manual_seed(seed)
    share = float(torch.rand((), generator=draw))
    entries = [
        replace(entry, mask=tuple((torch.rand(len(entry.mask), generator=draw) < share).tolist()))
        for entry in plan.entries
    ]
    return replace(plan, entries=tuple(entries))


def movable(state: State, plan: TGDPlan) -> dict[str, Tensor]:
    """By name, True at the entries that may move."""
    rules = rules_of(plan, state)
    masks = {name: rule_for(name, rules, state, state).movable for name in state}
    # A tensor of two names moves by the name that the plan knows.
    ties = {
        tensor.data_ptr(): masks[name] for name, tensor in state.items() if name in rules and tensor.numel()
    }
    return {name: ties.get(state[name].data_ptr(), mask) for name, mask in masks.items()}


def trained(state: State, plan: TGDPlan, seed: int) -> State:
    """A copy in which every entry that may move has moved; tensors of two names stay one."""
    draw = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(state)
    for name, mask in movable(state, plan).items():
        tensor = tuned[name]
        noise = torch.randint(1, 9, tensor.shape, generator=draw).to(tensor.dtype)
        tensor[mask] = (state[name] + noise)[mask]
    return tuned


def flip(state: State, plan: TGDPlan, seed: int) -> tuple[set[str], int] | None:
    """Flip one bit of one frozen entry; the names of its tensor and the entry's number, None if nothing is frozen."""
    draw = torch.Generator().manual_seed(seed)
    frozen = {
        name: (~mask).flatten().nonzero().flatten()
        for name, mask in movable(state, plan).items()
        if not mask.all() and name.rpartition(".")[2] != COUNTER
    }
    if not frozen:
        return None
    name = sorted(frozen)[int(torch.randint(len(frozen), (), generator=draw))]
    entry = int(frozen[name][int(torch.randint(len(frozen[name]), (), generator=draw))])
    bits = as_bits(state[name]).clone()
    width = 1 if state[name].dtype == torch.bool else 8 * bits.element_size()
    turned = torch.ones((), dtype=torch.int64) << int(torch.randint(width, (), generator=draw))
    bits.view(-1)[entry] ^= turned.to(bits.dtype)
    state[name].copy_(bits.view(state[name].dtype))
    return {other for other in state if state[other].data_ptr() == state[name].data_ptr()}, entry
