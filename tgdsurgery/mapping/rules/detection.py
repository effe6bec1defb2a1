"""Ops of detectors: what is found where. Most of them are torchvision's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tgdsurgery.mapping.rules.call import Call, Traced
from tgdsurgery.mapping.rules.registry import mix_all, rule_for

# Which elements these pick, and how many, any element may decide.
rule_for("nonzero", "_unique2", "unique_dim", "unique_consecutive")(mix_all)
rule_for("nms", namespace="torchvision")(mix_all)


@rule_for("roi_align", "roi_pool", namespace="torchvision")
def regions(call: Call, tensor: Traced, boxes: Traced, *args: Any) -> Tensor:
    """(B, C, H, W) -> (boxes, C, *): each channel, read where the boxes say."""
    return call.table.union(call.table.reduce(tensor.labels, [0, 2, 3]), call.table.mix(boxes.labels))


@rule_for("deform_conv2d", namespace="torchvision")
def deformable(
    call: Call, tensor: Traced, weight: Traced, offset: Traced, mask: Traced, bias: Traced, *settings: Any
) -> Tensor:
    """A convolution that reads where the offsets say, times the mask."""
    *_, groups, _, _ = settings
    made = call.filter(tensor, weight, bias, groups=groups)
    return call.table.union(made, call.table.mix(offset.labels, mask.labels))
