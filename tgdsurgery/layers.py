"""What the literal form of TGD is made of: the TGD layer, and its two companions.

* `TGDLayer` follows a filter layer or a carrier: identity forward, masked backward (the paper's layer).
* `ParameterMask` masks the gradients of parameters; alone, it is `flow="full"`.
* `HeldNorm` normalises frozen channels with their stored statistics, and leaves those as they are.

All three sit in the network as child modules with `Constants`: masks move with `.to(device)`, are copied and
pickled with the network, and are no part of its state.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tgdsurgery.constants import Constants

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Key of our hooks. Torch numbers its own from 0 in each process: in a network that was loaded from a file, a
# later hook could take the number of ours, and its place.
HOOK = -1
# Integers of the size of a number.
BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
# Names of the child modules.
TGD, PARAMETERS, HOLD = "tgd_layer", "tgd_parameters", "tgd_hold"


class TGDLayer(Constants):
    """Identity forward; in the backward, the gradient of frozen channels becomes zero.

    The forward returns the very tensor it got. A frozen channel's gradient is *replaced* by zero, not
    multiplied by it: an overflow (inf, NaN) that meets a frozen channel stops there, where 0 * inf would turn
    into a NaN and reach every layer before it. Works under double backward.

    Args:
        mask: (N,) bool, True where the channel is trainable; on the CPU.
        channel_axis: axis of the N channels, counted from the end (-3 for the output of a 2-D conv).
        device: where the network is.

    Source: Chen, Asma, Chan: "Targeted Gradient Descent", MICCAI 2021, eq. 4 (the factor M_n).

    >>> x = torch.ones(1, 2, 1, requires_grad=True)
    >>> (3 * TGDLayer(torch.tensor([True, False]), -2)(x)).sum().backward()
    >>> x.grad.flatten().tolist()
    [3.0, 0.0]
    """

    def __init__(self, mask: Tensor, channel_axis: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.keep("mask", mask.clone(), device)

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself; in some cases (see `mask_gradient`) an equal tensor."""
        return mask_gradient(x, self.constant("mask", x.device), self.channel_axis)

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        mask = self.kept["mask"]
        return f"{int(mask.sum())} of {mask.numel()} channels trainable, axis {self.channel_axis}"


def mask_gradient(x: Tensor, mask: Tensor, channel_axis: int) -> Tensor:
    """`x` itself, or an equal tensor; the gradient of the channels outside of the mask becomes zero."""
    if torch.compiler.is_exporting() or not (torch.is_grad_enabled() and x.requires_grad):
        return x
    shaped = along(mask, channel_axis)
    if torch.compiler.is_compiling() or x._is_view():
        # A compiler does not see hooks, and fuses this copy away. An in-place op on a view (what
        # nn.Linear and unbatched convs return) makes autograd go round the view, and a hook on it.
        return torch.where(shaped, x, x.detach())
    # A hook stays with the value it was set on, so an in-place activation may follow.
    x.register_hook(lambda gradient: zeroed(gradient, shaped))
    return x


def zeroed(gradient: Tensor, mask: Tensor) -> Tensor:
    """The gradient where the mask (broadcastable) is True, and zero, not a product with zero, elsewhere."""
    bits = BITS.get(gradient.dtype)
    if bits is None or gradient.requires_grad or torch._C._are_functorch_transforms_active():
        return torch.where(mask, gradient, 0)
    # The same by the bits of the numbers, several times faster on a CPU; but nothing to differentiate.
    return gradient.view(bits).bitwise_and(mask.to(bits).neg()).view(gradient.dtype)


def attach(net: ModuleT) -> ModuleT:
    """Let every TGD layer in `net` follow the module it is a child of, by a forward hook; returns `net`."""
    for module in net.modules():
        if hasattr(module, TGD):
            module._forward_hooks[HOOK] = _through_tgd_layer
    return net


def _through_tgd_layer(module: nn.Module, args: object, output: Tensor) -> Tensor:
    # Looked up, not bound: a replica of the module on another device has a replica of the layer.
    masked: Tensor = module.get_submodule(TGD)(output)
    return masked


class ParameterMask(Constants):
    """Zeroes the gradient of frozen parameter entries; a child of the module that owns the parameters.

    The masking is done by hooks on the Parameter objects. Those are lost when a Parameter is copied, pickled
    or replaced, so this module remembers which objects it has hooked: it hooks the copies as soon as they
    exist (`__setstate__`), and `follow`, run before each forward of the network, finds those that were
    replaced (`load_state_dict(assign=True)`). It remembers them weakly: they have hooks that have this module,
    and a circle would keep a network in memory until Python looks for circles. As in the TGD layer, frozen
    entries are replaced by zero.

    Args:
        masks: for each parameter of the owner, by its own name: True at trainable entries, broadcastable.
        device: where the network is.
    """

    def __init__(self, masks: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        super().__init__()
        for name, mask in masks.items():
            self.keep(name, mask.clone(), device)
        self.names = tuple(masks)
        self.hooked: dict[str, tuple[weakref.ref[nn.Parameter], RemovableHandle]] = {}

    def follow(self, owner: nn.Module) -> None:
        """Hook the owner's parameters, unless they are hooked already."""
        for name in self.names:
            parameter: nn.Parameter = getattr(owner, name)
            known = self.hooked[name][0]() if name in self.hooked else None
            if parameter.requires_grad and parameter is not known:
                self._hook(name, parameter)

    def release(self) -> None:
        """Take the hooks off the parameters."""
        for _, handle in self.hooked.values():
            handle.remove()
        self.hooked = {}

    def forward(self, x: Any) -> Any:
        """`x` itself, so that an owner which calls all its children is not disturbed."""
        return x

    def _hook(self, name: str, parameter: nn.Parameter) -> None:
        handle = parameter.register_hook(functools.partial(self._masked, name))
        self.hooked[name] = weakref.ref(parameter), handle

    def _masked(self, name: str, gradient: Tensor) -> Tensor:
        return zeroed(gradient, self.constant(name, gradient.device))

    def __getstate__(self) -> dict[str, Any]:
        hooked = {name: parameter() for name, (parameter, _) in self.hooked.items()}
        return {**vars(self), "hooked": {name: there for name, there in hooked.items() if there is not None}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "hooked": {}})  # type: ignore[no-untyped-call]
        for name, parameter in state["hooked"].items():
            self._hook(name, parameter)


