"""Files of weights: read without ever running code from them, written whole or not at all."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.errors import CheckpointError

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")


SUPPORTED = f"Supported are .safetensors and {', '.join(TORCH_SUFFIXES)} (written by torch.save)."


WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and averaging wrappers; torch.compile


WEIGHT_WORDS = {"state", "dict", "model", "module", "net", "network", "ema", "weights", "params"}


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU and independent of the file.

    A state_dict nested in a whole checkpoint is found (`{"epoch": 3, "state_dict": {...}}`), and a
    prefix that wrappers put before every name (`module.`, `_orig_mod.`) is taken off. Nothing in the file is
    executed: a pickle that needs code is refused.

    Args:
        path: a .safetensors file, or a file written by `torch.save` (.pt, .pth, .ckpt, .bin, .tar).

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, would run code when loaded, or holds
            no tensors or several candidates for the state_dict.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "net.pt"
    >>> torch.save({"epoch": 3, "state_dict": {"module.conv.weight": torch.ones(4, 3, 3, 3)}}, file)
    >>> {name: tuple(tensor.shape) for name, tensor in read_state_dict(file).items()}
    {'conv.weight': (4, 3, 3, 3)}
    """
    path = Path(path)
    _check_readable(path)
    found = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    state = {name: value for name, value in _unwrap(found, path).items() if isinstance(value, Tensor)}
    return {name: tensor.detach().clone() for name, tensor in _without_wrapper_prefix(state).items()}


def write_state_dict(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Saves tensors by name; each is stored on its own, contiguous and on the CPU.

    Args:
        state: the tensors.
        path: the file, .safetensors or a suffix of `torch.save`; replaced only when all is written.

    Raises:
        CheckpointError: the suffix is not supported, or the file cannot be written.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "net.safetensors"
    >>> write_state_dict({"conv.weight": torch.ones(2, 1)}, file)
    >>> read_state_dict(file)
    {'conv.weight': tensor([[1.],
            [1.]])}
    """
    path = Path(path)
    _check_suffix(path)
    # A view would take its whole base along, and safetensors refuses shared memory.
    layout = torch.contiguous_format
    own = {name: value.detach().cpu().clone(memory_format=layout) for name, value in state.items()}
    with replacing(path) as temporary:
        try:
            if path.suffix.lower() == ".safetensors":
                safetensors.torch.save_file(own, temporary, metadata={"format": "pt"})
            else:
                torch.save(own, temporary)
        except (SafetensorError, RuntimeError, KeyError) as error:  # a full disk, a dtype safetensors lacks
            raise CheckpointError(
                f"{path} cannot be written: {error}.", "Check the disk, or save as .pt."
            ) from error


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory.", "Name the checkpoint file in it.")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.", "Check the path.")
    _check_suffix(path)
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}.", "Check its permissions."
        ) from error
    if empty:
        raise CheckpointError(f"{path} is empty.", "Copy or download it again.")


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in (".safetensors", *TORCH_SUFFIXES):
        raise CheckpointError(f"{path} has no suffix of a checkpoint.", SUPPORTED)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, cut off or no safetensors file.", "Copy or download it again."
        ) from error


def _read_torch(path: Path) -> Any:
    # Mapped into memory, an optimizer's state beside the weights is never read.
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript: the error says more
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except Exception as error:  # damage leads to any exception in torch.load, KeyError and EOFError too
        raise _load_error(path, error) from error


def _load_error(path: Path, error: Exception) -> CheckpointError:
    with path.open("rb") as file:
        start = file.read(4)
    if "TorchScript" in str(error):
        return CheckpointError(
            f"{path} is a TorchScript archive.",
            f"Save its weights: torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt').",
        )
    if start.startswith((b"PK", b"\x80")) and isinstance(error, pickle.UnpicklingError):
        return _code_error(path, error)
    if start.startswith(b"\x80") or (start.startswith(b"PK") and not zipfile.is_zipfile(path)):
        return CheckpointError(f"{path} is damaged or cut off.", "Copy or download it again.")
    return CheckpointError(f"{path} is not a checkpoint.", SUPPORTED)


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
    while True:
        inner = {
            key: value
            for key, value in _entries(found)
            if not isinstance(value, Tensor) and _holds_tensors(value)
        }
        if not inner:
            return found  # type: ignore[no-any-return]
        weights = [key for key in inner if set(key.lower().split("_")) <= WEIGHT_WORDS]
        candidates = weights or list(inner)
        if len(candidates) > 1:
            raise CheckpointError(
                f"{path} holds several sets of weights: {', '.join(candidates)}.",
                f"Save one: torch.save(torch.load({path.name!r})[{candidates[0]!r}], 'weights.pt').",
            )
        found = inner[candidates[0]]


def _holds_tensors(value: Any) -> bool:
    """Whether there are tensors under names alone; an optimizer's state is numbered and so does not count."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(entry, Tensor) or _holds_tensors(entry) for _, entry in _entries(value))
    )


def _entries(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries but a module's own extra state, which may nest tensors inside a state_dict."""
    return ((key, value) for key, value in found.items() if not key.endswith("_extra_state"))


def _without_wrapper_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_wrapper_prefix({name[len(prefix) :]: tensor for name, tensor in state.items()})
    return state
