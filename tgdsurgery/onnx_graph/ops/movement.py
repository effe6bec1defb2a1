"""Entries moved, repeated, cut and put together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tgdsurgery.onnx_graph.ops.registry import one, op

Sizes = Sequence[int]


@op("Reshape", host=("shape",))
def reshape(x: Tensor, shape: Sizes, *, allowzero: int = 0) -> Tensor:
    """Other sizes; 0 keeps the size of that axis."""
    kept = (
        x.shape[axis] if isinstance(size, int) and size == 0 and not allowzero else size
        for axis, size in enumerate(shape)
    )
    return x.reshape(tuple(kept))


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Two axes: those before `axis`, and the others."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(1, -1) if axis == 0 else x.reshape(*[math.prod(x.shape[:axis])], -1)


@op("Transpose")
def transpose(x: Tensor, *, perm: Sizes | None = None) -> Tensor:
    """Axes in another order, reversed by default."""
    return x.permute(*(perm if perm is not None else reversed(range(x.dim()))))


@op("Squeeze", host=("axes",))
def squeeze(x: Tensor, axes: Sizes | None = None) -> Tensor:
    """Without axes of one entry."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@op("Unsqueeze", host=("axes",))
def unsqueeze(x: Tensor, axes: Sizes) -> Tensor:
    """With axes of one entry, at places of the result."""
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op("Concat")
def concat(*values: Tensor, axis: int) -> Tensor:
    """Side by side along an axis."""
    return torch.cat(values, axis)


@op("Split", host=("split",), several=True)
def split(
    x: Tensor, split: Sizes | None = None, *, axis: int = 0, num_outputs: int = 0, outputs: int
) -> tuple[Tensor, ...]:
    """Cut along an axis, into parts of given sizes or as equal as they can be, the last one smaller."""
    size = -(-x.shape[axis] // outputs)
    return tuple(x.split(size if split is None else list(split), axis))


@op("Slice", host=("starts", "ends", "axes", "steps"))
def slice_(
    x: Tensor, starts: Sizes, ends: Sizes, axes: Sizes | None = None, steps: Sizes | None = None
) -> Tensor:
    """Ranges of some axes; a negative step runs backwards."""
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(start, end, step),)]
        else:
            size = x.shape[axis]
            chosen = range(*slice(start, end, step).indices(size))
            first = size - 1 - chosen.start
            x = x.flip(axis)[
                (slice(None),) * (axis % x.dim()) + (slice(first, first - len(chosen) * step, -step),)
            ]
    return x


@op("Gather", soft=("indices",))
def gather(x: Tensor, indices: Tensor | int, *, axis: int = 0) -> Tensor:
    """Entries of an axis, by their numbers; negative ones count from the end."""
    if not isinstance(indices, Tensor):
        return x.select(axis, indices)
    return x[(slice(None),) * (axis % x.dim()) + (indices.long(),)]


