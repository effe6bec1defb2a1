"""Weights that several layers share, that are fused after training, or that torch computes from others."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.laws.subjects import Method, assert_equal_tensors, in_both_forms, operated
from tests.strategies import Case, call, scalar_loss
from tests.topologies import case_of
from tests.topologies.weights import deployed
from tgdsurgery import apply_tgd, plan_tgd, remove_tgd, verify


def trained(case: Case, tgd: nn.Module, decay: float = 0.1) -> nn.Module:
    """Two steps of an optimizer that would move everything."""
    optimizer = torch.optim.AdamW(tgd.parameters(), lr=0.01, weight_decay=decay)
    for _ in range(2):
        optimizer.zero_grad()
        scalar_loss(call(tgd, case.inputs)).backward()
        optimizer.step()
    return tgd


def moved_rows(before: nn.Module, after: nn.Module, name: str) -> list[bool]:
    """Which rows of a parameter differ."""
    pairs = zip(before.state_dict()[name], after.state_dict()[name], strict=True)
    return [not torch.equal(old, new) for old, new in pairs]


@in_both_forms
def test_owners_of_one_weight_train_the_same_rows(form):
    case = case_of("tied weights").train()
    tgd = trained(case, operated(case, Method(form=form)))
    parameters = dict(tgd.named_parameters(remove_duplicate=False))
    assert parameters["second.weight"] is parameters["first.weight"]
    trainable = tgd.tgd_plan.trainable("first").tolist()
    assert any(trainable)
    assert not all(trainable)
    for name in ("first.weight", "second.weight", "first.bias", "second.bias"):
        assert moved_rows(case.model, tgd, name) == trainable
    plain = remove_tgd(tgd)
    assert plain.second.weight is plain.first.weight


@in_both_forms
def test_owners_that_share_a_weight_along_other_axes_freeze_it(form):
    """A row of the encoder's weight is a column of the decoder's: there is no row that both could train."""
    case = case_of("tied weights").train()
    tgd = trained(case, operated(case, Method(form=form)))
    assert "encoder.weight" in tgd.tgd_plan.unmapped
    assert tgd.decoder.weight is tgd.encoder.weight
    assert torch.equal(tgd.encoder.weight, case.model.encoder.weight)
    plain = remove_tgd(tgd)
    assert plain.decoder.weight is plain.encoder.weight
    assert plain.encoder.weight.requires_grad


@in_both_forms
def test_a_module_under_two_names_is_one_layer(form):
    case = case_of("one module, two names").train()
    tgd = trained(case, operated(case, Method(form=form)))
    plan = tgd.tgd_plan
    assert "again" not in plan.layers
    assert moved_rows(case.model, tgd, "again.weight") == plan.trainable("first").tolist()
    plain = remove_tgd(tgd)
    assert plain.again is plain.first


@in_both_forms
def test_branches_are_adapted_then_fused(form):
    """The usual order: pretrained in branches, adapted with TGD in branches, deployed as one convolution."""
    case = case_of("reparameterised blocks in branches").double().train()
    tgd = trained(case, operated(case, Method(form=form)))
    assert verify(case.model, tgd, tgd.tgd_plan).ok
    plain = remove_tgd(tgd).eval()
    expected = call(plain, case.inputs)
    found = call(deployed(plain), case.inputs)
    assert not torch.equal(call(case.model.eval(), case.inputs), expected)
    # Float64, and sums of some dozen products in another order.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@in_both_forms
def test_a_fused_network_is_adapted_like_any_other(form):
    case = case_of("reparameterised blocks in branches")
    fused = Case(deployed(case.model), case.inputs)
    tgd = trained(fused, operated(fused, Method(phi=0.5, form=form)))
    assert tgd.tgd_plan.layers == ("0", "1.fused", "2.fused", "3")
    assert verify(fused.model, tgd, tgd.tgd_plan).ok
    rows = tgd.tgd_plan.trainable("1.fused").tolist()
    assert any(rows)
    assert moved_rows(fused.model, tgd, "1.fused.weight") == rows


@in_both_forms
@pytest.mark.parametrize("method", ["matrix_exp", "cayley", "householder"])
@pytest.mark.parametrize("features", [4, 6])
def test_orthogonal_layers(method, features, form):
    """As torch initialises them: its Householder form keeps signs on the diagonal, which are no weights."""
    torch.manual_seed(0)
    orthogonal = parametrizations.orthogonal(nn.Linear(4, features), orthogonal_map=method)
    net = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), orthogonal, nn.SiLU(), nn.Linear(features, 2))
    case = Case(net, torch.randn(5, 3))
    plan = plan_tgd(net, case.inputs, phi=0.7)
    # Every filter is made of all rows, yet each row is trained or frozen as its own filter's score says.
    name = "2.parametrizations.weight.original"
    assert plan.parameter_masks()[name].all(1).tolist() == plan.trainable("2").tolist()
    # Weight decay would shrink those signs to nothing, with TGD or without.
    tgd = trained(case, apply_tgd(net, case.inputs, phi=0.7, form=form), decay=0)
    assert verify(net, tgd, plan).ok
    frozen = ~plan.trainable("2")
    after, before = tgd.state_dict()[name], net.state_dict()[name]
    assert_equal_tensors([after[frozen]], [before[frozen]])
    assert not torch.equal(after, before)
    weight = remove_tgd(tgd)[2].weight
    # Float32 products of orthonormal columns: rounding of some 1e-7 per entry.
    torch.testing.assert_close(weight.T @ weight, torch.eye(4), rtol=0, atol=1e-5)
