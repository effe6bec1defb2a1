"""The two forms of a network with TGD, literal and lowered, and the plain network back out of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY as PRESERVED

from tgdsurgery.compact import Compact, compact, frozen_buffers, obstacles, restore
from tgdsurgery.copying import copy_model, refuse_unfit
from tgdsurgery.errors import LiteralFormWarning, RewriteError
from tgdsurgery.graph_form import TGDGraphModule, graph_form
from tgdsurgery.layers import (
    HOOK,
    PARAMETERS,
    TGD,
    ParameterMask,
    TGDLayer,
    attach,
    follow_parameters,
    hold,
    release,
)
from tgdsurgery.records import ChannelMap, Layer, Producer, TGDPlan
from tgdsurgery.sharding import is_sharded
from tgdsurgery.trial import Arguments, difference

# The attribute in which DDP looks for what it need not send: all processes have the same frozen rows.
IGNORED_BY_DDP = "_ddp_params_and_buffers_to_ignore"

# Share of a layer's input channels from which the input gradient is that of all: leaving few out costs more than
# they do. Their producers do not let it in.
MOST = 0.7


def insert(
    model: nn.Module, plan: TGDPlan, example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None
) -> nn.Module:
    """A copy of `model` with a TGD layer after each layer that the plan freezes in part.

    With `flow="masked"` it is a torch.fx graph (`TGDGraphModule`), after its outputs and gradients were
    compared with those of the model's own forward on the example inputs. Where the model cannot be traced,
    has hooks or cannot run in train mode on these inputs, or where anything comes out different, the same TGD
    layers are attached by forward hooks to a copy of the model's own class; the gradients are the same.
    The comparison takes a training step's time and memory, twice, and two passing copies of the model.

    A layer that is frozen whole gets no TGD layer, so that the loss still reaches the layers before it. Its
    parameters get `requires_grad=False`; so do those that belong to no layer.

    In either flow the gradients of the parameters are masked as well. TGD layers leave little to it, but
    weights can be shared by layers that disagree, or computed with parameters of other rows (spectral norm).
    With `flow="full"` that is all: the gradients of the activations are not masked. The same is true of a
    layer that is no module (`torch.nn.functional` called on a parameter), as its output cannot be reached.

    Args:
        model: the network; not modified. Wrap it (DDP, torch.compile) afterwards.
        plan: which channels are trainable. The result has it as `tgd_plan`.
        example_inputs: the forward's positional arguments as a tuple, or the only one.
        example_kwargs: the forward's keyword arguments.

    Raises:
        RewriteError: the plan does not fit the model; or the model cannot be copied, is wrapped, or has
            been rewritten already.
        CaptureError: the model is TorchScript, or has weights that are not initialised.
    """
    _refuse(model, plan)
    net = copy_model(model)
    hooked = any(_has_hooks(module) for module in net.modules())
    _mount(net, plan)
    graph = None
    if plan.flow == "masked" and not hooked:
        graph = graph_form(net, *_arguments(example_inputs, example_kwargs))
    return attach(net) if graph is None else graph


def lower(
    model: nn.Module,
    plan: TGDPlan,
    channels: ChannelMap,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A copy of `model`, of the same class, in which only trainable rows are Parameters.

    Every layer that can be is made compact (see `tgdsurgery.compact`): its frozen rows become buffers, and its
    backward computes what the trainable rows need. A layer that cannot be (computed or shared weights, hooks,
    classes of one's own, functional calls) keeps its Parameters, with TGD layers and masks as in `insert`.

    The result is run once, in eval and in train mode, beside the literal form: outputs and gradients must
    agree. Where they do not (a forward that reads a layer's weight itself), all layers take the literal form,
    and a warning says so.

    Args:
        model: the network; not modified. Wrap it (DDP, torch.compile) afterwards.
        plan: which channels are trainable. The result has it as `tgd_plan`.
        channels: the map that the plan was made from; it says which inputs of a layer lead back to
            something trainable. The gradient of the others is not computed, if the run above shows that
            nothing is lost by it.
        example_inputs: the forward's positional arguments as a tuple, or the only one.
        example_kwargs: the forward's keyword arguments.

    Raises:
        RewriteError, CaptureError: as `insert`.
    """
    _refuse(model, plan)
    arguments = _arguments(example_inputs, example_kwargs)
    chosen = _compactable(model, plan)
    nothing_known: dict[str, tuple[bool, ...]] = {}
    literal = partial(_lowered, model, plan, (), nothing_known)
    if not chosen:
        return literal()
    for needs in (needed_inputs(channels, plan), nothing_known):
        lowered = partial(_lowered, model, plan, chosen, needs)
        if (reason := difference(literal, lowered, arguments)) is None:
            return lowered()
    warnings.warn(
        f"The lowered form of this {type(model).__name__} is not the same network: {reason}. It is in the "
        "literal form now, which costs a full step; its optimizer needs guard().",
        LiteralFormWarning,
        stacklevel=3,
    )
    return literal()


