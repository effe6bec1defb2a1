"""Whole detectors: followed to where numbers leave, or refused with the part that can be operated on."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from tgdsurgery import Producer, UnsupportedOpError, channel_map

# Deprecations inside the zoo's own libraries.
pytestmark = pytest.mark.filterwarnings("default")

SIZE = 96


def detector(name: str) -> tuple[nn.Module, tuple[object, object]]:
    """A detector, and two images with what is in them."""
    torch.manual_seed(0)
    images = [torch.rand(3, SIZE, SIZE) for _ in range(2)]
    boxes, labels = torch.tensor([[10.0, 10, 50, 60], [20, 20, 80, 90]]), torch.tensor([1, 2])
    net = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    return net.eval(), (images, [{"boxes": boxes, "labels": labels} for _ in images])


def test_a_detector_of_one_stage_is_followed_to_its_boxes():
    net, given = detector("ssdlite320_mobilenet_v3_large")
    found, backbone = channel_map(net, given), channel_map(net.backbone, torch.rand(2, 3, 320, 320))
    assert found.unmapped == {}
    for consumer in backbone.consumers:
        expected = [
            {(f"backbone.{p.layer}", p.channel) for p in read} for read in backbone.producers(consumer)
        ]
        assert [set(read) for read in found.producers(f"backbone.{consumer}")] == expected
    reached = found.producers("head.regression_head.module_list.5.1")
    before = "head.regression_head.module_list.5.0.0"
    assert [sorted(read) for read in reached] == [[Producer(before, c)] for c in range(len(reached))]


def test_a_detector_of_two_stages_is_refused_where_a_level_has_no_box():
    net, given = detector("fasterrcnn_mobilenet_v3_large_320_fpn")
    with pytest.raises(UnsupportedOpError, match=r"box_roi_pool.*box_head.fc6.*model\.backbone = apply_tgd"):
        channel_map(net, given)


class Deformable(nn.Module):
    """Offsets and a mask from the features that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.place = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 27, 3, padding=1)
        self.deform = torchvision.ops.DeformConv2d(4, 6, 3, padding=1, groups=2)
        self.head = nn.Conv2d(6, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        offsets, mask = self.place(x).split([18, 9], 1)
        return self.head(self.deform(self.stem(x), offsets, mask.sigmoid()))


def test_a_deformable_convolution_is_a_filter_layer():
    found = channel_map(Deformable(), torch.randn(2, 3, 8, 8))
    assert found.layers["deform"].groups == 2
    assert [sorted(read) for read in found.producers("deform")] == [[Producer("stem", c)] for c in range(4)]
    everywhere = {Producer("place", c) for c in range(27)}
    assert [set(read) for read in found.producers("head")] == [
        {Producer("deform", c)} | everywhere for c in range(6)
    ]
