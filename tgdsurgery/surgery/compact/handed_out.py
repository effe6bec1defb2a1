"""Whole parameters that a `state_dict` has handed out: what is written to them is written to the network.

The tensors of a plain network's `state_dict` are the network's own memory: averages of weights write to them. A
parameter in two parts has no such memory, so the whole that was handed out is watched for as long as anybody has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from tgdsurgery.core.optimizer_hooks import after_every_step, before_every_step
from tgdsurgery.core.records import ParameterRows
from tgdsurgery.core.torch_private import is_held_elsewhere, is_jit_tracing, under_functorch
from tgdsurgery.surgery.compact.layout import fill_, taken


class _Frozen:
    """A whole parameter in somebody's hands, of which nothing is trainable.

    It does not know its source, the parameter itself, which it would keep alive.
    """

    def __init__(self, source: Tensor) -> None:
        self.tensor = self._made(source)
        self._note(source)

    def stands_for(self, source: Tensor) -> bool:
        """Whether the source is still in the same memory."""
        return self._memory == (source.data_ptr(), source.dtype)

    def take_back(self, source: Tensor) -> None:
        """Give the source what was written here, or else show here what was written to the source."""
        if self.tensor._version != self._versions[0]:
            self._give(source)
            self.show_all(source)
        elif source._version != self._versions[1]:
            self.show(source)

    def show(self, source: Tensor) -> None:
        """Write here what can be new in the source."""
        self._note(source)

    def show_all(self, source: Tensor) -> None:
        """Write here all of the source."""
        self.tensor.copy_(source)
        self._note(source)

    def _made(self, source: Tensor) -> Tensor:
        return source.clone()

    def _give(self, source: Tensor) -> None:
        """Nothing: all of it is frozen."""

    def _note(self, source: Tensor) -> None:
        self._versions = self.tensor._version, 0 if source.is_inference() else source._version
        self._memory = source.data_ptr(), source.dtype


class _Divided(_Frozen):
    """The same for one in two parts: the source is its trainable rows."""

    def __init__(self, source: Tensor, frozen: Tensor, layout: ParameterRows | None, at: Tensor) -> None:
        self._frozen, self._layout, self._at = frozen, layout, at
        super().__init__(source)

    def show(self, source: Tensor) -> None:
        fill_(self._layout, self.tensor, source, self._at)
        super().show(source)

    def show_all(self, source: Tensor) -> None:
        self.tensor.copy_(self._frozen)
        self.show(source)

    def _made(self, source: Tensor) -> Tensor:
        # Not `filled`, which returns a view: who has a tensor is counted by its memory.
        return fill_(self._layout, self._frozen.clone(), source, self._at)

    def _give(self, source: Tensor) -> None:
        source.copy_(taken(self._layout, self.tensor, self._at))


_handed_out: Any = WeakTensorKeyDictionary()  # by the source


def hand_out(rows: Tensor, frozen: Tensor, layout: ParameterRows | None, at: Tensor) -> Tensor:
    """A parameter in two parts, for a `state_dict`: the same memory for as long as anybody has it.

    Args:
        rows: the trainable part.
        frozen: a tensor of the whole's shape with the frozen entries.
        layout: how the entries belong to rows; None for single entries.
        at: numbers of the trainable rows or entries.
    """
    return _handed(rows, lambda: _Divided(rows, frozen, layout, at))


def hand_out_frozen(frozen: Tensor) -> Tensor:
    """The same for a parameter of which nothing is trainable."""
    return _handed(frozen, lambda: _Frozen(frozen))


def _handed(source: Tensor, make: Callable[[], _Frozen]) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # torch counts no writes to what inference mode makes
        if source.is_inference():
            return make().tensor
        before_every_step(_before_step)
        after_every_step(_after_step)
        if (whole := _up_to_date(source)) is None:
            _handed_out[source] = whole = make()
        else:
            whole.show(source)  # torch does not count all that is written to the rows
        return whole.tensor.detach()


def nothing_handed_out() -> bool:
    """Whether nobody has a whole parameter."""
    return not _handed_out.data  # quicker than its length


def take_back(source: Tensor) -> None:
    """Give a parameter what was written to the whole of it that was handed out."""
    if torch.compiler.is_compiling() or is_jit_tracing() or under_functorch():
        return
    if len(_handed_out):
        with torch.no_grad():
            _up_to_date(source)


def show_loaded(source: Tensor) -> None:
    """Let whoever has the whole see what was loaded."""
    with torch.no_grad():
        if (whole := _up_to_date(source)) is not None:
            whole.show_all(source)


def _up_to_date(source: Tensor) -> _Frozen | None:
    """The whole that somebody has, with the same values as the source; None if nobody has one."""
    whole: _Frozen | None = _handed_out.get(source)
    if whole is None:
        return None
    if whole.stands_for(source):
        whole.take_back(source)
        if is_held_elsewhere(whole.tensor):
            return whole
    del _handed_out[source]
    return None


@torch.no_grad()
def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for source in list(_handed_out):
        _up_to_date(source)


@torch.no_grad()
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups if len(_handed_out) else ():
        for source in group["params"]:
            if (whole := _up_to_date(source)) is not None:
                whole.show(source)  # torch does not count what its fused ops write