def needed_inputs(channels: ChannelMap, plan: TGDPlan) -> dict[str, tuple[bool, ...]]:
    """For every consumer: at which input channels its gradient can reach anything trainable.

    A filter layer that is frozen whole lets the loss reach what is before it; so does a carrier, but only to the
    filters that it passed. Where a channel comes from the network's own input, the gradient may be asked for
    outside. Coupling by the statistics of a norm over channels is not in a channel map: check before use.
    """
    if plan.flow == "full":
        return {}

    filters = {e.layer.name for e in plan.entries if e.layer.role == "filter"}
    open_filters = {
        e.layer.name
        for e in plan.entries
        if e.layer.name in filters and (not any(e.mask) or not e.layer.modules)
    }

    def lets_through(producer: Producer) -> bool:
        return producer.layer in open_filters or plan[producer.layer].mask[producer.channel]

    leads = [
        not any(p.layer in filters for p in producers) or any(map(lets_through, producers))
        for producers in channels.sets
    ]
    return {name: tuple(leads[index] for index in inputs) for name, inputs in channels.inputs.items()}


def _compactable(model: nn.Module, plan: TGDPlan) -> tuple[str, ...]:
    owners = Counter(rows.name for layer in _layers(plan) for rows in layer.parameters)
    alone = [layer for layer in _layers(plan) if all(owners[rows.name] == 1 for rows in layer.parameters)]
    cannot = obstacles(model, alone)
    return tuple(layer.name for layer in alone if layer.name not in cannot)


def _lowered(
    model: nn.Module, plan: TGDPlan, chosen: Collection[str], needs: Mapping[str, tuple[bool, ...]]
) -> nn.Module:
    net = copy_model(model)
    for name in chosen:
        mask = plan.trainable(name)
        compact(
            net.get_submodule(name),
            plan[name].layer,
            mask,
            # Frozen whole, it lets the loss reach the layers before it.
            stops_gradient=plan.flow == "masked" and bool(mask.any()),
            hold=plan.norm_stats == "hold",
            needs=_worth_telling(needs.get(name)),
        )
    _mount(net, plan, apart=chosen)
    return attach(net)


def _worth_telling(needs: tuple[bool, ...] | None) -> tuple[bool, ...] | None:
    return None if needs is None or sum(needs) > MOST * len(needs) else needs


def _arguments(inputs: Any, kwargs: Mapping[str, Any] | None) -> Arguments:
    return inputs if isinstance(inputs, tuple) else (inputs,), kwargs or {}


def remove_tgd(tgd_model: nn.Module) -> nn.Module:
    """The plain network out of either form: a copy, of the original class, with the present weights.

    Nothing of TGD is left in it, its `state_dict` has the same keys, and `requires_grad` is as it was
    before. Wrappers (DDP, DataParallel, torch.compile) are looked through.

    Raises:
        RewriteError: `tgd_model` is not a network that `insert` or `lower` returned, or FSDP2 keeps it in pieces.
    """
    net = tgd_form(tgd_model)
    if any(is_sharded(parameter) for parameter in net.parameters()):
        raise RewriteError(
            f"This {type(net).__name__} is in pieces in several processes (fully_shard).",
            "Load its get_model_state_dict with full_state_dict=True into a TGD network of one process.",
        )
    plain = copy_model(net.source() if isinstance(net, TGDGraphModule) else net)
    frozen = frozen_buffers(plain)
    for module in list(plain.modules()):
        _dismount(module)
    for attributes in (
        vars(plain),
        plain.meta.get(PRESERVED, {}) if isinstance(plain, fx.GraphModule) else {},
    ):
        for name in ("tgd_plan", "tgd_stopped", "tgd_masked"):
            attributes.pop(name, None)
        if rest := [name for name in attributes.pop(IGNORED_BY_DDP, ()) if name not in frozen]:
            attributes[IGNORED_BY_DDP] = rest
    for name in vars(net)["tgd_stopped"]:
        plain.get_parameter(name).requires_grad_(True)
    return plain


