"""The tensors that the modules of a model keep between calls: buffers, and attributes such as cached features."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from tgdsurgery.core.norm_statistics import STATISTICS
from tgdsurgery.core.torch_private import keystr, tree_leaves_with_path

_PLAIN = (int, float, bool, str, type(None))
_NOT_STATE = frozenset(vars(nn.Module()))  # parameters, modules, hooks; buffers are looked at by name


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that a module keeps, but for parameters and norm statistics, by where it is.

    >>> net = nn.Sequential(nn.Flatten())
    >>> net[0].seen = [Tensor([1.0])]
    >>> list(state_of(net))
    ["module '0', attribute seen[0]"]
    """
    found = {}
    for name, module in model.named_modules():
        for buffer, value in module._buffers.items():
            if buffer not in STATISTICS:
                found[f"module {name!r}, buffer {buffer}"] = value
        for attribute, value in vars(module).items():
            if attribute not in _NOT_STATE and _may_hold(value):
                leaves = tree_leaves_with_path(value)
                found |= {
                    f"module {name!r}, attribute {attribute}{keystr(path)}": leaf for path, leaf in leaves
                }
    return {place: value for place, value in found.items() if _is_memory(value)}


def _may_hold(value: object) -> bool:
    """Most containers are the sizes of kernels and strides: a look at them spares the walk."""
    if isinstance(value, (dict, list, tuple, deque)):
        parts = value.values() if isinstance(value, dict) else value
        return any(type(part) not in _PLAIN for part in parts)
    return isinstance(value, Tensor)


def _is_memory(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def statistics_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The running statistics of norms, by name."""
    return [(n, buffer) for n, buffer in model.named_buffers() if n.rpartition(".")[2] in STATISTICS]
