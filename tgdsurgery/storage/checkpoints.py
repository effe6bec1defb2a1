"""Files of weights: read without ever running code from them, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.tables import shortened
from tgdsurgery.storage.archives import checked_names, is_torchscript, is_zip
from tgdsurgery.storage.pt2_files import open_pt2
from tgdsurgery.storage.safetensors_files import INDEX, open_safetensors, open_sharded
from tgdsurgery.storage.tensor_file import TensorFile, check_claim
from tgdsurgery.storage.torch_files import TORCH_SUFFIXES, open_torch

WRITTEN = (".safetensors", *TORCH_SUFFIXES)
READ = (*WRITTEN, ".pt2", ".onnx")
SUPPORTED = f"Supported are {', '.join(READ)} and {INDEX.removeprefix('.')}."
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and averaging wrappers; torch.compile


def open_tensors(path: str | Path) -> TensorFile:
    """A checkpoint whose tensors are read one at a time, where the format can do that: all but old files of torch.

    Args:
        path: as for `read_state_dict`.

    Raises:
        CheckpointError: as `read_state_dict`.
    """
    path = Path(path)
    check_readable(path)
    file = _opened(path)
    entries = {id(tensor): tensor.nbytes for tensor in file.tensors.values()}
    check_claim(sum(entries.values()), path, "weights", file.size)
    return _without_wrapper_prefix(file)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU and independent of the file.

    A state_dict nested in a whole checkpoint is found (`{"epoch": 3, "state_dict": {...}}`), and a
    prefix that wrappers put before every name (`module.`, `_orig_mod.`) is taken off. Nothing in the file is
    executed: a pickle that needs code is refused, a program of torch.export or ONNX is not run. Two names of one
    tensor share their memory here too.

    Args:
        path: a .safetensors file, or the index of several (model.safetensors.index.json); a file written by
            `torch.save` (.pt, .pth, .ckpt, .bin, .tar) or `torch.export.save` (.pt2); an .onnx file, whose tensors
            have the names and the layout of torch's layers, as in the `state_dict` of `from_onnx`.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, would run code when loaded, holds
            no tensors or several candidates for the state_dict, or claims far more memory than its size.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "net.pt"
    >>> torch.save({"epoch": 3, "state_dict": {"module.conv.weight": torch.ones(4, 3, 3, 3)}}, file)
    >>> {name: tuple(tensor.shape) for name, tensor in read_state_dict(file).items()}
    {'conv.weight': (4, 3, 3, 3)}
    """
    file = open_tensors(path)
    read: dict[int, Tensor] = {}
    for name, tensor in file.tensors.items():
        if id(tensor) not in read:
            read[id(tensor)] = file.read(name)
    return {name: read[id(tensor)] for name, tensor in file.tensors.items()}


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
    _check_suffix(path, WRITTEN, f"Those that can be written are {', '.join(WRITTEN)}.")
    # A view would take its whole base along, and safetensors refuses shared memory.
    layout = torch.contiguous_format
    own = {name: value.detach().cpu().clone(memory_format=layout) for name, value in state.items()}
    with replacing(path) as temporary:
        try:
            if path.suffix.lower() == ".safetensors":
                safetensors.torch.save_file(own, temporary, metadata={"format": "pt"})
            else:
                with temporary.open("wb") as file:  # given a path, torch would write its name into the file
                    torch.save(own, file)
        except (SafetensorError, RuntimeError, KeyError) as error:  # a full disk, a dtype safetensors lacks
            raise CheckpointError(
                f"{path} cannot be written: {error}.", "Check the disk, or save as .pt."
            ) from error


def check_readable(path: Path) -> None:
    """Raise unless the file is there, can be read, and is not empty."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a directory.", "Name the checkpoint file in it.")
        if not path.exists():
            raise CheckpointError(f"{path} does not exist.", "Check the path.")
        with path.open("rb") as file:
            empty = not file.read(1)
    except (OSError, ValueError) as error:  # a name that is too long, or that has a NUL in it
        raise CheckpointError(
            f"{shortened(str(path))} cannot be read: {getattr(error, 'strerror', None) or error}.",
            "Check its name and its permissions.",
        ) from error
    if empty:
        raise CheckpointError(f"{path} is empty.", "Copy or download it again.")


def _opened(path: Path) -> TensorFile:
    name = path.name.lower()
    if name.endswith(INDEX):
        return open_sharded(path)
    if name.endswith(".safetensors"):
        return open_safetensors(path)
    if name.endswith(".onnx"):
        # The onnx package is slow to import, and most do without.
        from tgdsurgery.storage.onnx_files import open_onnx  # noqa: PLC0415

        return open_onnx(path)
    return _of_torch(path)


def _of_torch(path: Path) -> TensorFile:
    """By what it is, and not by its suffix."""
    zipped = is_zip(path)
    members = checked_names(path) if zipped else []
    inside = {name.partition("/")[2] for name in members}
    if is_torchscript(inside):
        raise CheckpointError(
            f"{path} is a TorchScript archive.",
            f"Save its weights: torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt').",
        )
    _check_suffix(path, READ, SUPPORTED)
    if path.suffix.lower() == ".pt2" or "archive_format" in inside:
        return open_pt2(path, members)
    return open_torch(path, mapped=zipped)


def _check_suffix(path: Path, suffixes: tuple[str, ...], remedy: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise CheckpointError(f"{path} does not have the suffix of a checkpoint.", remedy)


def _prefixed(file: TensorFile, prefix: str) -> Callable[[str], Tensor]:
    return lambda name: file.read(prefix + name)


def _without_wrapper_prefix(file: TensorFile) -> TensorFile:
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in file.tensors):
            shorter = {name[len(prefix) :]: tensor for name, tensor in file.tensors.items()}
            return _without_wrapper_prefix(replace(file, tensors=shorter, read=_prefixed(file, prefix)))
    return file
