"""Give a layer its compact twin, in place, and make it plain again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from tgdsurgery.core.records import Layer
from tgdsurgery.surgery.compact.base import Divided, Part
from tgdsurgery.surgery.compact.layout import memory_format
from tgdsurgery.surgery.compact.registry import TWINS
from tgdsurgery.surgery.compact.twin import Compaction
from tgdsurgery.surgery.derived import derive, original_class
from tgdsurgery.surgery.hooks import has_hooks

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def obstacles(model: nn.Module, layers: Iterable[Layer]) -> dict[str, str]:
    """By name: why layers of `model` cannot be made compact, in words. Those that can be are not in it.

    Only a class that has a twin can: a subclass may have a forward of its own that reads the whole weight, and so may
    hooks and parametrizations; a parameter of two layers cannot be divided in two ways.
    """
    shared = _shared(model)
    found = {layer.name: _obstacle(model, layer, shared) for layer in layers}
    return {name: reason for name, reason in found.items() if reason is not None}


def _obstacle(model: nn.Module, layer: Layer, shared: Collection[nn.Parameter]) -> str | None:
    module = model.get_submodule(layer.name) if layer.modules == (layer.name,) else None
    if module is None:
        return "it is not the output of one module of its own"
    if type(module) not in TWINS:
        return f"{type(module).__name__} has no compact twin"
    if has_hooks(module):
        return "it has hooks"
    return _parameter_obstacle(module, layer, shared)


def _parameter_obstacle(module: nn.Module, layer: Layer, shared: Collection[nn.Parameter]) -> str | None:
    own = {f"{layer.name}.{name}".lstrip("."): p for name, p in module.named_parameters(recurse=False)}
    if own.keys() != {rows.name for rows in layer.parameters}:
        return "its parameters are not those of its class"
    if len({rows.requires_grad for rows in layer.parameters}) > 1:
        return "some of its parameters do not require a gradient"
    if any(rows.channels != layer.channels for rows in layer.parameters):
        return "its parameters do not belong to its channels one by one"
    if any(parameter in shared for parameter in own.values()):
        return "it shares a parameter with another module"
    if any(p.is_complex() or not p.is_contiguous(memory_format=memory_format(p)) for p in own.values()):
        return "its parameters are complex, or laid out in memory in a way of their own"
    return None


def compact(
    module: ModuleT,
    layer: Layer,
    mask: Tensor | Sequence[bool],
    *,
    stops_gradient: bool,
    hold: bool = True,
    needs: Tensor | Sequence[bool] | None = None,
) -> ModuleT:
    """Give `module` its compact twin, in place; returns it. If all of it is trainable, it stays as it is.

    In place, so that it is the same object wherever a network refers to it; work on a copy of the network.

    Args:
        module: the module of `layer`, one that `obstacles` does not name.
        layer: how the entries of its parameters belong to its output channels.
        mask: (N,) True where the output channel is trainable.
        stops_gradient: count the gradient at frozen output channels as zero (`flow="masked"`). With nothing
            trainable no gradient gets through at all; give False for a layer that is frozen whole and must
            let the loss through to the layers before it.
        hold: frozen channels of a norm use, and keep, their stored statistics in training.
        needs: (C,) for convs and linear layers, True at input channels that lead back to something
            trainable; the gradient of the others may be left out, and zero. None for all.

    Example:
        >>> from tgdsurgery.core.records import ParameterRows
        >>> layer = Layer("fc", "filter", "Linear", 3, (ParameterRows("fc.weight", (3, 2)),), (), ("fc",), -1)
        >>> fc = compact(nn.Linear(2, 3, bias=False), layer, [True, False, False], stops_gradient=True)
        >>> fc
        CompactLinear(in_features=2, out_features=3, bias=False, 1/3 trainable)
        >>> [tuple(p.shape) for p in fc.parameters()], fc.state_dict()["weight"].shape
        ([(1, 2)], torch.Size([3, 2]))
        >>> restore(fc)
        Linear(in_features=2, out_features=3, bias=False)
    """
    mask = tuple(bool(value) for value in mask)
    if all(mask):
        return module
    parts = {}
    for rows in layer.parameters:
        name = rows.name.rpartition(".")[2]
        flag = module.get_parameter(name).requires_grad
        parts[name] = Part(rows.name, rows.shape, rows, "rows" if any(mask) else None, flag)
    recipe = TWINS[type(module)]._tgd_recipe
    divided = tuple(name for name, part in parts.items() if part.at is not None)
    module.__class__ = made = derive(recipe.mixin, recipe.original, divided)
    made._tgd_compact(
        module,
        Compaction(
            mask=mask,
            channel_axis=layer.channel_axis,
            stops_gradient=stops_gradient,
            hold=hold,
            needs=None if needs is None else tuple(bool(value) for value in needs),
        ),
        parts,
    )
    return module


def restore(module: ModuleT, known: dict[str, nn.Parameter] | None = None) -> ModuleT:
    """Undo `compact` or `assemble`, in place; returns the module. The weights are the present ones.

    Args:
        module: any module; a plain one stays as it is.
        known: the parameters of a network that are whole again, by their first names: those of several modules are
            the same objects then.
    """
    if isinstance(module, Divided):
        module._tgd_unite(known)
        module.__class__ = original_class(type(module))
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    return module


def _shared(model: nn.Module) -> set[nn.Parameter]:
    """Parameters of more than one module, or that a module has under two names."""
    seen: set[nn.Parameter] = set()
    shared: set[nn.Parameter] = set()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                (shared if parameter in seen else seen).add(parameter)
    return shared
