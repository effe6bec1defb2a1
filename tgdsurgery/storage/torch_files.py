"""Files of torch.save: a pickle of nothing but data, in a zip or by itself."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.tables import shortened
from tgdsurgery.storage.archives import is_zip
from tgdsurgery.storage.tensor_file import AGAIN, TensorFile

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
MAX_NESTING = 20  # mappings within mappings that are searched for weights
WEIGHT_WORDS = {"state", "dict", "model", "module", "net", "network", "ema", "weights", "params"}


def open_torch(path: Path, *, mapped: bool) -> TensorFile:
    """A state_dict in a file of torch.save, wherever it is nested.

    Args:
        path: the file.
        mapped: whether it is a zip, which is mapped into memory: a large file is not held twice.

    Raises:
        CheckpointError: it is damaged, or would run code, or holds no tensors by name or several sets of them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: the error says more
            found = torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except Exception as error:  # damage leads to any exception in torch.load, KeyError and EOFError too
        raise _load_error(path, error) from error
    state = {name: value for name, value in _unwrap(found, path).items() if isinstance(value, Tensor)}
    return of_tensors(state, path)


def of_tensors(state: Mapping[str, Tensor], path: Path) -> TensorFile:
    """Tensors that are in memory, or mapped into it, as those of a file."""
    distinct: dict[tuple[object, ...], Tensor] = {}
    tensors = {
        name: distinct.setdefault(_identity(tensor, path, name), tensor.detach().to("meta"))
        for name, tensor in state.items()
    }
    return TensorFile(path, tensors, lambda name: state[name].detach().clone(), path.stat().st_size)


def _identity(tensor: Tensor, path: Path, name: str) -> tuple[object, ...]:
    """Equal for tensors that look at the same entries in the same order."""
    packed = tensor.is_quantized or tensor.dtype == torch.float4_e2m1fn_x2
    if tensor.layout != torch.strided or tensor.is_nested or packed or tensor.device.type != "cpu":
        layout = "quantised" if packed else f"{tensor.layout}".removeprefix("torch.")
        kind = "on the meta device" if tensor.is_meta else layout
        raise CheckpointError(
            f"{path} holds {shortened(name)!r}, which is {kind} and has no plain entries.",
            "Save dense tensors: state_dict values after .to_dense() or .dequantize(), with the weights loaded.",
        )
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return (*place, tensor.shape, tensor.stride(), tensor.dtype)


def _load_error(path: Path, error: Exception) -> CheckpointError:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith((b"PK", b"\x80")) and isinstance(error, pickle.UnpicklingError):
        return _code_error(path, error)
    if start.startswith(b"\x80") or (start.startswith(b"PK") and not is_zip(path)):
        return CheckpointError(f"{path} is damaged or cut off.", AGAIN)
    return CheckpointError(f"{path} is not a checkpoint.", "Give a file that torch.save wrote.")


def _code_error(path: Path, error: Exception) -> CheckpointError:
    """The refusal of a pickle that names a class or function; the name is read, not imported."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return CheckpointError(
        f"{path} is a pickle with more than tensors in it{f' ({named[1]})' if named else ''}; "
        "loading it could run any code, so it was not loaded.",
        f"If you trust it, load it yourself once and save its weights alone: "
        f"torch.save(model.state_dict(), '{path.stem}-weights.pt').",
    )


def _unwrap(found: Any, path: Path) -> Mapping[str, Any]:
    """The state_dict in what was loaded: the mapping with tensors that holds no further such mapping."""
    if not _holds_tensors(found):
        raise CheckpointError(
            f"{path} holds no tensors by name.", "Save weights with torch.save(model.state_dict(), path)."
        )
    outer: tuple[int, ...] = ()
    while True:
        outer = (*outer, id(found))
        inner = {
            key: value
            for key, value in _entries(found)
            if not isinstance(value, Tensor) and _holds_tensors(value, outer)
        }
        if not inner:
            return found  # type: ignore[no-any-return]
        weights = [key for key in inner if set(key.lower().split("_")) <= WEIGHT_WORDS]
        candidates = weights or list(inner)
        if len(candidates) > 1:
            shown = [shortened(name) for name in candidates[:5]]
            raise CheckpointError(
                f"{path} holds several sets of weights: {', '.join(shown)}.",
                f"Save one: torch.save(torch.load({path.name!r})[{shown[0]!r}], 'weights.pt').",
            )
        found = inner[candidates[0]]


def _holds_tensors(value: Any, inside: tuple[int, ...] = ()) -> bool:
    """Whether there are tensors under names alone; an optimizer's state is numbered and so does not count.

    Args:
        value: anything that a checkpoint can hold.
        inside: the mappings around it, by id: one that holds itself is not searched twice.
    """
    if not isinstance(value, Mapping) or id(value) in inside or len(inside) > MAX_NESTING:
        return False
    around = (*inside, id(value))
    return all(isinstance(key, str) for key in value) and any(
        isinstance(entry, Tensor) or _holds_tensors(entry, around) for _, entry in _entries(value)
    )


def _entries(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries but a module's own extra state, which may nest tensors inside a state_dict."""
    return ((key, value) for key, value in found.items() if not key.endswith("_extra_state"))
