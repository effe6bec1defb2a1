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
from tgdsurgery.surgery.compact import assemble, frozen_buffers, restore
from tgdsurgery.surgery.entries import trainable_entries
from tgdsurgery.surgery.layers.held_norm import hold, release
from tgdsurgery.surgery.layers.parameter_mask import PARAMETERS, ParameterMask, follow_parameters
from tgdsurgery.surgery.layers.tgd_layer import HOOK, TGD, TGDLayer
from tgdsurgery.surgery.validate import tensors_of

# The attribute in which DDP looks for what it need not send: all processes have the same frozen entries.
IGNORED_BY_DDP = "_ddp_params_and_buffers_to_ignore"


def mount_layers(net: nn.Module, plan: TGDPlan) -> None:
    """Put the plan into `net` in the layers form: TGD layers (not called by anything yet), held norms, masks."""
    _mount_channels(net, plan, ())
    _mark(net, plan, masked=_mask_parameters(net, plan))


def mount_compact(net: nn.Module, plan: TGDPlan, twins: Collection[str]) -> None:
    """Put the plan into `net` in the compact form.

    Args:
        net: is changed.
        plan: what to put in.
        twins: layers that have their compact twins already, and need nothing more.
    """
    _mount_channels(net, plan, twins)
    assemble(net, trainable_entries(net, plan))
    _mark(net, plan, masked=False)


def _mount_channels(net: nn.Module, plan: TGDPlan, apart: Collection[str]) -> None:
    """TGD layers and held norms, for all layers but some."""
    tensors, others = tensors_of(net), set(apart)
    for entry in (entry for entry in plan.entries if entry.layer.name not in others):
        layer, mask = entry.layer, plan.trainable(entry.layer.name)
        held = layer.statistics and plan.norm_stats == "hold"
        if held and not mask.all() and (norm := norm_of(layer)) is not None:
            statistics = [name.rpartition(".")[2] for name in layer.statistics]
            hold(net.get_submodule(norm), mask, layer.channel_axis, statistics)
        if plan.flow == "masked" and mask.any() and not mask.all():
            device = tensors[(*(rows.name for rows in layer.parameters), *layer.statistics)[0]].device
            for module in {net.get_submodule(name) for name in layer.modules}:
                module.add_module(TGD, TGDLayer(mask, layer.channel_axis, device))


def _mask_parameters(net: nn.Module, plan: TGDPlan) -> bool:
    """Keep the frozen entries of whole parameters; returns whether there are any."""
    trainable = trainable_entries(net, plan)
    masks: dict[str, dict[str, Tensor]] = {}
    devices: dict[str, torch.device] = {}
    for name, parameter in net.named_parameters():
        if not (mask := collapsed(trainable[parameter])).all():
            owner, _, own_name = name.rpartition(".")
            masks.setdefault(owner, {})[own_name] = mask
            devices[owner] = parameter.device
    for owner, own_masks in masks.items():
        ParameterMask(own_masks, devices[owner]).mount(net.get_submodule(owner))
    return bool(masks)


def _mark(net: nn.Module, plan: TGDPlan, *, masked: bool) -> None:
    net._forward_pre_hooks[HOOK] = before_forward
    marks: dict[str, Any] = {"tgd_plan": plan, "tgd_masked": masked}
    if frozen := frozen_buffers(net):
        marks[IGNORED_BY_DDP] = [*getattr(net, IGNORED_BY_DDP, ()), *frozen]
    vars(net).update(marks)
    if isinstance(net, fx.GraphModule):  # whose copies keep only the plain attributes that are named here
        net.meta[PRESERVED] = {**net.meta.get(PRESERVED, {}), **marks}


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


def dismount(module: nn.Module, known: dict[str, nn.Parameter]) -> None:
    """Take away what was given to one module.

    Args:
        module: is changed.
        known: the parameters of the network that are whole again, by their first names.
    """
    restore(module, known)
    release(module)
    module._forward_hooks.pop(HOOK, None)
    module._forward_pre_hooks.pop(HOOK, None)
    if isinstance(mask := getattr(module, PARAMETERS, None), ParameterMask):
        mask.dismount(module)
    if hasattr(module, TGD):
        delattr(module, TGD)
