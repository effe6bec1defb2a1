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

from tgdsurgery.constants import Constants
from tgdsurgery.records import ParameterRows
from tgdsurgery.sharding import gathered, is_sharded, like


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


class Rows(nn.Parameter):
    """Trainable rows, which know how often they were handed out as `.data`: torch does not count what is written there.

    Where torch makes a plain Parameter of them (in a file, say), nothing is lost but some time.
    """

    handed_out = 0

    @property
    def data(self) -> Tensor:
        """As of any Parameter."""
        self.handed_out += 1
        return Tensor.data.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @data.setter
    def data(self, value: Tensor) -> None:
        self.handed_out += 1
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]


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
        if (written := self.written.get(name)) and _as_it_was(written, self._parameters.get(name), frozen):
            return frozen
        trainable: Tensor | None = getattr(self, name)
        if trainable is None or frozen is None:
            return trainable
        with torch.no_grad():
            if not isinstance(trainable, nn.Parameter):  # it is lent by torch.func: no writing to buffers
                return self.full(name)
            fill_(self.compaction.rows[name], frozen, trainable, self.index("rows"))
        self.written[name] = _state(trainable, frozen)
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
        return _in_format(rows, memory_format(full))

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


def filled(rows: ParameterRows, whole: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """A copy of `whole`, a parameter in its own layout, with `values` (n, ...) in the rows `at`; differentiable."""
    if rows.groups > 1:
        full = swapped(swapped(whole, rows.groups).index_copy(0, at, values), rows.groups)
    else:
        full = whole.movedim(rows.axis, 0).index_copy(0, at, values).movedim(0, rows.axis)
    # Torch reads the format of what it computes from the strides, also where others would mean the same entries.
    return full if full.stride() == whole.stride() else _in_format(full, memory_format(whole))


def fill_(rows: ParameterRows, whole: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """`filled` in place; returns `whole`."""
    if rows.groups > 1:
        by_group = whole.unflatten(0, (rows.groups, -1)).transpose(1, 2)
        by_group.index_put_((at // whole.shape[1], at % whole.shape[1]), values)
    else:
        whole.movedim(rows.axis, 0).index_copy_(0, at, values)
    return whole


def by_row(rows: ParameterRows, full: Tensor) -> Tensor:
    """(N, ...): a parameter with its channels first."""
    return full.movedim(rows.axis, 0) if rows.groups == 1 else swapped(full, rows.groups)


def swapped(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed conv (C, N/g, *K) as rows (N, C/g, *K), and back."""
    result: Tensor = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return result


def memory_format(tensor: Tensor) -> torch.memory_format:
    """How the entries lie in memory; the formats of a single entry per row are the same."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.dim() not in channels_last or tensor.shape.numel() == len(tensor):
        return torch.contiguous_format
    lies_last = tensor.stride(1) == 1 and tensor.stride(-1) == tensor.size(1)
    return channels_last[tensor.dim()] if lies_last else torch.contiguous_format


def _in_format(tensor: Tensor, form: torch.memory_format) -> Tensor:
    # Not `contiguous`: it returns a 1x1 kernel as it is, whose strides torch reads the format from.
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=form)
    empty.copy_(tensor)
    return empty


def _state(trainable: Tensor, frozen: Tensor) -> tuple[Any, ...] | None:
    """What `_as_it_was` compares; None where a change would not be seen."""
    if not isinstance(trainable, Rows) or trainable.is_inference() or frozen.is_inference():
        return None
    return trainable, frozen, trainable._version, frozen._version, trainable.handed_out, _steps


def _as_it_was(written: tuple[Any, ...], trainable: Any, frozen: Any) -> bool:
    """Whether these are the tensors that were written, and not changed since."""
    if written[0] is not trainable or written[1] is not frozen:
        return False
    present: tuple[int, ...] = (trainable._version, frozen._version, trainable.handed_out, _steps)
    return written[2:] == present


_steps = 0  # of all optimizers; torch does not count what their fused kernels write


def _count(optimizer: Any, args: Any, kwargs: Any) -> None:
    global _steps  # noqa: PLW0603
    _steps += 1


register_optimizer_step_post_hook(_count)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
