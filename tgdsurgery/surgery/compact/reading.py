"""What a divided module shows of its parameters when code from outside reads them, or puts others in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tgdsurgery.core.errors import RewriteError
from tgdsurgery.core.sharding import is_sharded
from tgdsurgery.core.torch_private import (
    OpOverload,
    OpOverloadPacket,
    is_fx_tracing,
    is_jit_tracing,
    tree_map_only,
    under_functorch,
    without_torch_function_of_subclasses,
)
from tgdsurgery.surgery.compact.ambiguous import mark_if_ambiguous
from tgdsurgery.surgery.derived import Derived

REMEDY = (
    "The layers of a TGD network keep trainable and frozen rows apart. Take the trainable ones from parameters() or "
    "named_parameters(); convert or fuse layers before apply_tgd, or in the plain network that remove_tgd returns."
)
# What only a Parameter itself has: an optimizer, a log of gradients or a hook wants the trainable rows.
OF_PARAMETERS = (
    "is_leaf",
    "grad",
    "grad_fn",
    "register_hook",
    "register_post_accumulate_grad_hook",
    "retain_grad",
)


class Whole(Tensor):
    """The whole of a parameter that is kept in two parts, put together to be read: what is written to it is an error.

    It counts as a Parameter, so that nothing that looks for Parameters in a layer's attributes passes over it without a
    word. Ops on it give plain tensors, except for views of it, in which a write would be lost as well.
    """

    _is_param = True  # what isinstance(..., nn.Parameter) asks for

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _name(func) in OF_PARAMETERS:
            raise RewriteError(
                f"{_name(func)!r} is asked of a weight that was put together for reading.", REMEDY
            )
        written = args[:1] if _writes(func.__name__) else (kwargs.get("out"),)
        if isinstance(written[0] if written else None, cls):
            raise RewriteError(
                f"{_name(func)!r} would write to a weight that was put together for reading, and be lost.",
                REMEDY,
            )
        with without_torch_function_of_subclasses():
            if isinstance(func, OpOverload | OpOverloadPacket):
                # Perhaps an op of the user's, whose backward may do with the tensors that it saved as it likes.
                args, kwargs = tree_map_only(cls, lambda whole: whole.as_subclass(Tensor), (args, kwargs))
            result = func(*args, **kwargs)
            whole = args[0] if args and isinstance(args[0], cls) else None
            return result if whole is None or not _share_memory(whole, result) else result.as_subclass(cls)


def _share_memory(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _name(func: Any) -> str:
    """Of the function, or of the attribute that is read or set: torch calls its descriptor."""
    return str(func.__self__.__name__ if func.__name__ in ("__get__", "__set__") else func.__name__)


def _writes(name: str) -> bool:
    if name in ("__set__", "__setitem__") or (name.startswith("__i") and name.endswith("__")):
        return name not in ("__invert__", "__index__", "__int__")
    return name.endswith("_") and not name.endswith("__")


class Shown(Derived):
    """A module whose divided parameters can be read whole, and not be replaced."""

    _tgd_parts: Mapping[str, Any] = {}  # by the module's own names

    @classmethod
    def _tgd_members(cls, original: type[nn.Module], names: tuple[str, ...]) -> dict[str, Any]:
        members: dict[str, Any] = {name: _property(name) for name in names}
        # TorchScript would compile properties, and cannot.
        known = getattr(original, "__jit_unused_properties__", [])
        return {**members, "__jit_unused_properties__": [*known, *members]}

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of any module; in place of the trainable part of a parameter only one of the same shape."""
        lost = [
            own
            for own, part in self._tgd_parts.items()
            if part.at is not None and own not in self._parameters
        ]
        if lost or isinstance(param, Whole):
            self._tgd_refuse_change(name)
        elif name not in self._tgd_parts:
            super().register_parameter(name, param)
        elif param is None or (present := self._parameters.get(name)) is None or present.shape != param.shape:
            self._tgd_refuse_change(name)
        else:
            self._parameters[name] = param
            self._tgd_mark()

    def __delattr__(self, name: str) -> None:
        if name in self._tgd_parts:
            self._tgd_refuse_change(name)
        super().__delattr__(name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._tgd_mark()

    def _tgd_mark(self) -> None:
        for name, part in self._tgd_parts.items():
            mark_if_ambiguous(self._parameters.get(name), part.shape)

    def _tgd_refuse_change(self, name: str) -> None:
        raise RewriteError(
            f"{name!r} of this {type(self).__name__} cannot be replaced, pruned or computed.", REMEDY
        )


def _property(name: str) -> property:
    def read(self: Any) -> Tensor:
        rows: Tensor = self._tgd_rows(name)
        if is_sharded(rows):  # FSDP2 itself asks for what it keeps in pieces between forwards
            return rows
        if is_fx_tracing():
            raise RewriteError(
                f"torch.fx would keep {name!r} of a {type(self).__name__} as a constant.",
                "Trace remove_tgd(net).",
            )
        full: Tensor = self._tgd_full(name)
        if torch.compiler.is_compiling() or under_functorch() or is_jit_tracing():
            return full
        whole = full.as_subclass(Whole)
        if not torch.is_grad_enabled():
            with without_torch_function_of_subclasses():
                # As a Parameter would: torch rounds some products otherwise if a factor needs a gradient.
                whole.requires_grad_(rows.requires_grad)
        return whole

    def write(self: Any, value: Tensor) -> None:
        if not vars(self).get("_is_replica"):
            self._tgd_refuse_change(name)
        vars(self)[name] = value  # a part, for a replica that DataParallel makes

    return property(read, write)
