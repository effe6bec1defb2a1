"""Resize and Upsample: where each output entry looks in the input, in all of ONNX's ways of counting.

What torch's `interpolate` does in the same way is left to it; other ways are gathered and mixed axis by axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tgdsurgery.onnx_graph.ops.registry import op

Sizes = Sequence[int]
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
ROUNDED: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


def _place(index: int, scale: float, out: int, size: int, mode: str) -> float:
    """Where output entry `index` is, in entries of the input."""
    if mode == "align_corners":
        return index * (size - 1) / (out - 1) if out > 1 else 0.0
    if mode == "asymmetric":
        return index / scale
    if mode == "pytorch_half_pixel" and out == 1:
        return 0.0
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - out / (scale * size)) + (index + 0.5) / scale - 0.5
    return (index + 0.5) / scale - 0.5


@op("Upsample", host=("scales",))
def upsample(x: Tensor, scales: Sequence[float], *, mode: str = "nearest") -> Tensor:
    """Larger by factors: what Resize replaced."""
    return resize(
        x, scales=scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


@op("Resize", host=("roi", "scales", "sizes"))
def resize(
    x: Tensor,
    roi: object = None,
    scales: Sequence[float] | None = None,
    sizes: Sizes | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    antialias: int = 0,
    axes: Sizes | None = None,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    """Other sizes of space."""
    way = coordinate_transformation_mode
    if way == "tf_crop_and_resize" or exclude_outside or keep_aspect_ratio_policy != "stretch":
        raise NotImplementedError("tf_crop_and_resize, exclude_outside or an aspect ratio")
    factors, wanted = _targets(x, scales, sizes, axes)
    if any(wanted[axis] != x.shape[axis] for axis in range(min(2, x.dim()))):
        raise NotImplementedError("resizing of the batch or the channels")
    space = [axis for axis in range(2, x.dim()) if wanted[axis] != x.shape[axis]]
    if not space:
        return x
    if (found := _by_torch(x, mode, way, nearest_mode, factors, wanted, bool(antialias))) is not None:
        return found
    if mode == "cubic" or antialias:
        raise NotImplementedError(f"mode={mode!r} with {way!r}")
    for axis in space:
        places = [_place(i, factors[axis], wanted[axis], x.shape[axis], way) for i in range(wanted[axis])]
        x = _nearest(x, axis, places, nearest_mode) if mode == "nearest" else _linear(x, axis, places)
    return x


def _targets(
    x: Tensor, scales: Sequence[float] | None, sizes: Sizes | None, axes: Sizes | None
) -> tuple[list[float], list[int]]:
    """Factor and size of every axis."""
    axes = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    factors, wanted = [1.0] * x.dim(), list(x.shape)
    for place, axis in enumerate(axes):
        if sizes is not None and len(sizes):
            wanted[axis] = sizes[place]
            factors[axis] = sizes[place] / x.shape[axis]
        elif scales is not None:
            factors[axis] = scales[place]
            wanted[axis] = math.floor(x.shape[axis] * scales[place])
    return factors, wanted


def _by_torch(
    x: Tensor,
    mode: str,
    way: str,
    nearest_mode: str,
    factors: list[float],
    wanted: list[int],
    antialias: bool,
) -> Tensor | None:
    """By torch's function if it does the same."""
    sizes, whole = wanted[2:], all(factor == int(factor) for factor in factors)
    if mode == "nearest":
        # Larger by whole numbers: all of them repeat each entry.
        same = (way, nearest_mode) == ("asymmetric", "floor") or (
            whole and way != "align_corners" and "round" in nearest_mode and way != "asymmetric"
        )
        return F.interpolate(x, sizes) if same and (whole or _exact(x, factors, wanted)) else None
    aligned = way == "align_corners"
    if not (aligned or way in ("half_pixel", "pytorch_half_pixel")) or not _exact(x, factors, wanted):
        return None
    if way == "pytorch_half_pixel" and 1 in sizes and mode != "cubic":
        return None
    kind = "bicubic" if mode == "cubic" else LINEAR.get(len(sizes))
    if kind is None or (kind == "bicubic" and len(sizes) != 2):
        return None
    return F.interpolate(x, sizes, mode=kind, align_corners=aligned, antialias=antialias)


def _exact(x: Tensor, factors: list[float], wanted: list[int]) -> bool:
    """Whether the factors are those of the sizes, as torch has it."""
    return all(
        math.isclose(factor * size, out, rel_tol=1e-6)
        for factor, size, out in zip(factors, x.shape, wanted, strict=True)
    )


def _nearest(x: Tensor, axis: int, places: list[float], nearest_mode: str) -> Tensor:
    last = x.shape[axis] - 1
    chosen = [min(max(ROUNDED[nearest_mode](place), 0), last) for place in places]
    return x.index_select(axis, torch.tensor(chosen, device=x.device))


def _linear(x: Tensor, axis: int, places: list[float]) -> Tensor:
    last = x.shape[axis] - 1
    inside = [min(max(place, 0.0), float(last)) for place in places]
    lower = [math.floor(place) for place in inside]
    upper = [min(place + 1, last) for place in lower]
    shape = [-1 if d == axis else 1 for d in range(x.dim())]
    share = torch.tensor(
        [p - low for p, low in zip(inside, lower, strict=True)], dtype=x.dtype, device=x.device
    )
    share = share.view(shape)
    first = x.index_select(axis, torch.tensor(lower, device=x.device))
    second = x.index_select(axis, torch.tensor(upper, device=x.device))
    return first * (1 - share) + second * share
