"""Retrain only the filters that a pretrained CNN hardly uses, and keep all others bit for bit.

In short::

    net = apply_tgd(net, phi=0.3)
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    net = remove_tgd(net)
"""

from tgdsurgery.advice.advise import advise
from tgdsurgery.advice.result import Advice
from tgdsurgery.api import apply_tgd, from_onnx, plan_tgd
from tgdsurgery.certificate.certify import certify
from tgdsurgery.certificate.record import Certificate
from tgdsurgery.core.errors import (
    CaptureError,
    CheckpointError,
    ExampleInputError,
    LayersFormWarning,
    MapConflictError,
    PlanError,
    PlanWarning,
    RewriteError,
    TGDError,
    TGDWarning,
    UnsupportedOpError,
)
from tgdsurgery.core.plan import LayerPlan, TGDPlan
from tgdsurgery.core.records import ChannelMap, Layer, ParameterRows, Producer
from tgdsurgery.mapping.channel_map import channel_map
from tgdsurgery.mapping.rules.registry import register_rule
from tgdsurgery.scoring.kse import kse
from tgdsurgery.settings import TGDSettings
from tgdsurgery.storage.delta import load_delta, save_delta
from tgdsurgery.storage.delta_choice import choose_delta
from tgdsurgery.storage.delta_merge import merge_deltas
from tgdsurgery.storage.delta_switch import DeltaSwitch
from tgdsurgery.surgery.compact import register_compact
from tgdsurgery.surgery.remove import remove_tgd
from tgdsurgery.surgery.tgd_network import plan_of
from tgdsurgery.sweep.phi import sweep_phi
from tgdsurgery.sweep.result import SweepResult, SweepRow
from tgdsurgery.training.audit import Audit, verify
from tgdsurgery.training.optimizers import guard

__all__ = [
    "Advice",
    "Audit",
    "CaptureError",
    "Certificate",
    "ChannelMap",
    "CheckpointError",
    "DeltaSwitch",
    "ExampleInputError",
    "Layer",
    "LayerPlan",
    "LayersFormWarning",
    "MapConflictError",
    "ParameterRows",
    "PlanError",
    "PlanWarning",
    "Producer",
    "RewriteError",
    "SweepResult",
    "SweepRow",
    "TGDError",
    "TGDPlan",
    "TGDSettings",
    "TGDWarning",
    "UnsupportedOpError",
    "advise",
    "apply_tgd",
    "certify",
    "channel_map",
    "choose_delta",
    "from_onnx",
    "guard",
    "kse",
    "load_delta",
    "merge_deltas",
    "plan_of",
    "plan_tgd",
    "register_compact",
    "register_rule",
    "remove_tgd",
    "save_delta",
    "sweep_phi",
    "verify",
]
__version__ = "0.1.0"
