"""Retrain only the kernels a pretrained CNN hardly uses, and keep all others bit for bit.

In short::

    net = apply_tgd(net, phi=0.3)
    optimizer = torch.optim.Adam(net.parameters())
    guard(optimizer, net)
    train(net, optimizer)
    net = remove_tgd(net)
"""

from tgdsurgery.api import apply_tgd, plan_tgd
from tgdsurgery.channels import channel_map
from tgdsurgery.delta import load_delta, save_delta
from tgdsurgery.errors import (
    CaptureError,
    CheckpointError,
    ExampleInputError,
    LiteralFormWarning,
    MapConflictError,
    PlanError,
    RewriteError,
    TGDError,
    UnsupportedOpError,
)
from tgdsurgery.guard import Audit, guard, verify
from tgdsurgery.kse import kse
from tgdsurgery.records import ChannelMap, Layer, LayerPlan, ParameterRows, Producer, TGDPlan
from tgdsurgery.rewrite import remove_tgd
from tgdsurgery.rules import register_rule
from tgdsurgery.sweep import SweepResult, SweepRow, sweep_phi

__all__ = [
    "Audit",
    "CaptureError",
    "ChannelMap",
    "CheckpointError",
    "ExampleInputError",
    "Layer",
    "LayerPlan",
    "LiteralFormWarning",
    "MapConflictError",
    "ParameterRows",
    "PlanError",
    "Producer",
    "RewriteError",
    "SweepResult",
    "SweepRow",
    "TGDError",
    "TGDPlan",
    "UnsupportedOpError",
    "apply_tgd",
    "channel_map",
    "guard",
    "kse",
    "load_delta",
    "plan_tgd",
    "register_rule",
    "remove_tgd",
    "save_delta",
    "sweep_phi",
    "verify",
]
__version__ = "0.1.0"
