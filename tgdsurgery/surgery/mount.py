"""Put a plan into a network, module by module, and take it out again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.masking import collapsed
from tgdsurgery.core.norm_statistics import norm_of
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.records import Layer
from tgdsurgery.core.torch_private import PRESERVED
from tgdsurgery.surgery.compact import restore
from tgdsurgery.surgery.compact.base import frozen_buffers
from tgdsurgery.surgery.entries import trainable_entries
from tgdsurgery.surgery.layers.held_norm import hold, release
from tgdsurgery.surgery.layers.parameter_mask import PARAMETERS, ParameterMask, follow_parameters
from tgdsurgery.surgery.layers.tgd_layer import HOOK, TGD, TGDLayer
from tgdsurgery.surgery.validate import tensors_of

# The attribute in which DDP looks for what it need not send: all processes have the same frozen rows.
IGNORED_BY_DDP = "_ddp_params_and_buffers_to_ignore"


def mount(net: nn.Module, plan: TGDPlan, apart: Collection[str] = ()) -> None:
    """Put the plan into `net`: TGD layers (not called by anything yet), held norms, parameter masks.

    Args:
        net: is changed.
        plan: what to put in.
        apart: layers that need nothing of it.
    """
    tensors = tensors_of(net)
    for entry in (entry for entry in plan.entries if entry.layer.name not in set(apart)):
        layer, mask = entry.layer, plan.trainable(entry.layer.name)
        held = layer.statistics and plan.norm_stats == "hold"
        if held and not mask.all() and (norm := norm_of(layer)) is not None:
            statistics = [name.rpartition(".")[2] for name in layer.statistics]
            hold(net.get_submodule(norm), mask, layer.channel_axis, statistics)
        if plan.flow == "masked" and mask.any() and not mask.all():
            device = tensors[(*(rows.name for rows in layer.parameters), *layer.statistics)[0]].device
            for module in {net.get_submodule(name) for name in layer.modules}:
                module.add_module(TGD, TGDLayer(mask, layer.channel_axis, device))
    marks = {"tgd_plan": plan, **_mask_parameters(net, plan)}
    if frozen := frozen_buffers(net):
        marks[IGNORED_BY_DDP] = [*getattr(net, IGNORED_BY_DDP, ()), *frozen]
    vars(net).update(marks)
    if isinstance(net, fx.GraphModule):  # whose copies keep only the plain attributes that are named here
        net.meta[PRESERVED] = {**net.meta.get(PRESERVED, {}), **marks}


def _mask_parameters(net: nn.Module, plan: TGDPlan) -> dict[str, Any]:
    """Mask the parameters' gradients, and stop those of whole parameters; returns what to remember of it."""
    trainable = trainable_entries(net, plan)
    stopped: list[str] = []
    masks: dict[str, dict[str, Tensor]] = {}
    devices: dict[str, torch.device] = {}
    for name, parameter in net.named_parameters():
        mask = collapsed(trainable[parameter])
        if not mask.any():
            if parameter.requires_grad:
                stopped.append(name)
            parameter.requires_grad_(False)
        elif not mask.all():
            owner, _, own_name = name.rpartition(".")
            masks.setdefault(owner, {})[own_name] = mask
            devices[owner] = parameter.device
    for owner, own_masks in masks.items():
        net.get_submodule(owner).add_module(PARAMETERS, ParameterMask(own_masks, devices[owner]))
    follow_parameters(net)
    net._forward_pre_hooks[HOOK] = before_forward
    return {"tgd_stopped": tuple(stopped), "tgd_masked": bool(masks)}


def before_forward(net: nn.Module, args: object = None) -> None:
    """Forward pre-hook: masks follow the parameters, and the norms are still those that hold statistics."""
    if torch.compiler.is_compiling():
        return
    if vars(net)["tgd_masked"]:
        follow_parameters(net)
    for layer in vars(net)["tgd_plan"].batch_norms:
        _refuse_converted(net, layer)


def _refuse_converted(net: nn.Module, layer: Layer) -> None:
    if isinstance(net.get_submodule(layer.name), nn.SyncBatchNorm):
        raise RewriteError(
            f"The {layer.type} {layer.name!r} has become a SyncBatchNorm, which freezes nothing.",
            "Call convert_sync_batchnorm on the model before apply_tgd, not on what it returns.",
        )


def dismount(module: nn.Module) -> None:
    """Take away what `mount` and `attach` gave to one module."""
    release(module)
    restore(module)
    module._forward_hooks.pop(HOOK, None)
    module._forward_pre_hooks.pop(HOOK, None)
    if isinstance(mask := getattr(module, PARAMETERS, None), ParameterMask):
        mask.release()
        delattr(module, PARAMETERS)
    if hasattr(module, TGD):
        delattr(module, TGD)
