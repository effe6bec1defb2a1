"""The public names: exactly these, each with a docstring, and cheap to import."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import tgdsurgery

NAMES = {
    "advise",
    "apply_tgd",
    "plan_tgd",
    "remove_tgd",
    "channel_map",
    "from_onnx",
    "kse",
    "guard",
    "verify",
    "certify",
    "Certificate",
    "register_compact",
    "register_rule",
    "sweep_phi",
    "save_delta",
    "load_delta",
    "DeltaSwitch",
    "choose_delta",
    "merge_deltas",
    "Advice",
    "Audit",
    "ChannelMap",
    "Layer",
    "LayerPlan",
    "LayersFormWarning",
    "ParameterRows",
    "Producer",
    "SweepResult",
    "SweepRow",
    "TGDPlan",
    "TGDError",
    "CaptureError",
    "CheckpointError",
    "ExampleInputError",
    "MapConflictError",
    "PlanError",
    "PlanWarning",
    "TGDSettings",
    "TGDWarning",
    "plan_of",
    "RewriteError",
    "UnsupportedOpError",
}
HEAVY = (
    "jinja2",
    "lightning",
    "matplotlib",
    "scipy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "sklearn",
    "skimage",
)


def test_exactly_the_documented_names_are_public():
    assert set(tgdsurgery.__all__) == NAMES
    assert len(tgdsurgery.__all__) == len(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_has_a_docstring_of_its_own(name):
    value = getattr(tgdsurgery, name)
    assert inspect.getdoc(value)
    assert value.__doc__
    assert not (value.__doc__ or "").startswith(f"{name}(")  # what a dataclass or tuple writes by itself


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_error_is_a_tgd_error(name):
    value = getattr(tgdsurgery, name)
    raised = inspect.isclass(value) and issubclass(value, Exception) and not issubclass(value, Warning)
    if raised:
        assert issubclass(value, tgdsurgery.TGDError)


def test_all_names_together_pull_in_nothing_heavy():
    code = f"import sys; from tgdsurgery import *; print(*[name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_folders_are_attributes_and_other_names_are_none():
    code = """
import tgdsurgery
assert tgdsurgery.api.apply_tgd is tgdsurgery.apply_tgd
assert not hasattr(tgdsurgery, "unknown")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'tgdsurgery' has no attribute 'unknown'"):
        tgdsurgery.unknown  # noqa: B018


@pytest.mark.parametrize("imported", ["tgdsurgery", "tgdsurgery.cli"])
def test_a_bare_import_does_not_wait_for_torch(imported):
    code = f"import sys, {imported}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_sets_no_hook_for_all_optimizers():
    code = """
from tgdsurgery import *
from torch.optim import optimizer
assert not optimizer._global_optimizer_pre_hooks
assert not optimizer._global_optimizer_post_hooks
"""
    subprocess.run([sys.executable, "-c", code], check=True)
