"""The two forms of a TGD network: TGD layers in the graph, or compact layers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial

from torch import nn

from tgdsurgery.core.arguments import as_arguments
from tgdsurgery.core.copying import copy_model
from tgdsurgery.core.errors import LayersFormWarning, TGDWarning
from tgdsurgery.core.norm_statistics import held_statistics
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.records import ChannelMap
from tgdsurgery.surgery.compact import compact, obstacles
from tgdsurgery.surgery.equivalence import difference, refuse_other
from tgdsurgery.surgery.hooks import has_hooks
from tgdsurgery.surgery.layers.graph import graph_form
from tgdsurgery.surgery.layers.tgd_layer import attach
from tgdsurgery.surgery.mount import mount_compact, mount_layers
from tgdsurgery.surgery.needed_inputs import needed_inputs
from tgdsurgery.surgery.validate import layers_of, refuse

# Share of a layer's input channels up to which the input gradient is that of the needed ones alone: leaving few out
# costs more than they do. Their producers do not let it in.
MAX_NEEDED_SHARE = 0.7


def layers_form(model: nn.Module, plan: TGDPlan, example_inputs: object) -> nn.Module:
    """A copy of `model` with a TGD layer after each layer that the plan freezes in part.

    With `flow="masked"` it is a torch.fx graph (`TGDGraphModule`), after its outputs and gradients were
    compared with those of the model's own forward on the example inputs. Where the model cannot be traced,
    has hooks or cannot run in train mode on these inputs, or where anything comes out different, the same TGD
    layers are attached by forward hooks to a copy of the model's own class; the gradients are the same.
    The comparison takes some training steps' time and memory, and two passing copies of the model.

    A layer that is frozen whole gets no TGD layer, so that the loss still reaches the layers before it. Its
    parameters get `requires_grad=False`; so do those that belong to no layer.

    In either flow the gradients of the parameters are masked as well. TGD layers leave little to it, but
    weights can be shared by layers that disagree, or computed with parameters of other rows (spectral norm).
    With `flow="full"` that is all: the gradients of the activations are not masked. The same is true of a
    layer that is not a module (`torch.nn.functional` called on a parameter), as its output cannot be reached.

    Args:
        model: the network; not modified. Wrap it (DDP, torch.compile) afterwards.
        plan: which channels are trainable. The result has it as `tgd_plan`.
        example_inputs: what the model is called with, as in `apply_tgd`.

    Raises:
        RewriteError: the plan does not fit the model; or the model cannot be copied, is wrapped, or has
            been rewritten already; or the result has other outputs, or does not run in a mode in which the model runs.
        CaptureError: the model is TorchScript, or has weights that are not initialised.
    """
    refuse(model, plan)
    net = copy_model(model)
    hooked = any(has_hooks(module) for module in net.modules())
    mount_layers(net, plan)
    arguments, graph = as_arguments(example_inputs), None
    if plan.flow == "masked" and not hooked:
        graph = graph_form(net, arguments)
    refuse_other(model, partial(_layered, model, plan), arguments, holds=bool(held_statistics(plan)))
    return attach(net) if graph is None else graph


def compact_form(
    model: nn.Module,
    plan: TGDPlan,
    channels: ChannelMap,
    example_inputs: object,
) -> nn.Module:
    """A copy of `model`, of the same class, in which no Parameter holds a frozen entry.

    Every layer that can be gets a compact twin (see `tgdsurgery.surgery.compact`), whose backward computes what the
    trainable rows need. All other parameters with frozen entries (computed or shared weights, hooks, custom classes,
    functional calls, parameters of no layer) are put together from a trainable and a frozen part by a property;
    their layers have TGD layers as in `layers_form`.

    The result is run once, in eval and in train mode, beside the layers form: outputs and gradients must
    agree. Where they do not, because a forward reads a layer's weight itself, no layer gets a twin. Where they still
    do not, the network takes the layers form. A warning says so in either case.

    Args:
        model: the network; not modified. Wrap it (DDP, torch.compile) afterwards.
        plan: which channels are trainable. The result has it as `tgd_plan`.
        channels: the map that the plan was made from; it says which inputs of a layer lead back to
            something trainable. The gradient of the others is not computed, if the run above shows that
            nothing is lost by it.
        example_inputs: what the model is called with, as in `apply_tgd`.

    Raises:
        RewriteError, CaptureError: as `layers_form`.
    """
    refuse(model, plan)
    arguments = as_arguments(example_inputs)
    twins = _compactable(model, plan)
    nothing_known: dict[str, tuple[bool, ...]] = {}
    layered, holds = partial(_layered, model, plan), bool(held_statistics(plan))
    for needs in (needed_inputs(channels, plan), nothing_known) if twins else ():
        compacted = partial(_compacted, model, plan, twins, needs)
        if (reason := difference(model, layered, compacted, arguments, holds=holds)) is None:
            return compacted()
    compacted = partial(_compacted, model, plan, (), nothing_known)
    if (without_twins := difference(model, layered, compacted, arguments, holds=holds)) is None:
        if twins:
            _warn_of_cost(
                f"With compact layers this {type(model).__name__} is not the same network: {reason}. Its weights are "
                "put together at every use instead, so a step costs as much as a full one.",
                TGDWarning,
            )
        return compacted()
    _warn_of_cost(
        f"The compact form of this {type(model).__name__} is not the same network: {without_twins}. It is in the "
        "layers form now, which costs a full step; an optimizer that is not torch's needs guard().",
        LayersFormWarning,
    )
    return layered()


def _warn_of_cost(message: str, category: type[TGDWarning]) -> None:
    warnings.warn(message, category, stacklevel=4)


def _layered(model: nn.Module, plan: TGDPlan) -> nn.Module:
    net = copy_model(model)
    mount_layers(net, plan)
    return attach(net)


def _compactable(model: nn.Module, plan: TGDPlan) -> tuple[str, ...]:
    owners = Counter(rows.name for layer in layers_of(plan) for rows in layer.parameters)
    alone = [layer for layer in layers_of(plan) if all(owners[rows.name] == 1 for rows in layer.parameters)]
    cannot = obstacles(model, alone)
    return tuple(layer.name for layer in alone if layer.name not in cannot)


def _compacted(
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
    mount_compact(net, plan, chosen)
    return attach(net)


def _worth_telling(needs: tuple[bool, ...] | None) -> tuple[bool, ...] | None:
    return None if needs is None or sum(needs) > MAX_NEEDED_SHARE * len(needs) else needs
