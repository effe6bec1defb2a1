"""Ops that only move elements: run on the labels themselves, so that any order of channels comes out right.

Views need no rule at all: they are run on the labels and go on sharing their memory.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    accumulates = given.get("accumulate") or given.get("reduce")
    if accumulates or not all(is_known(index) for index in indices):
        return mix_all(call, *args, **kwargs)
    for name in _INDICES & given.keys():
        given[name] = tree_map_only(Traced, lambda index: index.value, given[name])
    if "value" in given and not isinstance(given["value"], Traced):  # a number is written by nobody
        given["value"] = EMPTY
    return run_on_labels(call, **given)


# What comes out are indices, which the repeats decide.
rule_for("repeat_interleave")(mix_all)
