"""Laws 1, 3 and 4 on real networks with norms that are not torch's, and under averages that write to a state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from tests.laws.subjects import (
    Method,
    assert_equal_tensors,
    assigned,
    gradients,
    in_both_forms,
    norms_of,
    operated,
)
from tests.laws.test_law4_frozen import frozen_part
from tests.oracles.gradients import assert_same_gradients, hand_masked_step
from tests.strategies import Case, call, leaves, scalar_loss
from tests.strategies.case import randomise
from tgdsurgery import remove_tgd

# Deprecations inside the zoo's own libraries.
pytestmark = pytest.mark.filterwarnings("default")


def detection_backbone() -> nn.Module:
    """As torchvision's pretrained detectors have it."""
    return _resnet_fpn_extractor(resnet18(norm_layer=FrozenBatchNorm2d), 5)


def frozen_by_timm() -> nn.Module:
    """With the batch norms and activations of timm frozen, as its `freeze` does it."""
    net = timm.create_model("resnet10t", num_classes=10)
    return freeze_batch_norm_2d(net)


FROZEN: dict[str, Callable[[], nn.Module]] = {"torchvision": detection_backbone, "timm": frozen_by_timm}


@pytest.mark.parametrize("name", FROZEN)
@in_both_forms
def test_frozen_batch_norms(name, form):
    torch.manual_seed(0)
    net = randomise(FROZEN[name](), seed=0)
    case = Case(net, torch.randn(2, 3, 64, 64)).double()
    tgd = operated(case, Method(phi=0.5, form=form))
    before = frozen_part(tgd)
    for mode in (False, True):
        found, expected = (leaves(call(one.train(mode), case.inputs)) for one in (tgd, case.model))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    step = hand_masked_step(case, tgd.tgd_plan)
    optimizer = torch.optim.SGD([p for p in tgd.parameters() if p.requires_grad], 0.01, weight_decay=0.1)
    scalar_loss(call(tgd, case.inputs)).backward()
    assert_same_gradients(gradients(tgd), step.gradients)
    optimizer.step()
    assert_equal_tensors(frozen_part(tgd), before)


class ByHand:
    """As ultralytics' ModelEMA and many others write it."""

    def __init__(self, net: nn.Module) -> None:
        self.module = copy.deepcopy(net).eval()

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        present = net.state_dict()
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                value.mul_(0.5).add_(0.5 * present[name].detach())


AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    "ModelEmaV2": lambda net: ModelEmaV2(net, decay=0.5),
    "ModelEmaV3": lambda net: ModelEmaV3(net, decay=0.5),
    "ModelEmaV3, one by one": lambda net: ModelEmaV3(net, decay=0.5, foreach=False),
    "by hand": ByHand,
}


def trained(net: nn.Module, average: Any, image: Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net.train()(image).square().mean().backward()
        optimizer.step()
        average.update(net)


@pytest.mark.parametrize("name", AVERAGES)
@in_both_forms
def test_averages_that_write_to_a_state(name, form):
    """What they average is what is trained, in trainable entries; the others stay."""
    torch.manual_seed(0)
    net, image = randomise(timm.create_model("resnet18", num_classes=10), seed=0), torch.randn(2, 3, 64, 64)
    tgd = operated(Case(net, image), Method(phi=0.5, form=form))
    before, average = frozen_part(tgd), AVERAGES[name](tgd)
    past = [{key: value.clone() for key, value in tgd.state_dict().items()}]

    class Recorded:
        def update(self, one: nn.Module) -> None:
            average.update(one)
            past.append({key: value.clone() for key, value in one.state_dict().items()})

    trained(tgd, Recorded(), image)
    assert_equal_tensors(frozen_part(average.module), before)
    assert_equal_tensors(frozen_part(tgd), before)
    found, masks = remove_tgd(average.module).state_dict(), tgd.tgd_plan.parameter_masks()
    assert sum(not torch.equal(found[key], past[0][key]) for key in masks) > len(masks) / 2
    for key, mask in masks.items():
        expected = past[0][key]
        for state in past[1:]:
            expected = 0.5 * expected + 0.5 * state[key]
        torch.testing.assert_close(found[key][mask], expected[mask], rtol=1e-5, atol=1e-7)


@in_both_forms
def test_statistics_gathered_anew(form):
    torch.manual_seed(0)
    net, image = randomise(timm.create_model("resnet18", num_classes=10), seed=0), torch.randn(2, 3, 64, 64)
    tgd = operated(Case(net, image), Method(phi=0.5, form=form))
    before = frozen_part(tgd)
    for norm in norms_of(tgd):
        assigned(norm)
    for _ in range(2):
        tgd.train()(image)
    assert_equal_tensors(frozen_part(tgd), before)
