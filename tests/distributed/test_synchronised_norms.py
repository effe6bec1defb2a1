"""SyncBatchNorm: converted before apply_tgd it is a norm like others; afterwards it is refused.

On a CPU it trains in one process only, without sending anything; what several machines would send is torch's own.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.distributed.subject import base, batch, train
from tests.laws.subjects import in_both_forms
from tests.laws.test_law4_frozen import frozen_part
from tgdsurgery import RewriteError, apply_tgd, plan_tgd, remove_tgd, verify

convert = nn.SyncBatchNorm.convert_sync_batchnorm


def partly_frozen(net: nn.Module, **settings: object) -> nn.Module:
    return apply_tgd(net, batch(0), phi=0.8, **settings).train()


@in_both_forms
def test_converted_before(form):
    plain, synchronised = base(), convert(base())
    plan = plan_tgd(synchronised, batch(0), phi=0.8)
    expected = plan_tgd(plain, batch(0), phi=0.8)
    assert [e.mask for e in plan.entries] == [e.mask for e in expected.entries]
    assert plan["4"].layer.type == "SyncBatchNorm"
    assert any(plan["4"].mask)
    assert not all(plan["4"].mask)
    tgd = partly_frozen(synchronised, form=form)
    assert isinstance(tgd.get_submodule("4"), nn.SyncBatchNorm)
    before, frozen = copy.deepcopy(tgd.state_dict()), frozen_part(tgd)
    optimizer = torch.optim.SGD(tgd.parameters(), lr=0.05, weight_decay=0.1)
    train(tgd, optimizer, range(2))
    assert verify(before, tgd, tgd.tgd_plan).ok
    assert all(torch.equal(value, frozen[name]) for name, value in frozen_part(tgd).items())
    mask, mean = tgd.tgd_plan.trainable("4"), tgd.state_dict()["4.running_mean"]
    assert (mean[mask] != before["4.running_mean"][mask]).all()
    assert type(remove_tgd(tgd).get_submodule("4")) is nn.SyncBatchNorm


@in_both_forms
def test_it_trains_as_batch_norm_does(form):
    states = []
    for net in (base(), convert(base())):
        tgd = partly_frozen(net, form=form)
        optimizer = torch.optim.SGD(tgd.parameters(), lr=0.05, momentum=0.9)
        train(tgd, optimizer, range(3))
        states.append(tgd.state_dict())
    for key, value in states[0].items():
        # A compact backward sums in another order than the plain one.
        torch.testing.assert_close(states[1][key], value, rtol=1e-10, atol=1e-12)


def test_converted_afterwards_is_refused_at_the_first_forward():
    converted = convert(partly_frozen(base(), form="layers"))
    with pytest.raises(RewriteError, match="convert_sync_batchnorm on the model before"):
        converted(batch(0))


def test_the_compact_form_is_not_converted_afterwards():
    """Its whole weight, put together for reading, does not become the new norm's."""
    with pytest.raises(RewriteError, match="convert or fuse layers before apply_tgd"):
        convert(partly_frozen(base(), form="compact"))


def test_a_norm_frozen_whole_cannot_be_converted_afterwards():
    frozen = {"overrides": {"4": "freeze"}}
    with pytest.raises(TypeError, match="as parameter 'weight'"):  # torch's own: it holds no Parameter
        convert(partly_frozen(base(), **frozen))
    converted = convert(partly_frozen(base(), form="layers", **frozen))
    with pytest.raises(RewriteError, match="convert_sync_batchnorm on the model before"):
        converted(batch(0))


@in_both_forms
def test_what_is_trained_whole_may_be_converted_afterwards(form):
    tgd = partly_frozen(base(), form=form, overrides={"4": "train"})
    assert torch.equal(convert(copy.deepcopy(tgd))(batch(0)), tgd(batch(0)))
