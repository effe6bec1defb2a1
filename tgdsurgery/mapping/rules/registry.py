"""op -> rule. The registry fails closed: what it does not know, it does not guess."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from tgdsurgery.core.errors import UnsupportedOpError
from tgdsurgery.core.torch_private import (
    CustomOpDef,
    OpOverload,
    OpOverloadPacket,
    is_op,
    tree_leaves,
    tree_map_only,
)
from tgdsurgery.mapping.labels import EMPTY, collapse
from tgdsurgery.mapping.rules.call import Call, Traced

Rule = Callable[..., Any]


Kind = Literal["pointwise", "movement", "mix"]


_RULES: dict[str, Rule] = {}


def register_rule(op: OpOverload | OpOverloadPacket | CustomOpDef | str, rule: Rule | Kind) -> None:
    """Teach the channel map a new op.

    Args:
        op: the op or its qualified name, such as ``torch.ops.mylib.gelu2`` or ``"mylib::gelu2"``; or what
            ``torch.library.custom_op`` returned.
        rule: "pointwise" if every output element depends on the input elements at its own (broadcast)
            place; "movement" if the op only moves elements, and so can be run on integers; "mix" if any
            output may depend on any input; or a function ``rule(call, *args, **kwargs)`` that gets the
            op's arguments with every tensor as a `Traced`, and returns the output's labels (int64,
            broadcastable to the output's shape; a tuple for several outputs).

    Raises:
        UnsupportedOpError: there is no such op, or `rule` is neither one of the words nor a function.

    Example:
        >>> from torch import Tensor
        >>> @torch.library.custom_op("docs::scale", mutates_args=())
        ... def scale(x: Tensor) -> Tensor:
        ...     return x * 2
        >>> register_rule("docs::scale", "pointwise")
    """
    name = _name_of(op)
    if not (callable(rule) or rule in list(_KINDS)):
        raise UnsupportedOpError(
            f"The rule for the op {name} is {rule!r}.",
            f"Give one of {', '.join(map(repr, _KINDS))}, or a function (docs/custom_ops.md).",
        )
    _RULES[name] = rule if callable(rule) else _KINDS[rule]


def _name_of(op: object) -> str:
    """The qualified name of an op that torch knows, without its overload."""
    if isinstance(op, CustomOpDef):
        op = op._opoverload
    if isinstance(op, (OpOverload, OpOverloadPacket)):
        return op._schema.name if isinstance(op, OpOverload) else op._qualified_op_name
    if isinstance(op, str) and "::" in op and is_op(op):
        return op
    raise UnsupportedOpError(
        f"There is no op {op!r}.",
        'Give its name without an overload ("mylib::gelu2"), after what defines it was imported.',
    )


def rule_for(*names: str, namespace: str = "aten") -> Callable[[Rule], Rule]:
    """Register the decorated function for ops by their names, without namespace and overload."""

    def register(rule: Rule) -> Rule:
        _RULES.update({f"{namespace}::{name}": rule for name in names})
        return rule

    return register


def find_rule(op: OpOverload) -> Rule | None:
    """The rule of `op`; that of torch's ``relu`` serves its ``relu_`` too. None if there is none."""
    name = op._schema.name
    if name in _RULES:
        return _RULES[name]
    # What others call so may do something else.
    if op.namespace == "aten" and op._schema.is_mutable and name.endswith("_") and name[:-1] in _RULES:
        return _RULES[name[:-1]]
    # torch marks the ops that work element by element.
    return unite_elementwise if torch.Tag.pointwise in op.tags else None


def tensors(*args: Any, **kwargs: Any) -> list[Traced]:
    """All tensor arguments of an op, those in lists included, in order."""
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Traced)]


def unite_elementwise(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    """Every output element has the writers of the input elements at its (broadcast) place."""
    labels = [tensor.labels for tensor in tensors(*args, **kwargs) if tensor.labelled]
    return reduce(call.table.union, labels, torch.zeros((), dtype=torch.int64))


def is_known(index: Traced) -> bool:
    """Whether these numbers are the same in every run, whatever the filters are."""
    return index.value is not None and not index.value.is_meta and not index.labelled


def run_on_labels(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Movement by torch's own ops: the op itself is run on the labels."""
    # What is written in place is a copy: labels may be expanded, and the interpreter writes them where they belong.
    writes = call.op._schema.is_mutable
    return _moved(call, lambda tensor: tensor.labels.clone() if writes else tensor.labels, args, kwargs)


def run_on_numbers(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Movement by any op: it is run on numbers that stand for the labels; known whole numbers are taken for indices.

    The op may compute in a type that rounds large numbers, or do more than it says. So the numbers are small, and
    it is run again on labels that are numbered the other way round, with any signs: the same must come out.
    """
    if not all(_is_moved(tensor) or is_known(tensor) for tensor in tensors(*args, **kwargs)):
        return mix_all(call, *args, **kwargs)
    args, kwargs = tree_map_only(
        Traced, lambda tensor: tensor if _is_moved(tensor) else tensor.value, (args, kwargs)
    )
    labels = [collapse(tensor.labels).flatten() for tensor in tensors(*args, **kwargs)]
    known = torch.cat([torch.tensor([EMPTY]), *labels]).unique()  # the label of each number; nobody's is 0
    chance = torch.Generator().manual_seed(0)

    def forwards(tensor: Traced) -> Tensor:
        return torch.searchsorted(known, collapse(tensor.labels)).expand(tensor.shape).clone()

    def backwards(tensor: Traced) -> Tensor:
        rank = forwards(tensor)
        sign = 2 * torch.randint(2, rank.shape, generator=chance) - 1
        return torch.where(rank > 0, sign * (len(known) - rank), rank)

    one, other = (_moved(call, way, args, kwargs) for way in (forwards, backwards))
    for number, again in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if isinstance(number, Tensor):
            expected = torch.where(number > 0, len(known) - number, number)
            if bool((number < 0).any()) or not torch.equal(again.abs(), expected):
                raise ValueError("it does more than move: other numbers come out than went in")
    return tree_map_only(Tensor, known.__getitem__, one)


def _is_moved(tensor: Traced) -> bool:
    """Whether this argument is the one being moved; whole numbers that nobody writes may be indices."""
    is_whole = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
    return not is_whole or (tensor.labelled and tensor.value is None)


def _moved(call: Call, numbers: Callable[[Traced], Tensor], args: Any, kwargs: Any) -> Any:
    """What comes out of the op if `numbers` go in; on float64 where it does not take integers."""

    def run(dtype: torch.dtype) -> Any:
        given, named = tree_map_only(Traced, lambda tensor: numbers(tensor).to(dtype), (args, kwargs))
        return tree_map_only(Tensor, _whole, call.op(*given, **named))

    try:
        return run(torch.int64)
    except Exception:  # ops raise anything
        return run(torch.float64)


def _whole(moved: Tensor) -> Tensor:
    whole = moved.long()
    if not torch.equal(whole.to(moved.dtype), moved):
        raise ValueError("it does more than move: no whole numbers come out")
    return whole


def mix_all(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    """Safe for any op: every output element gets all writers of all inputs."""
    return call.table.mix(*(tensor.labels for tensor in tensors(*args, **kwargs)))


_KINDS: dict[str, Rule] = {"pointwise": unite_elementwise, "movement": run_on_numbers, "mix": mix_all}
