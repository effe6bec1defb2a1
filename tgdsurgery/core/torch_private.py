"""Every name of torch that is not public, in one place: a new torch is checked against this file alone.

What torch keeps private as attributes of its public classes (`nn.Module._parameters`, say) cannot be listed here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx._symbolic_trace import is_fx_symbolic_tracing as is_fx_tracing
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY as PRESERVED
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvNd
from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import (
    keystr,
    tree_flatten,
    tree_leaves,
    tree_leaves_with_path,
    tree_map,
    tree_map_only,
)

__all__ = [
    "PRESERVED",
    "BatchNorm",
    "ConvNd",
    "ConvTransposeNd",
    "CustomOpDef",
    "InstanceNorm",
    "NormBase",
    "OpOverload",
    "OpOverloadPacket",
    "TorchDispatchMode",
    "check_batch_size",
    "default_store",
    "in_forward_mode",
    "is_fx_tracing",
    "is_held_elsewhere",
    "is_jit_tracing",
    "is_op",
    "is_traced",
    "keystr",
    "map_aggregate",
    "outside_of_onnx",
    "runs_hooks",
    "tree_flatten",
    "tree_leaves",
    "tree_leaves_with_path",
    "tree_map",
    "tree_map_only",
    "under_functorch",
    "under_vmap",
    "without_fused_backends",
    "without_torch_function",
    "without_torch_function_of_subclasses",
]

without_torch_function: Any = torch._C.DisableTorchFunction
without_torch_function_of_subclasses: Any = torch._C.DisableTorchFunctionSubclass


@contextlib.contextmanager
def without_fused_backends() -> Iterator[None]:
    """Keep torch off oneDNN and cuDNN, which run a whole recurrent layer as one op."""
    flags = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(flags[0])
        torch._C._set_cudnn_enabled(flags[1])


def under_functorch() -> bool:
    """Whether a transform of torch.func is running."""
    return bool(torch._C._are_functorch_transforms_active())


def is_held_elsewhere(tensor: Tensor) -> bool:
    """Whether other tensors have the same memory."""
    memory = tensor.untyped_storage()
    own = 2  # the tensor, and `memory`
    return bool(torch._C._storage_Use_Count(memory._cdata) > own)


def in_forward_mode() -> bool:
    """Whether derivatives are taken in forward mode: by torch.func.jvp, or of dual numbers."""
    return bool(torch.autograd.forward_ad._current_level >= 0)


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace, or the ONNX export that uses it, records what runs."""
    return torch._C._get_tracing_state() is not None


def is_traced() -> bool:
    """Whether torch.export, torch.jit.trace or the ONNX export records what runs, to run it elsewhere."""
    return torch.compiler.is_exporting() or is_jit_tracing()


@contextlib.contextmanager
def outside_of_onnx() -> Iterator[None]:
    """Not recorded by the ONNX export that traces: what is computed inside is a constant of the file."""
    state = torch._C._get_tracing_state() if torch.onnx.is_in_onnx_export() else None
    try:
        if state is not None:
            torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        yield
    finally:
        if state is not None:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def under_vmap() -> bool:
    """Whether a transform of torch.func that is running is vmap."""
    if torch.compiler.is_compiling() or not under_functorch():  # compilers do not know what is asked below
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


def is_op(name: str) -> bool:
    """Whether torch knows an op of this qualified name."""
    return bool(torch._C._jit_get_schemas_for_operator(name))


def check_batch_size(shape: torch.Size) -> None:
    """Raise torch's own error if batch norm cannot train on this shape."""
    nn.functional._verify_batch_size(shape)  # type: ignore[attr-defined]


def default_store() -> Any:
    """The key-value store of the default process group."""
    return distributed.distributed_c10d._get_default_store()


def runs_hooks(optimizer: Any) -> bool:
    """Whether the hooks for all optimizers run around this one's `step`; torch marks a class's `step` so."""
    return bool(getattr(type(optimizer).step, "hooked", False))
