"""The public names, and where each is. Read by `__init__.py`, type checkers and editors."""

from .advice.advise import advise
from .advice.result import Advice
from .api import apply_tgd, from_onnx, plan_tgd
from .certificate.certify import certify
from .certificate.record import Certificate
from .core.errors import (
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
from .core.plan import LayerPlan, TGDPlan
from .core.records import ChannelMap, Layer, ParameterRows, Producer
from .mapping.channel_map import channel_map
from .mapping.rules.registry import register_rule
from .scoring.kse import kse
from .settings import TGDSettings
from .storage.delta import load_delta, save_delta
from .storage.delta_choice import choose_delta
from .storage.delta_merge import merge_deltas
from .storage.delta_switch import DeltaSwitch
from .surgery.compact import register_compact
from .surgery.remove import remove_tgd
from .surgery.tgd_network import plan_of
from .sweep.phi import sweep_phi
from .sweep.result import SweepResult, SweepRow
from .training.audit import Audit, verify
from .training.optimizers import guard

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
__version__: str
