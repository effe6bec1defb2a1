"""What the compact twins of layers have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tgdsurgery.core.masking import mask_gradient
from tgdsurgery.core.torch_private import is_jit_tracing, is_traced, under_functorch
from tgdsurgery.surgery.compact.base import Divided, Part, Parts
from tgdsurgery.surgery.compact.handed_out import nothing_handed_out
from tgdsurgery.surgery.compact.layout import fill_
from tgdsurgery.surgery.compact.weight_cache import Kept, as_it_was, state_of


@dataclass(frozen=True)
class Compaction:
    """What a compact module knows about itself.

    Args:
        mask: for each output channel, whether it is trainable.
        channel_axis: axis of the channels in the output, counted from the end.
        stops_gradient: whether the gradient at frozen output channels counts as zero.
        hold: whether frozen channels of a norm use, and keep, their stored statistics in training.
        needs: for each input channel, whether anything before it is trainable; None for all.
        trainable: number of trainable channels; no cached property, which torch.compile cannot go through.
    """

    mask: tuple[bool, ...]
    channel_axis: int
    stops_gradient: bool
    hold: bool
    needs: tuple[bool, ...] | None
    trainable: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trainable", sum(self.mask))

    def __deepcopy__(self, memo: dict[int, Any]) -> Compaction:
        """Itself: nothing in it changes."""
        return self


CompactT = TypeVar("CompactT", bound="Compact")


class Compact(Divided):
    """A layer with a forward and backward of its own for its two parts: a mixin, in front of the layer's class.

    Each of the parameters has one row per output channel, and the n rows of the trainable channels are its Parameter
    (n, ...), channels first. A twin's forward gets what it needs of a parameter from:

    * `_tgd_rows(name)`, the trainable rows, or None;
    * `_tgd_full(name)`, the whole parameter, differentiable in them;
    * `_tgd_whole(name)`, the whole parameter for an op that keeps nothing of it for a backward.

    What it knows of the plan is in `_tgd_compaction`.
    """

    _tgd_prefix = "Compact"
    _tgd_compaction: Compaction
    _tgd_written: dict[str, Any]  # what `_tgd_whole` last wrote, and where to

    def _tgd_whole(self, name: str) -> Any:
        """`_tgd_full` without a gradient, for an op that keeps nothing of it for a backward: no copy, if it can be.

        The trainable rows are written where they belong in the frozen part, unless they are there already: as
        long as no mode was set, no optimizer has stepped, and neither torch nor `Rows` have counted a change.
        (What goes unseen: a write, later, to what `.data` once gave.)
        """
        if name not in self._tgd_parts:  # a bias that is None
            return self._parameters.get(name)
        if torch.compiler.is_compiling() or is_jit_tracing() or under_functorch():
            with torch.no_grad():
                return self._tgd_full(name)
        frozen, written = self._buffers.get(f"_tgd_frozen_{name}"), self._tgd_written.get(name)
        # In evaluation mode a layer waits for what is asked here.
        if written and nothing_handed_out() and as_it_was(written, self._parameters.get(name), frozen):
            return frozen
        return self._tgd_full(name) if frozen is None else self._tgd_rewritten(name, frozen)

    @torch.no_grad()
    def _tgd_rewritten(self, name: str, frozen: Tensor) -> Tensor:
        """The whole parameter in its frozen part, after a look at all that can have changed."""
        trainable, written = self._tgd_rows(name), self._tgd_written.get(name)
        if written and as_it_was(written, trainable, frozen):
            return frozen
        # In functional_call this is a plain tensor, so the buffer must not be written.
        if not isinstance(trainable, nn.Parameter):
            full: Tensor = self._tgd_full(name)
            return full
        fill_(self._tgd_parts[name].rows, frozen, trainable, self._tgd_index_of(name))
        self._tgd_written[name] = state_of(trainable, frozen)
        return frozen

    def _tgd_whole_kept(self, name: str) -> tuple[Any, Kept | None]:
        """`_tgd_whole` for an op that keeps it for a backward, beside the trainable rows; no copy, if it can be.

        For autograd it has memory of its own: it does not count as changed when it is written anew. Where there is a
        `Kept`, the op has to ask that, and to put the weight together again from the rows if so.
        """
        if torch.compiler.is_compiling() or is_jit_tracing() or under_functorch():
            return self._tgd_full(name), None
        whole = self._tgd_whole(name)
        frozen = self._buffers.get(f"_tgd_frozen_{name}")
        if frozen is None or whole is not frozen:
            return whole, None
        return (self._tgd_full(name), None) if frozen.is_inference() else (frozen.data, Kept(frozen))

    def _tgd_stopped(self, x: Tensor) -> Tensor:
        """The input; detached if no gradient gets through the layer at all."""
        nothing = self._tgd_compaction.stops_gradient and not self._tgd_compaction.trainable
        return x.detach() if nothing else x

    def _tgd_masked(self, y: Tensor) -> Tensor:
        """The output of torch's own op, with the gradient of frozen channels stopped, if it is to be."""
        mask = None if is_traced() else self._tgd_index("mask")
        return y if mask is None else mask_gradient(y, mask, self._tgd_compaction.channel_axis)

    def _tgd_index_tensors(self) -> dict[str, Any]:
        """What the backward needs to know of the channels, on the CPU: `rows`, the trainable ones, and more.

        `mask` is there where the gradient of the frozen ones is to be stopped.
        """
        trainable = torch.tensor(self._tgd_compaction.mask)
        stops = self._tgd_compaction.stops_gradient and self._tgd_compaction.trainable
        return {"rows": trainable.nonzero().flatten(), "mask": trainable if stops else None}

    def _tgd_compact(
        self, compaction: Compaction, parts: dict[str, Part], known: Parts | None = None
    ) -> None:
        """Divide the parameters of what was a plain layer until now."""
        vars(self).update({"_tgd_compaction": compaction, "_tgd_written": {}})
        indices = {name: index for name, index in self._tgd_index_tensors().items() if index is not None}
        self._tgd_divide(parts, indices, known)

    def _tgd_unite(self, known: dict[str, nn.Parameter] | None = None) -> None:
        """Undo it."""
        super()._tgd_unite(known)
        del vars(self)["_tgd_compaction"], vars(self)["_tgd_written"]

    def train(self: CompactT, mode: bool = True) -> CompactT:
        """Set the mode; the next forward rebuilds the whole weight."""
        self._tgd_written.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tgd_written": {}}

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        share = f"{self._tgd_compaction.trainable}/{len(self._tgd_compaction.mask)} trainable"
        original = super().extra_repr()
        return f"{original}, {share}" if original else share
