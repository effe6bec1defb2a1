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
from tgdsurgery.core.tables import shortened

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
SUPPORTED = f"Supported are .safetensors and {', '.join(TORCH_SUFFIXES)} (written by torch.save)."
MAX_EXPANSION = 8  # times its own size that a file may take in memory: names that share tensors are normal
SMALL_CLAIM = 2**26  # bytes that any file may take
MAX_NESTING = 20  # mappings within mappings that are searched for weights
CHUNK = 2**20  # bytes that are read at a time
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and averaging wrappers; torch.compile
WEIGHT_WORDS = {"state", "dict", "model", "module", "net", "network", "ema", "weights", "params"}


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU and independent of the file.

    A state_dict nested in a whole checkpoint is found (`{"epoch": 3, "state_dict": {...}}`), and a
    prefix that wrappers put before every name (`module.`, `_orig_mod.`) is taken off. Nothing in the file is
    executed: a pickle that needs code is refused. Two names of one tensor share their memory here too.

    Args:
        path: a .safetensors file, or a file written by `torch.save` (.pt, .pth, .ckpt, .bin, .tar).

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, would run code when loaded, holds
            no tensors or several candidates for the state_dict, or claims far more memory than its size.

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
    return _without_wrapper_prefix(_copied(state, path))


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


def _copied(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Copies of the tensors, one for all names of the same tensor.

    A tensor can claim more entries than are stored, and many tensors can look at the same memory: a small file
    must not fill the machine.
    """
    distinct = {name: _identity(tensor, path, name) for name, tensor in state.items()}
    sizes = {distinct[name]: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    _check_claim(sum(sizes.values()), path, "weights")
    copies = {distinct[name]: tensor.detach().clone() for name, tensor in state.items()}
    return {name: copies[distinct[name]] for name in state}


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


def _check_claim(claimed: int, path: Path, what: str) -> None:
    """Refuse a file that would take far more memory than its size says."""
    size = path.stat().st_size
    if claimed > MAX_EXPANSION * size + SMALL_CLAIM:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and claims {claimed:,} bytes of {what}.",
            "Save the weights without expanded views: {name: tensor.clone() for name, tensor in ...}.",
        )


def _check_readable(path: Path) -> None:
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a directory.", "Name the checkpoint file in it.")
        if not path.exists():
            raise CheckpointError(f"{path} does not exist.", "Check the path.")
        _check_suffix(path)
        with path.open("rb") as file:
            empty = not file.read(1)
    except (OSError, ValueError) as error:  # a name that is too long, or that has a NUL in it
        raise CheckpointError(
            f"{shortened(str(path))} cannot be read: {getattr(error, 'strerror', None) or error}.",
            "Check its name and its permissions.",
        ) from error
    if empty:
        raise CheckpointError(f"{path} is empty.", "Copy or download it again.")


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in (".safetensors", *TORCH_SUFFIXES):
        raise CheckpointError(f"{path} does not have the suffix of a checkpoint.", SUPPORTED)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, cut off or not a safetensors file.", "Copy or download it again."
        ) from error


def _read_torch(path: Path) -> Any:
    mapped = _is_zip(path)
    if mapped:
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript: the error says more
            # Mapped into memory, so that a large file is not held twice.
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except Exception as error:  # damage leads to any exception in torch.load, KeyError and EOFError too
        raise _load_error(path, error) from error


def _is_zip(path: Path) -> bool:
    """Whether it ends like a zip; whether it is whole, `_check_archive` says."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one of several parts, by its end
        return True


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to far more than its size, or whose checksums say that it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_claim(sum(member.file_size for member in members), path, "data")
            # torch writes a checksum of 0 where it was told to compute none.
            damaged = any(member.CRC and not _is_whole(archive, member) for member in members)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises anything on a damaged directory
        raise CheckpointError(f"{path} is damaged or cut off.", "Copy or download it again.") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: a checksum is wrong.", "Copy or download it again.")


def _is_whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as file:
            while file.read(CHUNK):
                pass
    except zipfile.BadZipFile:
        return False
    return True


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
    if start.startswith(b"\x80") or (start.startswith(b"PK") and not _is_zip(path)):
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


def _without_wrapper_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_wrapper_prefix({name[len(prefix) :]: tensor for name, tensor in state.items()})
    return state
