"""Where values leave torch: for NumPy, for numbers in lists, or for a kernel that is given an address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode, resolve_name

from tgdsurgery.core.errors import UnsupportedOpError
from tgdsurgery.core.torch_private import tree_leaves
from tgdsurgery.mapping.labels import any_in
from tgdsurgery.mapping.nodes import place_of


class Exits(TorchFunctionMode):
    """Watches where values leave torch: for NumPy, for numbers in lists, or for a kernel that is given an address.

    Single numbers (`item`, `float`, `bool`) are let go: forwards branch on them.
    """

    _METHODS = frozenset(
        (
            *(Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.__dlpack__, Tensor.data_ptr),
            *(Tensor.untyped_storage, Tensor.storage, Tensor.__cuda_array_interface__.__get__, Tensor.map_),
        )
    )
    _MAKERS = frozenset((torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor))

    def __init__(self, note: Callable[[Tensor, str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaving: list[Any] = []
        if func in self._METHODS:
            leaving = list(args)
        elif func in self._MAKERS:
            leaving = tree_leaves(
                [arg for arg in (*args, *kwargs.values()) if isinstance(arg, (list, tuple))]
            )
        for tensor in leaving:
            if isinstance(tensor, Tensor):
                self._note(tensor, resolve_name(func) or func.__name__)
        return func(*args, **kwargs)


def refuse_exit(node: fx.Node, labels: Tensor | None) -> None:
    """Raise if values that left torch were feature maps, or made of the input: they would come back as constants.

    Integers made of the input alone are let go, as single numbers are: lengths and sizes.
    """
    labelled = labels is not None and any_in(labels)
    dtype = node.meta["val"].dtype
    if labelled or (not node.meta["fixed"] and (dtype.is_floating_point or dtype.is_complex)):
        raise UnsupportedOpError(
            f"In module {place_of(node)} a tensor leaves torch ({node.meta['exit']}, node {node.name}), "
            "so that what is made of it cannot be followed.",
            "Compute with torch's ops, or wrap what is computed elsewhere in torch.library.custom_op and "
            "describe it with tgdsurgery.register_rule (docs/custom_ops.md).",
        )
