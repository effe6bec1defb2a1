"""Which torch function runs an ONNX op: its inputs in order, its attributes by name, with ONNX's defaults.

An input that became an attribute, or the other way round, between opsets has one name in both, so that one function
runs all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Function = Callable[..., Any]
FunctionT = TypeVar("FunctionT", bound=Function)


@dataclass(frozen=True)
class Op:
    """How an op is run.

    Args:
        function: takes tensors, and Python's own numbers and lists where `host` and `soft` say so. Some of its
            parameters are no attributes: `opset` is the file's, `outputs` the number of results, `like` a tensor
            on the network's device, `dtype` that of an attribute that is a tensor.
        host: inputs that have to be known without data: shapes, axes, sizes.
        soft: inputs that are Python's own numbers where they are constant.
        several: whether it returns a tuple.
        inputs: names of its inputs in order; none where it takes any number of them.
        attributes: names of the attributes that it understands, and of what else it wants to know.
        fixed: arguments that belong to the op's name.
    """

    function: Function
    host: frozenset[str] = frozenset()
    soft: frozenset[str] = frozenset()
    several: bool = False
    inputs: tuple[str, ...] = ()
    attributes: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)


OPS: dict[str, Op] = {}


def one(number: int | Sequence[int]) -> int:
    """A number, which files also write as a list of one."""
    return number[0] if isinstance(number, Sequence) else number


def op(
    *names: str,
    host: tuple[str, ...] = (),
    soft: tuple[str, ...] = (),
    several: bool = False,
    **fixed: Any,
) -> Callable[[FunctionT], FunctionT]:
    """Register a function of its own file for the ONNX ops of these names."""

    def register(function: FunctionT) -> FunctionT:
        parameters = inspect.signature(function).parameters.values()
        inputs = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        # What is an input in one opset is an attribute in another.
        named = frozenset(p.name for p in parameters if p.kind is not p.VAR_POSITIONAL)
        for name in names:
            OPS[name] = Op(
                function, frozenset(host), frozenset(soft), several, inputs, named - {*fixed}, fixed
            )
        return function

    return register