@op("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Entries of an axis, by a number for each entry of the result."""
    indices = indices.long()
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@op("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Parts by their place in the first axes."""
    if batch_dims:
        raise NotImplementedError("batch_dims")
    return x[tuple(indices.long().unbind(-1))]


@op("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy with parts replaced, by their place in the first axes."""
    if reduction not in ("none", "add"):
        raise NotImplementedError(f"reduction={reduction!r}")
    return x.index_put(tuple(indices.long().unbind(-1)), updates, accumulate=reduction == "add")


@op("ScatterElements")
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """A copy with entries replaced, by a number for each along an axis."""
    if reduction != "none":
        raise NotImplementedError(f"reduction={reduction!r}")
    indices = indices.long()
    return x.scatter(axis, torch.where(indices < 0, indices + x.shape[axis], indices), updates)


@op("Expand", host=("shape",))
def expand(x: Tensor, shape: Sizes) -> Tensor:
    """Broadcast; where the shape says 1 the tensor's own size stays."""
    missing = max(len(shape) - x.dim(), 0)
    own = [1] * missing + list(x.shape)
    wanted = [1] * (len(own) - len(shape)) + list(shape)
    return x.expand([size if size != 1 else mine for size, mine in zip(wanted, own, strict=True)])


@op("Tile", host=("repeats",))
def tile(x: Tensor, repeats: Sizes) -> Tensor:
    """Repeated along its axes."""
    return x.repeat(*repeats)


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels become pixels; in the order "CRD" as torch's pixel_shuffle."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, blocksize, blocksize, channels // blocksize**2, height, width)
    x = x.permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // blocksize**2, height * blocksize, width * blocksize)


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    """Pixels become channels, the places within a block first."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(
        batch, channels * blocksize**2, height // blocksize, width // blocksize
    )


@op("Trilu", host=("k",))
def trilu(x: Tensor, k: int | Sizes | None = None, *, upper: int = 1) -> Tensor:
    """One triangle of matrices, zero elsewhere."""
    return torch.triu(x, one(k or 0)) if upper else torch.tril(x, one(k or 0))


PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@op("Pad", host=("pads", "axes"), soft=("constant_value",))
def pad(
    x: Tensor,
    pads: Sizes,
    constant_value: float | None = None,
    axes: Sizes | None = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
) -> Tensor:
    """Entries added at both ends of axes, or cut off where there are less than none."""
    axes = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    ends = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if mode == "constant":
        amounts = [amount for axis in reversed(range(x.dim())) for amount in ends.get(axis, (0, 0))]
        return F.pad(x, amounts, value=value if constant_value is None else float(constant_value))
    for axis, both in ends.items():
        if tuple(both) != (0, 0):
            x = _pad_axis(x, axis, both, PAD_MODES[mode])
    return x


def _pad_axis(x: Tensor, axis: int, both: tuple[int, int], mode: str) -> Tensor:
    """As the last axis of three: torch pads no others by their own entries."""
    moved = x.movedim(axis, -1)
    flat = moved.reshape(1, -1, moved.shape[-1]) if moved.dim() > 1 else moved[None, None]
    return F.pad(flat, both, mode=mode).reshape(*moved.shape[:-1], -1).movedim(-1, axis)


@op("ConstantOfShape", host=("shape",))
def constant_of_shape(
    shape: Sizes, *, like: Tensor, value: float = 0.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The same number everywhere."""
    return torch.full(tuple(shape), value, dtype=dtype, device=like.device)


@op("Range", host=("start", "limit", "delta"))
def range_(start: float, limit: float, delta: float, *, like: Tensor) -> Tensor:
    """Numbers from `start` up to `limit`, in steps."""
    return torch.arange(start, limit, delta, device=like.device)


@op("OneHot", host=("depth",))
def one_hot(indices: Tensor, depth: int | Sizes, values: Tensor, *, axis: int = -1) -> Tensor:
    """`values[1]` at the place that an index says, `values[0]` elsewhere."""
    size, rank = one(depth), indices.dim() + 1
    places = torch.arange(size, device=indices.device)
    places = places.view([-1 if d == axis % rank else 1 for d in range(rank)])
    return torch.where((indices % size).unsqueeze(axis) == places, values[1], values[0])


@op("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of a constant."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@op("Size")
def size(x: Tensor) -> Tensor:
    """The number of entries of a constant."""
    return torch.tensor(x.numel())


@op("SplitToSequence", host=("split",))
def split_to_sequence(
    x: Tensor, split: int | Sizes | None = None, *, axis: int = 0, keepdims: int = 1
) -> tuple[Tensor, ...]:
    """Cut along an axis, as one value; into single entries by default."""
    if split is not None:
        return tuple(x.split(split if isinstance(split, int) else list(split), axis))
    return tuple(x.split(1, axis) if keepdims else x.unbind(axis))


@op("SequenceConstruct")
def sequence(*values: Tensor) -> tuple[Tensor, ...]:
    """Several tensors as one value."""
    return values


@op("SequenceAt", host=("position",))
def sequence_at(values: tuple[Tensor, ...], position: int | Sizes) -> Tensor:
    """One of them."""
    return values[one(position)]


@op("ConcatFromSequence")
def concat_from_sequence(values: tuple[Tensor, ...], *, axis: int, new_axis: int = 0) -> Tensor:
    """Side by side along an axis, or along a new one."""
    return torch.stack(values, axis) if new_axis else torch.cat(values, axis)
