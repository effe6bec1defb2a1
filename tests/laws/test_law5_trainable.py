"""Law 5: every trainable entry moves as its gradient says."""

from __future__ import annotations

import torch
from hypothesis import given

from tests.laws.subjects import Method, gradients, in_both_forms, methods, on_every_topology, operated
from tests.strategies import Case, call, cases, scalar_loss
from tests.topologies import case_of

RATE = 0.5


def assert_trainable_move(case: Case, method: Method) -> bool:
    """Raise unless one step of SGD is taken as written down; returns whether anything moved."""
    case = case.double()
    tgd = operated(case, method)
    loss = scalar_loss(call(tgd, case.inputs))
    if not loss.requires_grad:
        assert tgd.tgd_plan.share == 0
        return False
    optimizer = torch.optim.SGD(tgd.parameters(), lr=RATE)
    loss.backward()
    before = {name: value.clone() for name, value in tgd.state_dict().items()}
    found = gradients(tgd)
    optimizer.step()
    any_moved = False
    for name, mask in tgd.tgd_plan.parameter_masks().items():
        after = tgd.state_dict()[name]
        expected = torch.where(mask, torch.add(before[name], found[name], alpha=-RATE), before[name])
        assert torch.equal(after, expected), name
        # In float64 a step larger than 1e-12 of the value cannot be rounded away.
        large = mask & (found[name].abs() > 1e-12 * (1 + before[name].abs()))
        assert bool((after != before[name])[large].all()), name
        any_moved |= bool(large.any())
    return any_moved


@given(case=cases(), method=methods)
def test_random_networks(case, method):
    assert_trainable_move(case.train(), method)


@on_every_topology
@in_both_forms
def test_catalogue(name, form):
    assert assert_trainable_move(case_of(name).train(), Method(form=form))
