"""Every network of the zoo: the map, the surgery, a training step, and back; the laws that need no oracle."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
import torchvision

from tests.laws.subjects import assert_equal_tensors, in_both_forms, with_flags_of
from tests.strategies.case import call, leaves
from tests.zoo.networks import GIANTS, NETWORKS
from tests.zoo.surgery import BUDGET, HUGE, LARGE, masked_whole, parameters, planned
from tgdsurgery import (
    LayersFormWarning,
    UnsupportedOpError,
    apply_tgd,
    channel_map,
    remove_tgd,
    verify,
)
from tgdsurgery.surgery.apply import compact_form, layers_form
from tgdsurgery.surgery.compact import Compact

# Networks that are refused, and the module where: every layer's kernel is mixed by the input there, so that no
# filter ends what flows into it.
REFUSED = {"timm/tf_efficientnet_cc_b0_4e": "blocks.5.1.conv_dw"}

# Deprecations inside the zoo's own libraries.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in (*GIANTS, *REFUSED)])
def test_there_and_back(name):
    """In both forms, but huge networks in one; where the network is not large, `flow="full"` as well."""
    gc.collect()  # networks of hundreds of megabytes follow each other
    net, image = NETWORKS[name].make()
    plans, channels = planned(net, image)
    assert 0 < plans["masked"].share < 1
    if parameters(net) < HUGE:
        assert_there_and_back(layers_form(net, plans["masked"], image), net, image)
    assert_there_and_back(compacted(net, plans["masked"], channels, image), net, image)
    if parameters(net) < LARGE:
        compacted(net, plans["full"], channels, image)


def compacted(net, plan, channels, image):
    """The compact form, whose outputs and gradients are those of the layers form in both modes, or it says so.

    No Parameter of it holds a frozen entry.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", LayersFormWarning)
        tgd = compact_form(net, plan, channels, image)
    assert any(isinstance(module, Compact) for module in tgd.modules())
    assert masked_whole(tgd, plan) == 0
    return tgd


def assert_there_and_back(tgd, net, image):
    """Raise unless the rewritten network starts equal, trains, keeps what is frozen, and can be made plain."""
    plan = tgd.tgd_plan
    assert_equal_tensors(leaves(call(tgd, image)), leaves(call(with_flags_of(net, tgd), image)))

    optimizer = torch.optim.SGD(tgd.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    tgd.train()
    outputs = [leaf for leaf in leaves(call(tgd, image)) if leaf.requires_grad]
    sum(leaf.float().square().mean() for leaf in outputs).backward()
    optimizer.step()
    assert verify(net, tgd, plan).ok
    before, after = net.state_dict(), tgd.state_dict()
    assert list(after) == list(before)
    assert any(not torch.equal(before[key], after[key]) for key in plan.parameter_masks())

    plain = remove_tgd(tgd.eval())
    assert type(plain) is type(net)
    assert_equal_tensors(plain.state_dict(), after)
    assert_equal_tensors(leaves(call(with_flags_of(plain, tgd), image)), leaves(call(tgd, image)))

    tgd.load_state_dict(before)
    assert_equal_tensors(tgd.state_dict(), before)
    plain.load_state_dict(before)
    assert_equal_tensors(plain.state_dict(), before)


@in_both_forms
def test_the_backbone_inside_a_detector(form):
    """The heads, and what chooses boxes by their scores, are no part of the map; they train and run around it."""
    torch.manual_seed(0)
    make = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn
    detector = make(weights=None, weights_backbone=None, min_size=64, max_size=64).eval()
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    boxes = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 50.0]]), "labels": torch.tensor([1])} for _ in images]
    plain = copy.deepcopy(detector)
    detector.backbone = apply_tgd(detector.backbone, torch.rand(1, 3, 64, 64), budget=BUDGET, form=form)
    plan, before = detector.backbone.tgd_plan, copy.deepcopy(detector.backbone.state_dict())
    with torch.no_grad():
        for found, expected in zip(detector(images), plain(images), strict=True):
            assert_equal_tensors(found, expected)

    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.01)
    sum(detector.train()(images, boxes).values()).backward()
    optimizer.step()
    assert verify(before, detector.backbone, plan).ok
    moved = [
        key for key, value in detector.state_dict().items() if not torch.equal(value, plain.state_dict()[key])
    ]
    assert any(key.startswith("backbone.") for key in moved)
    assert any(key.startswith("roi_heads.") for key in moved)

    detector.backbone = remove_tgd(detector.backbone)
    plain.load_state_dict(detector.state_dict())
    detector.eval(), plain.eval()
    with torch.no_grad():
        for found, expected in zip(detector(images), plain(images), strict=True):
            assert_equal_tensors(found, expected)


@pytest.mark.parametrize("name", GIANTS)
def test_giants_are_mapped(name):
    """Beyond the memory of a test machine: the map alone, without weights."""
    net, image = NETWORKS[name].make()
    found = channel_map(net.to("meta"), image.to("meta"))
    assert len(found.consumers) > 100
    assert not found.unmapped


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_place_and_the_remedy(name):
    net, image = NETWORKS[name].make()
    with pytest.raises(UnsupportedOpError, match=rf"in module '{REFUSED[name]}'.* Apply TGD to the parts"):
        channel_map(net, image)
