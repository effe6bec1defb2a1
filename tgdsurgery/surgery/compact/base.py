"""A layer's parameters in two parts: trainable rows are Parameters, frozen rows are buffers.

Outside, nothing shows of it: `state_dict` and `load_state_dict` speak the original's keys, shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from tgdsurgery.core.constants import Constants
from tgdsurgery.core.records import ParameterRows
from tgdsurgery.core.sharding import gathered, is_sharded, like
from tgdsurgery.surgery.compact.layout import by_row, fill_, filled, in_format, memory_format
from tgdsurgery.surgery.compact.weight_cache import Rows, _count, as_it_was, state_of


@dataclass(frozen=True)
class Compaction:
    """What a compact module knows about itself.

    Args:
        mask: for each output channel, whether it is trainable.
        rows: how the entries of each parameter (by its own name) belong to the channels.
        channel_axis: axis of the channels in the output, counted from the end.
        stops_gradient: whether the gradient at frozen output channels counts as zero.
        hold: whether frozen channels of a norm use, and keep, their stored statistics in training.
        needs: for each input channel, whether anything before it is trainable; None for all.
        required: `requires_grad` of each parameter in the original module.
    """

    mask: tuple[bool, ...]
    rows: Mapping[str, ParameterRows]
    channel_axis: int
    stops_gradient: bool
    hold: bool
    needs: tuple[bool, ...] | None
    required: Mapping[str, bool]

    def __deepcopy__(self, memo: dict[int, Any]) -> Compaction:
        """Itself: nothing in it changes."""
        return self

    @cached_property
    def trainable(self) -> int:
        """Number of trainable channels."""
        return sum(self.mask)


CompactT = TypeVar("CompactT", bound="Compact")


class Compact(Constants):
    """What all compact modules have in common: a mixin, in front of the original's class.

    A parameter `weight` with n of N rows trainable becomes the Parameter `weight` (n, ...), rows first, and
    the buffer `frozen_weight` of the original's shape and layout: in it the N - n frozen rows count, and the
    others are room for what a kernel needs whole. With nothing trainable it becomes a buffer of the same name.
    """

    original_class: ClassVar[type[nn.Module]]
    compaction: Compaction
    written: dict[str, Any]  # what `whole` last wrote, and where to

    def full(self, name: str) -> Any:
        """The whole parameter (or None), differentiable in its trainable rows; in the original's layout."""
        trainable: Tensor | None = getattr(self, name)
        frozen = self._buffers.get(f"frozen_{name}")
        if trainable is None or frozen is None:
            return trainable
        return self._joined(name, trainable)

    def whole(self, name: str) -> Any:
        """`full` without a gradient, for a kernel that keeps nothing of it for a backward: no copy, if it can be.

        The trainable rows are written where they belong in the frozen part, unless they are there already: as
        long as no mode was set, no optimizer has stepped, and neither torch nor `Rows` have counted a change.
        (What goes unseen: a write, later, to what `.data` once gave.)
        """
        frozen = self._buffers.get(f"frozen_{name}")
        if torch.compiler.is_compiling():
            with torch.no_grad():
                return self.full(name)
        if (written := self.written.get(name)) and as_it_was(written, self._parameters.get(name), frozen):
            return frozen
        trainable: Tensor | None = getattr(self, name)
        if trainable is None or frozen is None:
            return trainable
        with torch.no_grad():
            if not isinstance(trainable, nn.Parameter):  # it is lent by torch.func: no writing to buffers
                return self.full(name)
            fill_(self.compaction.rows[name], frozen, trainable, self.index("rows"))
        self.written[name] = state_of(trainable, frozen)
        return frozen

    def padded(self, name: str, trainable: Tensor) -> Tensor:
        """Values of the trainable rows (a gradient, say) in the parameter's own shape; zero at frozen rows."""
        zeros = torch.zeros_like(self.get_buffer(f"frozen_{name}"), dtype=trainable.dtype)
        return fill_(self.compaction.rows[name], zeros, trainable, self.index("rows"))

    def _joined(self, name: str, trainable: Tensor) -> Tensor:
        frozen = self.get_buffer(f"frozen_{name}")
        return filled(self.compaction.rows[name], frozen, trainable, self.index("rows"))

    def stopped(self, x: Tensor) -> Tensor:
        """The input; detached if no gradient gets through the layer at all."""
        return x.detach() if self.compaction.stops_gradient and not self.compaction.trainable else x

    def index(self, name: str) -> Any:
        """An index or a mask, on the device of the module; None if it has none of that name."""
        return self.constant(name, self._device()) if name in self.placed else None

    def _index_tensors(self) -> dict[str, Any]:
        """All of them, on the CPU."""
        return {"rows": torch.tensor(self.compaction.mask).nonzero().flatten()}

    def divide(self) -> None:
        """Divide the parameters of what was a plain module until now."""
        if not self.compaction.trainable:
            whole = {name: self._parameters.pop(name) for name in self.compaction.rows}
            frozen = {name: None if p is None else p.detach() for name, p in whole.items()}
            self._buffers = {**frozen, **self._buffers}  # in front, as the state_dict has parameters first
        vars(self)["written"] = {}
        for name, values in self._index_tensors().items():
            if values is not None:
                self.keep(name, values, self._device())
        for name in self._divided():
            parameter = self._parameters[name]
            assert parameter is not None
            rows = self._trainable_part(name, parameter.detach())
            self._parameters[name] = Rows(rows, requires_grad=parameter.requires_grad)
            self.register_buffer(f"frozen_{name}", parameter.detach(), persistent=False)

    def unite(self) -> None:
        """Undo `divide`."""
        united: dict[str, nn.Parameter | None] = {}
        for name, required in self.compaction.required.items():
            rows, full = self._parameters.get(name), self.full(name).detach()
            united[name] = nn.Parameter(full, requires_grad=required if rows is None else rows.requires_grad)
        self.forget()
        del vars(self)["written"]
        added = {f"frozen_{name}" for name in self.compaction.rows}
        for name in (added | united.keys()) & self._buffers.keys():
            delattr(self, name)
        self._parameters = {**united, **{n: p for n, p in self._parameters.items() if n not in united}}

    def _divided(self) -> list[str]:
        """Names of the parameters that exist in two parts."""
        present = [name for name in self.compaction.rows if self._parameters.get(name) is not None]
        return present if self.compaction.trainable else []

    def _trainable_part(self, name: str, full: Tensor) -> Tensor:
        at = self._index_tensors()["rows"].to(full.device)
        rows = by_row(self.compaction.rows[name], full).index_select(0, at)
        return in_format(rows, memory_format(full))

    def train(self: CompactT, mode: bool = True) -> CompactT:
        """As of any module; the next forward looks at the rows anew."""
        self.written.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "written": {}}

    def _device(self) -> torch.device:
        tensors = (*self._parameters.values(), *self._buffers.values())
        return next(tensor.device for tensor in tensors if tensor is not None)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._divided():
            own = _present(self._parameters[name])
            full = self._joined(name, gathered(own))
            destination[prefix + name] = like(full if keep_vars else full.detach(), own)

    def _load_from_state_dict(  # type: ignore[no-untyped-def]
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        assign = local_metadata.get("assign_to_params_buffers", False)
        # The state_dict is this module's own copy, and may be changed.
        for key in [
            prefix + name for name in self.compaction.rows if is_sharded(state_dict.get(prefix + name))
        ]:
            state_dict[key] = gathered(state_dict[key])
        for name in self._divided():
            key = prefix + name
            if not isinstance(full := state_dict.get(key), Tensor):
                continue  # missing: torch reports it
            rows, own = self.compaction.rows[name], _present(self._parameters[name])
            if full.shape != rows.shape:
                wanted = torch.Size(rows.shape)
                error_msgs.append(
                    f"size mismatch for {key}: copying a param with shape {full.shape} from checkpoint, "
                    f"the shape in current model is {wanted}."
                )
                state_dict[key] = own.detach()
                continue
            state_dict[key] = like(self._trainable_part(name, full.detach()), own)
            if assign:  # a copy, since it is written to
                setattr(self, f"frozen_{name}", full.detach().clone())
            else:
                self.get_buffer(f"frozen_{name}").copy_(full)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        share = f"{self.compaction.trainable}/{len(self.compaction.mask)} trainable"
        original = super().extra_repr()
        return f"{original}, {share}" if original else share


def frozen_buffers(net: nn.Module) -> list[str]:
    """Names of the buffers that hold frozen rows."""
    compact = {owner: module for owner, module in net.named_modules() if isinstance(module, Compact)}
    kept = {
        f"{owner}.{prefix}{name}".lstrip(".")
        for owner, module in compact.items()
        for name in module.compaction.rows
        for prefix in ("", "frozen_")
    }
    return [name for name, _ in net.named_buffers() if name in kept]


def full_parameters(net: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by parameter name, each in the shape that the parameter has in the network's `state_dict`.

    Args:
        net: a network, in part compact or not.
        values: for some of its parameters a tensor of their shape, such as the gradient.
    """
    whole = dict(values)
    for owner, module in net.named_modules():
        if isinstance(module, Compact):
            for name in module.compaction.rows:
                key = f"{owner}.{name}".lstrip(".")
                if key in values:
                    whole[key] = module.padded(name, values[key])
    return whole


register_optimizer_step_post_hook(_count)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
