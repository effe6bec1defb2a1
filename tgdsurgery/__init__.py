"""Retrain only the kernels a pretrained CNN hardly uses, and keep all others bit for bit.

In short::

    net = apply_tgd(net, phi=0.3)
    optimizer = torch.optim.Adam(net.parameters())
    guard(optimizer, net)
    train(net, optimizer)
    net = remove_tgd(net)
"""

from tgdsurgery.api import apply_tgd, plan_tgd
from tgdsurgery.core.errors import (
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
from tgdsurgery.core.plan import LayerPlan, TGDPlan
from tgdsurgery.core.records import ChannelMap, Layer, ParameterRows, Producer
from tgdsurgery.mapping.channel_map import channel_map
from tgdsurgery.mapping.rules.registry import register_rule
from tgdsurgery.scoring.kse import kse
from tgdsurgery.storage.delta import load_delta, save_delta
from tgdsurgery.surgery.remove import remove_tgd
from tgdsurgery.sweep.phi import SweepResult, SweepRow, sweep_phi
from tgdsurgery.training.audit import Audit, verify
from tgdsurgery.training.optimizers import guard

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
