"""Parameters of modules that have no compact twin: a property puts the whole parameter together at every use.

The mechanism is that of `torch.nn.utils.parametrize`. It needs to know nothing of what the module, or another one, does
with its parameter, and saves no work in the backward.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn

from tgdsurgery.core.masking import collapsed
from tgdsurgery.core.records import ParameterRows
from tgdsurgery.surgery.compact.base import Divided, Part, Parts
from tgdsurgery.surgery.derived import derive, original_class


class Assembled(Divided):
    """Any module, with a property for each of its parameters that is trainable in part."""

    @classmethod
    def _tgd_members(cls, original: type[nn.Module], names: tuple[str, ...]) -> dict[str, Any]:
        members = super()._tgd_members(original, names)
        if issubclass(original, nn.RNNBase):  # keeps a list of its parameters
            members["_flat_weights"] = property(_flat_weights, lambda self, value: None)
            members["__jit_unused_properties__"].append("_flat_weights")
        return members


class AssembledGraph(Assembled):
    """A torch.fx graph, whose class exists once: copies are made from its code, which knows nothing of frozen parts."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        self._tgd_take_back()
        with _plain(self):
            copied = copy.deepcopy(self, memo)
        return _divided_graph(copied, copy.deepcopy(_state(self), memo))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        self._tgd_take_back()
        with _plain(self):
            make, arguments = self.__reduce_ex__(protocol)
        return _remade_graph, (make, arguments, _state(self))


@contextlib.contextmanager
def _plain(graph: nn.Module) -> Iterator[None]:
    made = type(graph)
    graph.__class__ = original_class(made)
    try:
        yield
    finally:
        graph.__class__ = made


def _state(graph: nn.Module) -> dict[str, Any]:
    names = ("_parameters", "_buffers", "_non_persistent_buffers_set")
    return {name: value for name, value in vars(graph).items() if name in names or name.startswith("_tgd_")}


def _remade_graph(
    make: Callable[..., nn.Module], arguments: tuple[Any, ...], state: dict[str, Any]
) -> nn.Module:
    return _divided_graph(make(*arguments), state)


def _divided_graph(graph: nn.Module, state: dict[str, Any]) -> nn.Module:
    vars(graph).update(state)
    graph.__class__ = _class_of(graph, state["_tgd_parts"])
    graph._tgd_mark()  # type: ignore[operator]
    return graph


def _class_of(module: nn.Module, parts: Mapping[str, Part]) -> type[Any]:
    mixin = AssembledGraph if isinstance(module, fx.GraphModule) else Assembled
    return derive(mixin, type(module), tuple(name for name, part in parts.items() if part.at is not None))


def _flat_weights(self: Any) -> list[Tensor | None]:
    return [getattr(self, name, None) for name in self._flat_weights_names]


def assemble(net: nn.Module, trainable: Mapping[nn.Parameter, Tensor]) -> None:
    """Divide every parameter of `net` with frozen entries, in place, except those of twins, which are already divided.

    Args:
        net: the network.
        trainable: for every parameter a bool mask of its shape, True at the entries that may move.
    """
    described = {
        parameter: _described(name, parameter, mask)
        for name, parameter in net.named_parameters()
        if not (mask := collapsed(trainable[parameter])).all()
    }
    known: Parts = {}
    for module in list(net.modules()):
        own = {n: p for n, p in module._parameters.items() if p is not None and p in described}
        if not own or isinstance(module, Divided):
            continue
        parts: dict[str, Part] = {}
        indices: dict[str, Tensor] = {}
        for name, parameter in own.items():
            parts[name], index = described[parameter]
            if index is not None:
                indices[str(parts[name].at)] = index
        if isinstance(module, nn.RNNBase):
            del module._flat_weights
            module._flat_weight_refs = [None] * len(module._flat_weights_names)
        module.__class__ = made = _class_of(module, parts)
        made._tgd_divide(module, parts, indices, known)


def _described(name: str, parameter: nn.Parameter, mask: Tensor) -> tuple[Part, Tensor | None]:
    """A parameter's part, and the numbers of its trainable rows or entries; None if nothing is trainable."""
    part = Part(name, tuple(parameter.shape), None, None, parameter.requires_grad)
    if not mask.any():
        return part, None
    part = part._replace(at=name)
    varying = [axis for axis in range(mask.ndim) if (mask != mask.narrow(axis, 0, 1)).any()]
    if len(varying) > 1:  # of layers with other rows, as tied weights can be
        return part, mask.expand(parameter.shape).flatten().nonzero().flatten()
    by_row = mask.movedim(varying[0], 0).flatten()
    by_row = by_row[:: len(by_row) // mask.shape[varying[0]]]
    return part._replace(rows=ParameterRows(name, part.shape, varying[0])), by_row.nonzero().flatten()
