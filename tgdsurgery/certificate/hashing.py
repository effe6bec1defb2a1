"""Files and their tensors by their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tgdsurgery.certificate.record import FileRecord, Role

CHUNK = 2**20  # bytes that are read at a time


def file_record(role: Role, path: Path, state: Mapping[str, Tensor] | None = None) -> FileRecord:
    """What a certificate says of a file, and of the tensors that it stands for."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return FileRecord(
        role, str(path), path.stat().st_size, digest.hexdigest(), None if state is None else _contents(state)
    )


def _contents(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
