"""Law 3: the gradients are those of hand-masked autograd, and exactly zero where frozen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.laws.subjects import Method, gradients, in_both_forms, methods, on_every_topology, operated
from tests.oracles.gradients import assert_same_gradients, hand_masked_step
from tests.strategies import Case, call, cases, leaves, scalar_loss
from tests.topologies import case_of


def assert_true_gradients(case: Case, method: Method) -> None:
    """Raise unless output, gradients and statistics are the oracle's, and frozen gradients exactly zero."""
    case = case.double()
    tgd = operated(case, method)
    expected = hand_masked_step(case, tgd.tgd_plan)
    output = call(tgd, case.inputs)
    loss = scalar_loss(output)
    if loss.requires_grad:  # not where nothing is trainable
        loss.backward()
    for found, want in zip(leaves(output), leaves(expected.output), strict=True):
        # The oracle normalises by the textbook formula; torch scales and shifts in one step.
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-10)
    found = gradients(tgd)
    assert_same_gradients(found, expected.gradients)
    masks = tgd.tgd_plan.parameter_masks()
    for name, gradient in found.items():
        frozen = ~masks[name] if name in masks else torch.ones_like(gradient, dtype=torch.bool)
        assert not gradient[frozen].any()
    buffers = dict(tgd.named_buffers())
    for name in (name for entry in tgd.tgd_plan.entries for name in entry.layer.statistics):
        torch.testing.assert_close(buffers[name], expected.buffers[name], rtol=1e-12, atol=1e-12)


@given(case=cases(), method=methods, training=st.booleans())
def test_random_networks(case, method, training):
    assert_true_gradients(case.train(training), method)


@on_every_topology
@pytest.mark.parametrize("flow", ["masked", "full"])
@in_both_forms
def test_catalogue_in_training(name, flow, form):
    assert_true_gradients(case_of(name).train(), Method(flow=flow, form=form))


@on_every_topology
@in_both_forms
def test_catalogue_in_evaluation(name, form):
    assert_true_gradients(case_of(name), Method(form=form))


def watched(case: Case) -> Case:
    """The network with a hook of the user's: the graph form would not run it, so TGD layers are attached."""
    case.model.register_forward_hook(lambda *_: None)
    return case


@given(case=cases(), method=methods, training=st.booleans())
def test_random_networks_that_keep_their_class(case, method, training):
    assert_true_gradients(watched(case).train(training), method)


@on_every_topology
def test_catalogue_with_its_classes_kept(name):
    case = watched(case_of(name))
    assert isinstance(operated(case), type(case.model))
    assert_true_gradients(case.train(), Method())


@given(case=cases(), method=methods)
def test_a_second_backward_adds_the_same_again(case, method):
    case = case.double()
    tgd = operated(case, method)
    once = None
    for _ in range(2):
        loss = scalar_loss(call(tgd, case.inputs))
        if loss.requires_grad:
            loss.backward()
        once = once or {name: gradient.clone() for name, gradient in gradients(tgd).items()}
    assert_same_gradients(gradients(tgd), {name: 2 * gradient for name, gradient in once.items()})


PENALISED = ("chain", "global residual", "residual stages", "u-net", "squeeze and excite", "dense block")


def forms_agree(case: Case, flow: str, train: Callable[[nn.Module], Tensor]) -> None:
    """Raise unless a loss moves both forms, and in the same way."""
    found = []
    for form in ("compact", "layers"):
        tgd = operated(case, Method(flow=flow, form=form))
        train(tgd).backward()
        found.append(gradients(tgd))
    assert any(gradient.any() for gradient in found[0].values())
    assert_same_gradients(*found)


@pytest.mark.parametrize("name", PENALISED)
@pytest.mark.parametrize("flow", ["masked", "full"])
def test_a_gradient_penalty_moves_both_forms_alike(name, flow):
    case = case_of(name).double().train()

    def penalty(tgd: nn.Module) -> Tensor:
        x = case.inputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(scalar_loss(tgd(x)), x, create_graph=True)
        return gradient.square().sum()

    forms_agree(case, flow, penalty)


@pytest.mark.parametrize("name", PENALISED)
@pytest.mark.parametrize("flow", ["masked", "full"])
def test_the_memory_format_changes_no_gradient(name, flow):
    case = case_of(name).double().train()
    expected = {}
    for form in (torch.contiguous_format, torch.channels_last):
        model, x = case.model.to(memory_format=form), case.inputs.contiguous(memory_format=form)
        tgd = operated(Case(model, x), Method(flow=flow))
        scalar_loss(tgd(x)).backward()
        expected = expected or gradients(tgd)
    assert any(gradient.any() for gradient in expected.values())
    assert_same_gradients(gradients(tgd), expected)


def test_a_layer_frozen_whole_lets_the_loss_reach_the_layers_before_it():
    case = case_of("chain").double()
    for form in ("compact", "layers"):
        tgd = operated(case, Method(form=form))
        scalar_loss(call(tgd, case.inputs)).backward()
        assert not gradients(tgd)["6.weight"].any()
        assert gradients(tgd)["0.weight"][tgd.tgd_plan.trainable("0")].any()


def test_the_flows_are_different_methods():
    case = case_of("chain").double()
    found = []
    for flow in ("masked", "full"):
        tgd = operated(case, Method(flow=flow, phi=0.6))
        scalar_loss(call(tgd, case.inputs)).backward()
        found.append(gradients(tgd)["0.weight"])
    assert found[0].any()
    assert not torch.allclose(*found)
