"""Ops that only move elements: run on the labels themselves, so that any order of channels comes out right.

Views need no rule at all: they are run on the labels and go on sharing their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tgdsurgery.core.torch_private import tree_map_only
from tgdsurgery.mapping.labels import EMPTY
from tgdsurgery.mapping.rules.call import Call, Traced
from tgdsurgery.mapping.rules.registry import is_known, mix_all, rule_for, run_on_labels, tensors

_INDICES = {"index", "indices", "mask"}  # what the arguments are called that say where


rule_for(
    *("cat", "stack", "roll", "flip", "rot90", "repeat", "_reshape_copy", "unfold_copy"),
    *(
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "im2col",
        "tril",
        "triu",
    ),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "block_diag", "diag_embed"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d", "unsafe_split", "unsafe_chunk"),
    *(
        "slice_scatter",
        "select_scatter",
        "diagonal_scatter",
        "split_with_sizes_copy",
        "unsafe_split_with_sizes",
    ),
)(run_on_labels)


@rule_for("_unsafe_view")
def reshape(call: Call, tensor: Traced, size: Sequence[int]) -> Tensor:
    """A reshape that owns its memory."""
    return tensor.labels.reshape(call.shape)


@rule_for("constant_pad_nd")
def pad(call: Call, tensor: Traced, padding: Sequence[int], value: float = 0) -> Tensor:
    """Padding is written by nobody."""
    return torch.nn.functional.pad(tensor.labels, list(padding))


@rule_for("index", "_unsafe_index", "index_select", "gather", "take", "embedding", "masked_select")
@rule_for("index_put", "_index_put_impl", "scatter", "index_copy", "index_fill", "masked_scatter")
def look_up(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Fixed indices are followed exactly; where the input decides, any element may come out anywhere."""
    names = [argument.name for argument in call.op._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    indices = [tensor for name in _INDICES for tensor in tensors(given.get(name))]
    if not all(is_known(index) for index in indices):
        return mix_all(call, *args, **kwargs)
    if given.get("accumulate"):
        return _gathered(call, given["self"], given["values"], lambda at: at[_whole(given["indices"])])
    if given.get("reduce"):
        source = given["src"] if "src" in given else given["value"]
        return _gathered(
            call, given["self"], source, lambda at: at.gather(given["dim"], given["index"].value)
        )
    for name in _INDICES & given.keys():
        given[name] = tree_map_only(Traced, lambda index: index.value, given[name])
    if "value" in given and not isinstance(given["value"], Traced):  # a number is written by nobody
        given["value"] = EMPTY
    return run_on_labels(call, **given)


def _whole(indices: Sequence[Traced | None]) -> tuple[Any, ...]:
    return tuple(slice(None) if index is None else index.value for index in indices)


@rule_for("index_add", "index_reduce")
def add_slices(
    call: Call, tensor: Traced, dim: int, index: Traced, source: Traced, *args: Any, **kwargs: Any
) -> Tensor:
    """Slices of the source are added to those of the tensor that the index names."""
    if index.value is None or not is_known(index):
        return mix_all(call, tensor, index, source)
    places = index.value
    return _gathered(call, tensor, source, lambda at: at.index_select(dim, places), **kwargs)


@rule_for("scatter_add", "scatter_reduce")
def add_elements(
    call: Call, tensor: Traced, dim: int, index: Traced, source: Traced, *args: Any, **kwargs: Any
) -> Tensor:
    """Elements of the source are added to those of the tensor that the index names."""
    if index.value is None or not is_known(index):
        return mix_all(call, tensor, index, source)
    places = index.value
    return _gathered(call, tensor, source, lambda at: at.gather(dim, places), **kwargs)


def _gathered(
    call: Call,
    tensor: Traced,
    source: Traced | float,
    pick: Callable[[Tensor], Tensor],
    include_self: bool = True,
    **kwargs: Any,
) -> Tensor:
    """Every element of the tensor united with what arrives there; `pick` takes from the tensor as the op adds to it."""
    labels = tensor.labels.reshape(-1).clone()
    places = pick(torch.arange(len(labels)).view(tensor.shape))
    if not include_self:
        labels[places] = EMPTY
    if not isinstance(source, Traced):  # a number is written by nobody
        return labels.view(tensor.shape)
    there = source.labels if source.labels.dim() == places.dim() else source.labels.expand(places.shape)
    arriving = there[tuple(slice(size) for size in places.shape)].expand(places.shape).reshape(-1)
    places, order = places.reshape(-1).sort(stable=True)
    arriving = arriving[order]
    while len(places):  # of those that arrive at one place, every second is united with the one before
        first = torch.ones(len(places), dtype=torch.bool)
        first[1:] = places[1:] != places[:-1]
        starts = first.nonzero().flatten()
        if len(starts) == len(places):
            break
        rank = torch.arange(len(places)) - starts[first.cumsum(0) - 1]
        odd = (rank % 2 == 1).nonzero().flatten()
        arriving[odd - 1] = call.table.union(arriving[odd - 1], arriving[odd])
        kept = rank % 2 == 0
        places, arriving = places[kept], arriving[kept]
    labels[places] = call.table.union(labels[places], arriving)
    return labels.view(tensor.shape)


# What comes out are indices, which the repeats decide.
rule_for("repeat_interleave")(mix_all)
