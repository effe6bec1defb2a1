"""Archives of torch.export: the weights beside the program, which is not run."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.tables import shortened
from tgdsurgery.storage.tensor_file import AGAIN, TensorFile, described
from tgdsurgery.storage.torch_files import of_tensors

CONFIG = "_weights_config.json"
# Numbers of torch's types in the archive, as torch._export.serde.schema.ScalarType has them.
DTYPES = {
    **{1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16},
    **{7: torch.float32, 8: torch.float64, 10: torch.complex64, 11: torch.complex128, 12: torch.bool},
    **{13: torch.bfloat16, 28: torch.uint16, 29: torch.float8_e4m3fn, 30: torch.float8_e5m2},
    **{34: torch.uint32, 35: torch.uint64},
}
OLD_STATE = "serialized_state_dict.pt"  # before torch 2.9
RESAVE = "Save its weights: torch.save(torch.export.load({name!r}).state_dict, 'weights.pt')."


def open_pt2(path: Path, names: list[str]) -> TensorFile:
    """The state_dict of a program in an archive of torch.export.

    Args:
        path: the archive.
        names: its members.

    Raises:
        CheckpointError: it is damaged, holds no weights or those of several programs, or they would run code.
    """
    if (old := [name for name in names if name.rpartition("/")[2] == OLD_STATE]) != []:
        return of_tensors(_load(_member(path, old[0]), path), path)
    configs = [name for name in names if name.endswith(CONFIG)]
    if len(configs) != 1:
        what = "several programs" if configs else "no weights, only compiled code"
        raise CheckpointError(f"{path} holds {what}.", RESAVE.format(name=path.name))
    folder = configs[0].rpartition("/")[0]
    try:
        if any(name.endswith("byteorder") and _member(path, name) != b"little" for name in names):
            raise ValueError("byte order")
        stored = json.loads(_member(path, configs[0]))["config"]
        entries = {name: _Entry(path, folder, name, entry) for name, entry in stored.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged, or of a version of torch that is not known.", AGAIN
        ) from error
    if not entries:
        raise CheckpointError(f"{path} holds no tensors by name.", RESAVE.format(name=path.name))
    distinct: dict[object, Tensor] = {}
    tensors = {name: distinct.setdefault(entry.key, entry.described()) for name, entry in entries.items()}
    return TensorFile(path, tensors, lambda name: entries[name].read(), path.stat().st_size)


class _Entry:
    """One tensor: its place in the archive, and how it looks at what is there."""

    def __init__(self, path: Path, folder: str, name: str, entry: Mapping[str, Any]) -> None:
        meta = entry["tensor_meta"]
        self.path, self.name = path, name
        self.member = f"{folder}/{entry['path_name']}"
        self.pickled = bool(entry["use_pickle"])
        self.dtype = DTYPES[meta["dtype"]]
        self.shape, self.strides = _numbers(meta["sizes"]), _numbers(meta["strides"])
        (self.offset,) = _numbers([meta["storage_offset"]])
        if len(self.shape) != len(self.strides):
            raise ValueError
        self.key = (self.member, self.dtype, self.shape, self.strides, self.offset)

    def described(self) -> Tensor:
        return described(self.shape, self.dtype, self.path, self.name)

    def read(self) -> Tensor:
        content = _member(self.path, self.member)
        if self.pickled:
            found = _load(content, self.path)
            if not isinstance(found, Tensor) or found.shape != self.shape or found.layout != torch.strided:
                raise self._damaged()
            return found.detach().clone()
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        needed = self.offset + last + 1 if math.prod(self.shape) else 0
        if needed * self.dtype.itemsize > len(content):
            raise self._damaged()
        if not needed:
            return torch.empty(self.shape, dtype=self.dtype)
        whole = torch.frombuffer(bytearray(content[: needed * self.dtype.itemsize]), dtype=self.dtype)
        return whole.as_strided(self.shape, self.strides, self.offset).clone()

    def _damaged(self) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is damaged: {shortened(self.name)!r} does not have the entries that it claims.",
            AGAIN,
        )


def _numbers(entries: Any) -> tuple[int, ...]:
    found = tuple(entry["as_int"] for entry in entries)
    if not all(isinstance(number, int) and 0 <= number < 2**62 for number in found):
        raise ValueError
    return found


def _member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: {shortened(name)} is missing.", AGAIN) from error


def _load(content: bytes, path: Path) -> Any:
    try:
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        raise CheckpointError(
            f"{path} keeps weights in a pickle that would run code, or is damaged; they were not loaded.",
            RESAVE.format(name=path.name),
        ) from error