def follow_parameters(net: nn.Module, args: object = None) -> None:
    """Let every parameter mask in `net` hook the parameters that are there now; also a forward pre-hook."""
    if torch.compiler.is_compiling():
        return
    for module in net.modules():
        if isinstance(mask := module._modules.get(PARAMETERS), ParameterMask):
            mask.follow(module)


class Hold(Constants):
    """What a `HeldNorm` needs to know; its child module.

    Args:
        mask: (N,) bool, True where the channel is trainable; on the CPU.
        channel_axis: axis of the channels in the norm's output, counted from the end.
        statistics: names of the norm's buffers (N,) that hold its running statistics.
        device: where the network is.
    """

    def __init__(
        self, mask: Tensor, channel_axis: int, statistics: Sequence[str], device: torch.device | str
    ) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.statistics = tuple(statistics)
        self.any_trainable = bool(mask.any())
        self.keep("mask", mask.clone(), device)


class HeldNorm(nn.Module):
    """A norm whose frozen channels use, and keep, their stored statistics also in training.

    Works for any class that keeps running statistics in buffers, whatever else its forward does: the class's
    own forward runs once in training and once in evaluation mode, and each channel takes its result from one
    of the two. Where all channels are frozen it runs in evaluation mode only, and no buffer moves. In
    evaluation mode nothing is different from the original class.

    Instances are made by `hold`, which swaps a module's class for a subclass of this one and its own class.
    """

    original_class: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward; in training, each channel by its own mode."""
        if not self.training:
            return super().forward(*args, **kwargs)
        hold: Hold = getattr(self, HOLD)
        stored = {name: self.get_buffer(name) for name in hold.statistics}
        try:
            # Both runs get copies: autograd saves the statistics it used, and would refuse a backward
            # after the write below.
            self._use({name: buffer.clone() for name, buffer in stored.items()}, training=False)
            by_stored = super().forward(*args, **kwargs)
            if not hold.any_trainable:
                return by_stored
            self._use({name: buffer.clone() for name, buffer in stored.items()}, training=True)
            by_batch = super().forward(*args, **kwargs)
            moved = {name: self.get_buffer(name) for name in stored}
        finally:
            self._use(stored, training=True)
        mask = hold.constant("mask", by_batch.device)
        with torch.no_grad():
            for name, buffer in stored.items():
                buffer.copy_(torch.where(mask, moved[name], buffer))
        return torch.where(along(mask, hold.channel_axis), by_batch, by_stored)

    def reset_running_stats(self) -> None:
        """Of the trainable channels only (torch's `update_bn` calls it)."""
        hold: Hold = getattr(self, HOLD)
        if not hold.any_trainable:
            return
        stored = {name: self.get_buffer(name).clone() for name in hold.statistics}
        super().reset_running_stats()  # type: ignore[misc]
        for name, values in stored.items():
            mask, buffer = hold.constant("mask", values.device), self.get_buffer(name)
            buffer.copy_(torch.where(mask, buffer, values))

    def _use(self, statistics: Mapping[str, Tensor], *, training: bool) -> None:
        self.training = training
        for name, buffer in statistics.items():
            setattr(self, name, buffer)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time and cannot be found by name: pickle the one it was made from.
        reduced = super().__reduce_ex__(protocol)
        return _empty, (self.original_class,), *reduced[2:]


@functools.cache
def _held_class(original: Any) -> type[HeldNorm]:
    return type(f"Held{original.__name__}", (HeldNorm, original), {"original_class": original})


def _empty(original: Any) -> HeldNorm:
    held = _held_class(original)
    return held.__new__(held)


def hold(norm: nn.Module, mask: Tensor, channel_axis: int, statistics: Sequence[str]) -> None:
    """Make `norm` hold the statistics of its frozen channels, in place; `release` undoes it.

    Args:
        norm: any module that normalises with running statistics.
        mask: (N,) bool, True where the channel is trainable.
        channel_axis: axis of the channels in the norm's output, counted from the end.
        statistics: names of the norm's buffers (N,) that hold its running statistics.
    """
    norm.add_module(HOLD, Hold(mask, channel_axis, statistics, norm.get_buffer(statistics[0]).device))
    original: Any = type(norm)
    norm.__class__ = _held_class(original)


def release(norm: nn.Module) -> None:
    """Give a `HeldNorm` its original class back, in place."""
    if isinstance(norm, HeldNorm):
        delattr(norm, HOLD)
        norm.__class__ = norm.original_class  # type: ignore[assignment]


def along(mask: Tensor, axis: int) -> Tensor:
    """The mask (N,) shaped to broadcast along `axis`, which is counted from the end."""
    return mask.view(-1, *[1] * (-axis - 1))
