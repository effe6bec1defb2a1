"""Watching the convolutions and linear layers of a running model, at the level of torch's Python functions.

The library records ATen ops under a dispatch mode. The oracles must not share its mistakes, so they look from
the other side: at `F.conv2d` and its like, before torch takes them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from tests.strategies import call

# Axis of the channels, counted from the end: a batch axis may be missing.
CONVOLUTIONS = {
    torch.conv1d: -2,
    torch.conv2d: -3,
    torch.conv3d: -4,
    torch.conv_transpose1d: -2,
    torch.conv_transpose2d: -3,
    torch.conv_transpose3d: -4,
}
PRODUCTS = {F.linear: -1, torch.matmul: -1, Tensor.matmul: -1, Tensor.__matmul__: -1}
FILTER_FUNCTIONS = CONVOLUTIONS | PRODUCTS


class FilterCall(NamedTuple):
    """One call of a filter layer.

    Args:
        name: the layer.
        index: how many calls of that layer came before.
        axis: axis of the channels of input and output, counted from the end.
        input: what the layer reads.
    """

    name: str
    index: int
    axis: int
    input: Tensor


class FilterCalls(TorchFunctionMode):
    """Sends every call of a filter layer through `filter_call`, every other function through `other_call`.

    A function is a filter layer's if its weight is made of the model's parameters alone: neither fixed, nor
    from the input. That is read off autograd's graph, so the model's parameters and whatever it is fed need
    gradients while this watches. A matrix product without the input in it is no layer: it computes a weight.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self._running: list[nn.Module] = []
        self._transposed: dict[str, bool] = {}
        self._count: Counter[str] = Counter()

    def filter_call(self, seen: FilterCall, compute: Callable[[], Tensor]) -> Tensor:
        """What the layer's call returns; `compute` is the call itself."""
        return compute()

    def other_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What any other function returns."""
        return func(*args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            # Made of linear layers: go inside it. Its own check for modes would lead back here.
            with self, mock.patch.object(F, "has_torch_function", return_value=False):
                return func(*args, **kwargs)
        if func in FILTER_FUNCTIONS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            x = args[0] if args else kwargs["input"]
            computes_a_weight = func in PRODUCTS and self._independent_of_the_input(x)
            if self._made_of_parameters(weight) and not computes_a_weight:
                name = self._name(func, weight)
                seen = FilterCall(name, self._count[name], FILTER_FUNCTIONS[func], x)
                self._count[name] += 1
                return self.filter_call(seen, lambda: func(*args, **kwargs))
        return self.other_call(func, args, kwargs)

    def run(self, model: nn.Module, inputs: Any) -> Any:
        """The model's output, watched."""
        with self._watch_modules(), self:
            return call(model, inputs)

    def _independent_of_the_input(self, tensor: Tensor) -> bool:
        return not tensor.requires_grad or self._made_of_parameters(tensor)

    def _made_of_parameters(self, weight: Tensor) -> bool:
        if weight.is_leaf:
            return id(weight) in self._parameters
        waiting, seen = [weight.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable") and id(node.variable) not in self._parameters:
                return False
            waiting.extend(before for before, _ in node.next_functions)
        return True

    def _name(self, func: Any, weight: Tensor) -> str:
        """The parameter's first name; with ".T" where it has been used along the other axis before.

        For a computed weight, the module that is running.
        """
        if id(weight) not in self._parameters:
            return self._modules[id(self._running[-1])]
        name = self._parameters[id(weight)].removesuffix(".weight")
        transposed = "transpose" in func.__name__
        return name if self._transposed.setdefault(name, transposed) == transposed else f"{name}.T"

    @contextmanager
    def _watch_modules(self) -> Iterator[None]:
        enter = register_module_forward_pre_hook(lambda module, _: self._running.append(module))
        leave = register_module_forward_hook(lambda *_: self._leave(), always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def _leave(self) -> None:
        self._running.pop()
