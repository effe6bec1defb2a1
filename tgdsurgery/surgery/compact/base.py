"""A module's parameters in two parts: trainable entries are Parameters, frozen ones are buffers.

From outside this is invisible: `state_dict` and `load_state_dict` speak the original's keys, shapes and dtypes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from tgdsurgery.core.constants import Constants
from tgdsurgery.core.records import ParameterRows
from tgdsurgery.core.sharding import gathered, is_sharded, like
from tgdsurgery.core.torch_private import is_jit_tracing, outside_of_onnx
from tgdsurgery.surgery.compact.handed_out import hand_out, hand_out_frozen, show_loaded, take_back
from tgdsurgery.surgery.compact.layout import fill_, filled, taken
from tgdsurgery.surgery.compact.reading import Shown
from tgdsurgery.surgery.compact.weight_cache import Rows


class Part(NamedTuple):
    """Which part of a parameter is trainable.

    Args:
        first_name: the parameter's first name in the network: what has the same is one Parameter.
        shape: the shape of the whole parameter.
        rows: how its entries belong to rows, if rows of it are trainable; None for single entries.
        at: name of the constant that has the numbers of the trainable rows or entries; None if nothing is trainable.
        requires_grad: that of the original.
    """

    first_name: str
    shape: tuple[int, ...]
    rows: ParameterRows | None
    at: str | None
    requires_grad: bool


DividedT = TypeVar("DividedT", bound="Divided")

# For parameters of several modules: by the parameter, what is trainable of it and what is frozen.
Parts = dict[nn.Parameter, tuple[Rows | None, Tensor]]


class Divided(Shown, Constants):
    """A module whose parameters are divided: a mixin, in front of the original's class.

    A parameter `weight` of which a part is trainable becomes the Parameter `weight`, which holds nothing else, and the
    buffer `_tgd_frozen_weight` of the original's shape and layout: only its frozen entries matter; the rest is scratch
    space for ops that need the whole tensor. With nothing trainable, the parameter becomes a buffer of the same name.
    """

    _tgd_parts: Mapping[str, Part]  # by the module's own names
    _tgd_order: tuple[str, ...]  # the names of all parameters of the original
    _tgd_prefix = "Divided"

    def _tgd_full(self, name: str) -> Any:
        """The whole parameter (or None), differentiable in its trainable entries; in the original's layout."""
        part = self._tgd_parts.get(name)
        if part is None or part.at is None:
            return self._parameters.get(name, self._buffers.get(name))
        if is_jit_tracing():
            return self._tgd_traced(name)
        return self._tgd_joined(name, self._tgd_rows(name))

    def _tgd_traced(self, name: str) -> Tensor:
        # The ONNX export knows the parameters of a network by its `state_dict`, where this one is a copy.
        with outside_of_onnx():
            full = self._tgd_joined(name, self._tgd_rows(name))
            return full.detach() if torch.onnx.is_in_onnx_export() else full

    def _tgd_rows(self, name: str) -> Any:
        """The trainable part alone; None if there is none."""
        part = self._tgd_parts.get(name)
        if part is None or part.at is None:
            return None
        if name not in self._parameters:  # A replica that DataParallel made has tensors as plain attributes.
            return vars(self)[name]
        rows = _present(self._parameters[name])
        take_back(rows)
        return rows

    def _tgd_padded(self, name: str, values: Tensor) -> Tensor:
        """Values of the trainable part (a gradient, say) in the parameter's own shape; zero at frozen entries."""
        zeros = torch.zeros_like(self._tgd_frozen(name), dtype=values.dtype)
        return fill_(self._tgd_parts[name].rows, zeros, values, self._tgd_index_of(name))

    def _tgd_joined(self, name: str, trainable: Tensor) -> Tensor:
        return filled(self._tgd_parts[name].rows, self._tgd_frozen(name), trainable, self._tgd_index_of(name))

    def _tgd_frozen(self, name: str) -> Tensor:
        return _present(self._buffers[f"_tgd_frozen_{name}"])

    def _tgd_index_of(self, name: str) -> Any:
        return self._tgd_index(str(self._tgd_parts[name].at))

    def _tgd_index(self, name: str) -> Any:
        """An index or a mask, on the device of the module; None if it has none of that name."""
        return self._tgd_constant(name, self._tgd_device()) if name in self._tgd_placed else None

    def _tgd_device(self) -> torch.device:
        for tensors in (
            self._parameters,
            self._buffers,
        ):  # no generator: this is asked several times in a forward
            for tensor in tensors.values():
                if tensor is not None:
                    return tensor.device
        raise AssertionError("a module in two parts has a tensor")

    def _tgd_divide(
        self, parts: Mapping[str, Part], indices: Mapping[str, Tensor], known: Parts | None = None
    ) -> None:
        """Divide the parameters of what was a plain module until now.

        Args:
            parts: for each parameter with frozen entries, which part of it is trainable.
            indices: the constants, on the CPU.
            known: the parameters that other modules have divided already; those of this one are added.
        """
        known = {} if known is None else known
        vars(self).update({"_tgd_parts": parts, "_tgd_order": tuple(self._parameters)})
        vars(self).update({"_tgd_kept": {}, "_tgd_placed": {}})
        for name, values in indices.items():
            self._tgd_keep(name, values, self._tgd_device())
        whole: dict[str, Tensor | None] = {}
        for name, part in parts.items():
            parameter = _present(self._parameters[name])
            assert isinstance(parameter, nn.Parameter)
            if parameter not in known:
                full = parameter.detach()
                rows = None if part.at is None else Rows(self._tgd_taken(name, full), parameter.requires_grad)
                known[parameter] = rows, full
            rows, frozen = known[parameter]
            if rows is None:
                del self._parameters[name]
                whole[name] = frozen
            else:
                self._parameters[name] = rows
                self._buffers[f"_tgd_frozen_{name}"] = frozen
                self._non_persistent_buffers_set.add(f"_tgd_frozen_{name}")
        self._buffers = {**whole, **self._buffers}  # in front, as the state_dict has parameters first
        self._tgd_mark()

    def _tgd_taken(self, name: str, full: Tensor) -> Tensor:
        """The trainable part of a whole tensor, in memory of its own."""
        part = self._tgd_parts[name]
        return taken(part.rows, full, self._tgd_kept[str(part.at)].to(full.device))

    def _tgd_unite(self, known: dict[str, nn.Parameter] | None = None) -> None:
        """Undo `_tgd_divide`.

        Args:
            known: the parameters that other modules have united already, by their first names; those of this one are
                added.
        """
        known = {} if known is None else known
        united: dict[str, nn.Parameter | None] = {}
        for name, part in self._tgd_parts.items():
            if part.first_name not in known:
                rows = self._parameters.get(name)
                flag = part.requires_grad if rows is None else rows.requires_grad
                known[part.first_name] = nn.Parameter(self._tgd_full(name).detach(), requires_grad=flag)
            united[name] = known[part.first_name]
        for name in self._tgd_parts:
            for buffer in (name, f"_tgd_frozen_{name}"):
                self._buffers.pop(buffer, None)
                self._non_persistent_buffers_set.discard(buffer)
        present = {**self._parameters, **united}
        first = {name: present.pop(name) for name in self._tgd_order if name in present}
        self._parameters = {**first, **present}
        self._tgd_forget()
        del vars(self)["_tgd_parts"], vars(self)["_tgd_order"]

    def _tgd_divided(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters of which a part is trainable: their names, and that part."""
        for name, part in self._tgd_parts.items():
            if part.at is not None:
                yield name, self._tgd_rows(name)

    def _tgd_take_back(self) -> None:
        """Give the parameters what was written to tensors of a `state_dict`."""
        for source in self._tgd_sources():
            take_back(source)

    def _tgd_sources(self) -> Iterator[Tensor]:
        """Of every divided parameter its trainable part, or itself if nothing of it is trainable."""
        for name in self._tgd_parts:
            if (source := self._parameters.get(name, self._buffers.get(name))) is not None:
                yield source

    def train(self: DividedT, mode: bool = True) -> DividedT:
        """Set the mode; a compiled forward does not look for what was written to tensors of a `state_dict`."""
        self._tgd_take_back()
        return super().train(mode)

    def _apply(self: DividedT, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DividedT:
        self._tgd_take_back()
        return super()._apply(fn, recurse)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        self._tgd_take_back()
        return super().__reduce_ex__(protocol)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        own: dict[str, Any] = OrderedDict()
        super()._save_to_state_dict(own, prefix, keep_vars)
        for name, part in self._tgd_parts.items():
            key = prefix + name
            if part.at is not None:
                own[key] = self._tgd_handed_out(name, keep_vars=keep_vars)
            elif key in own and not keep_vars:
                own[key] = hand_out_frozen(_present(self._buffers[name]))
        for key in [prefix + name for name in self._tgd_order if prefix + name in own]:
            destination[key] = own.pop(key)
        destination.update(own)

    def _tgd_handed_out(self, name: str, *, keep_vars: bool) -> Tensor:
        """The whole parameter for a `state_dict`."""
        rows: Tensor = self._tgd_rows(name)
        if keep_vars or is_sharded(rows):
            full = self._tgd_joined(name, gathered(rows))
            return like(full if keep_vars else full.detach(), rows)
        return hand_out(rows, self._tgd_frozen(name), self._tgd_parts[name].rows, self._tgd_index_of(name))

    def _load_from_state_dict(  # type: ignore[no-untyped-def]
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        self._tgd_take_back()  # the state_dict can be this module's own, written to
        assign = local_metadata.get("assign_to_params_buffers", False)
        # The state_dict is this module's own copy, and may be changed.
        for name in self._tgd_parts:
            if isinstance(value := state_dict.get(prefix + name), Tensor):
                state_dict[prefix + name] = gathered(value).detach()  # a Parameter would be assigned as one
        for name, rows in self._tgd_divided():
            key, wanted = prefix + name, torch.Size(self._tgd_parts[name].shape)
            if not isinstance(full := state_dict.get(key), Tensor):
                continue  # missing: torch reports it
            if full.shape != wanted:
                error_msgs.append(
                    f"size mismatch for {key}: copying a param with shape {full.shape} from checkpoint, "
                    f"the shape in current model is {wanted}."
                )
                state_dict[key] = rows.detach()
                continue
            state_dict[key] = like(self._tgd_taken(name, full), rows)
            if assign:  # a copy, since it is written to
                self._buffers[f"_tgd_frozen_{name}"] = full.clone()
            else:
                self._tgd_frozen(name).copy_(full)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for source in self._tgd_sources():
            show_loaded(source)


def frozen_buffers(net: nn.Module) -> list[str]:
    """Names of the buffers that hold frozen entries."""
    kept = {
        f"{owner}.{prefix}{name}".lstrip(".")
        for owner, module in net.named_modules()
        if isinstance(module, Divided)
        for name in module._tgd_parts
        for prefix in ("", "_tgd_frozen_")
    }
    return [name for name, _ in net.named_buffers() if name in kept]


def full_parameters(net: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by parameter name, each in the shape that the parameter has in the network's `state_dict`.

    Args:
        net: a network, in part divided or not.
        values: for some of its parameters a tensor of their shape, such as the gradient.
    """
    whole = dict(values)
    for owner, module in net.named_modules():
        if isinstance(module, Divided):
            for name, _ in module._tgd_divided():
                key = f"{owner}.{name}".lstrip(".")
                if key in values:
                    whole[key] = module._tgd_padded(name, values[key])
    return whole


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