def tgd_form(model: nn.Module) -> nn.Module:
    """The network that `insert` or `lower` returned, wrapped or not.

    Raises:
        RewriteError: `model` is no such network.
    """
    net = unwrapped(model)
    if "tgd_stopped" in vars(net):
        return net
    raise RewriteError(
        f"This {type(net).__name__} has no TGD layers.", "Give the network that apply_tgd returned."
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def trainable_entries(net: nn.Module, plan: TGDPlan) -> dict[nn.Parameter, Tensor]:
    """For every parameter of `net`: a bool mask of its shape, True at the entries that may move.

    A parameter under several names moves only where all of them agree, and one that no layer owns nowhere.
    Those of compact layers are trainable rows only: all of them may move.
    """
    planned = plan.parameter_masks()
    masks: dict[nn.Parameter, Tensor] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if name in planned:
            known = masks.get(parameter)
            masks[parameter] = planned[name] if known is None else planned[name] & known
    divided = [module for module in net.modules() if isinstance(module, Compact)]
    rows = {parameter for module in divided for parameter in module.parameters(recurse=False)}
    everywhere, nowhere = torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.bool)
    masks |= {parameter: everywhere.expand(parameter.shape) for parameter in rows}
    return {
        parameter: masks.get(parameter, nowhere.expand(parameter.shape)) for parameter in net.parameters()
    }


def _refuse(model: nn.Module, plan: TGDPlan) -> None:
    """Raise before anything is done, with all that is wrong."""
    if unwrapped(model) is not model:
        raise RewriteError(
            f"The model is wrapped in {type(model).__name__}.",
            "Apply TGD to the network inside, and wrap the result.",
        )
    refuse_unfit(model)
    if misfits := list(_misfits(model, plan)):
        shown = "; ".join(misfits[:5]) + ("; ..." if len(misfits) > 5 else "")
        raise RewriteError(f"The plan does not fit the model: {shown}.", "Make the plan from this model.")


def _misfits(model: nn.Module, plan: TGDPlan) -> Iterator[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = _tensors(model)
    for layer in _layers(plan):
        yield from (f"no module {name!r}" for name in layer.modules if name not in modules)
        shapes = {rows.name: rows.shape for rows in layer.parameters}
        shapes |= dict.fromkeys(layer.statistics, (layer.channels,))
        for name, shape in shapes.items():
            if name not in tensors:
                yield f"no {name!r}"
            elif tuple(tensors[name].shape) != shape:
                yield f"{name!r} has shape {tuple(tensors[name].shape)}, planned {shape}"
        if plan.norm_stats == "hold" and layer.statistics and _norm(layer) is None:
            yield f"the statistics of {layer.name!r} belong to no norm module (use norm_stats='batch')"


def _mount(net: nn.Module, plan: TGDPlan, apart: Collection[str] = ()) -> None:
    """Put the plan into `net`: TGD layers (not called by anything yet), held norms, parameter masks.

    Args:
        net: is changed.
        plan: what to put in.
        apart: layers that need nothing of it.
    """
    tensors = _tensors(net)
    for entry in (entry for entry in plan.entries if entry.layer.name not in set(apart)):
        layer, mask = entry.layer, plan.trainable(entry.layer.name)
        held = layer.statistics and plan.norm_stats == "hold"
        if held and not mask.all() and (norm := _norm(layer)) is not None:
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
        mask = _small(trainable[parameter])
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


def _dismount(module: nn.Module) -> None:
    """Take away what `_mount` and `attach` gave to one module."""
    release(module)
    restore(module)
    module._forward_hooks.pop(HOOK, None)
    module._forward_pre_hooks.pop(HOOK, None)
    if isinstance(mask := getattr(module, PARAMETERS, None), ParameterMask):
        mask.release()
        delattr(module, PARAMETERS)
    if hasattr(module, TGD):
        delattr(module, TGD)


def _has_hooks(module: nn.Module) -> bool:
    """Whether hooks watch or change what the module does; a graph that does not call it would skip them."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _norm(layer: Layer) -> str | None:
    """Name of the norm module that keeps the layer's statistics; None if some other module keeps them."""
    owner, _, _ = layer.statistics[0].rpartition(".")
    return owner if owner in (layer.name, *layer.modules) else None


def _layers(plan: TGDPlan) -> list[Layer]:
    return [entry.layer for entry in plan.entries]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return {**dict(model.named_parameters(remove_duplicate=False)), **buffers}


def _small(mask: Tensor) -> Tensor:
    """The mask without its expanded axes (size 1 instead): it broadcasts all the same."""
    for axis, stride in enumerate(mask.stride()):
        if stride == 0 and mask.shape[axis] > 1:
            mask = mask.narrow(axis, 0, 1)
    return mask
