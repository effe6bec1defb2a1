"""safetensors: one file, or several with an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from tgdsurgery.core.beside import beside
from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.reading import distinct
from tgdsurgery.core.tables import shortened
from tgdsurgery.storage.tensor_file import AGAIN, TensorFile, described

INDEX = ".safetensors.index.json"
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
}


def open_safetensors(path: Path) -> TensorFile:
    """A safetensors file, whose tensors are read one by one.

    Raises:
        CheckpointError: it is damaged.
    """
    check_header(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            names: list[str] = file.offset_keys() if hasattr(file, "offset_keys") else list(file.keys())
            tensors = {name: _described(file.get_slice(name), path, name) for name in names}
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged, cut off or not a safetensors file.", AGAIN) from error
    return TensorFile(path, tensors, lambda name: _read(path, name), path.stat().st_size)


def check_header(path: Path) -> None:
    """Refuse a file with a name twice: the library would take the last one without a word.

    Raises:
        CheckpointError: there is one, or the header is none.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            json.loads(file.read(length), object_pairs_hook=distinct)
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged, cut off or not a safetensors file ({error}).", AGAIN
        ) from error


def _described(entry: object, path: Path, name: str) -> Tensor:
    kind: str = entry.get_dtype()  # type: ignore[attr-defined]
    if kind not in DTYPES:
        raise CheckpointError(
            f"{path} holds {shortened(name)!r} of type {shortened(kind)}, which torch lacks here.",
            "Save it in another type.",
        )
    return described(tuple(entry.get_shape()), DTYPES[kind], path, name)  # type: ignore[attr-defined]


def _read(path: Path, name: str) -> Tensor:
    """Opened anew for each: what was mapped into memory for the last one is given back."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            found: Tensor = file.get_tensor(name)
            return found.clone()
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} was changed while it was read.", AGAIN) from error


def open_sharded(path: Path) -> TensorFile:
    """Several safetensors files, by their index.

    Raises:
        CheckpointError: the index is damaged, a file is missing or outside of the index's folder, or lacks a tensor.
    """
    places = _index(path)
    files = {shard: open_safetensors(_inside(path, shard)) for shard in dict.fromkeys(places.values())}
    for name, shard in places.items():
        if name not in files[shard].tensors:
            raise CheckpointError(
                f"{shortened(shard)} lacks {shortened(name)!r}, which {path} says it has.", AGAIN
            )
    read: Callable[[str], Tensor] = lambda name: files[places[name]].read(name)  # noqa: E731
    tensors = {name: files[shard].tensors[name] for name, shard in places.items()}
    return TensorFile(path, tensors, read, sum(file.size for file in files.values()))


def _index(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=distinct)["weight_map"]
        if not (
            isinstance(found, dict) and found and all(isinstance(shard, str) for shard in found.values())
        ):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, or no index of safetensors files.", AGAIN) from error
    return found


def _inside(path: Path, shard: str) -> Path:
    try:
        found = beside(path, shard)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{shortened(shard)}, which {path} names, is not there.", "Copy all of its files."
        ) from error
    if found is None:
        raise CheckpointError(
            f"{path} names {shortened(shard)}, which is outside of its folder.",
            "Put the index and its files into one folder; links that lead out of it are not followed.",
        )
    return found
