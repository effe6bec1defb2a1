"""Law 3 on networks people use, in both forms and flows: the gradients are those of hand-masked autograd.

Planned at one size, trained at another.
"""

from __future__ import annotations

import pytest

from tests.laws.subjects import Method, gradients, in_both_forms, operated
from tests.oracles.gradients import assert_same_gradients, hand_masked_step
from tests.strategies import Case, call, scalar_loss
from tests.strategies.case import randomise
from tests.zoo.networks import NETWORKS

# Deprecations inside the zoo's own libraries.
pytestmark = pytest.mark.filterwarnings("default")

# Residual sums, dense blocks, shuffles, gates, depthwise convolutions, layer norms, skips and 3-d; and the two sizes
# of their inputs.
GRADIENTS = {
    "timm/resnet18": (32, 48),
    "torchvision/shufflenet_v2_x0_5": (32, 48),
    "torchvision/mobilenet_v3_small": (32, 48),
    "torchvision/squeezenet1_1": (32, 48),
    "timm/convnext_atto": (32, 64),
    "monai/UNet-3d": (16, 24),
    "monai/BasicUNetPlusPlus-2d": (32, 48),
    "smp/FPN-mobilenet_v2": (32, 64),
}


@pytest.mark.parametrize("flow", ["masked", "full"])
@in_both_forms
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_hand_masked_autograd(name, form, flow):
    planned_at, trained_at = GRADIENTS[name]
    net, image = NETWORKS[name].make(planned_at)
    case = Case(randomise(net, seed=0), image).double().train()
    tgd = operated(case, Method(phi=0.5, flow=flow, form=form))
    there = Case(case.model, NETWORKS[name].make(trained_at)[1]).double()
    expected = hand_masked_step(there, tgd.tgd_plan)
    scalar_loss(call(tgd, there.inputs)).backward()
    found = gradients(tgd)
    assert any(gradient.any() for gradient in found.values())
    assert_same_gradients(found, expected.gradients)
    masks = tgd.tgd_plan.parameter_masks()
    for parameter, gradient in found.items():
        assert not gradient[~masks[parameter]].any() if parameter in masks else not gradient.any()
