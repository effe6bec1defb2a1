"""Arrays from files that others may have damaged."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format
from numpy.typing import NDArray


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file as `np.savez` writes it: none is larger than what is stored of it.

    Whatever is wrong with the file raises what numpy and zipfile raise. Nothing in it is run.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it holds more than its size")
        return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}


def _array(content: bytes) -> NDArray[Any]:
    """An array from the bytes of an `.npy` file; `np.load` would make room for whatever its header claims."""
    file = io.BytesIO(content)
    if format.read_magic(file) != (1, 0):
        raise ValueError("its arrays are of another version")
    shape, fortran, dtype = format.read_array_header_1_0(file)
    values = np.frombuffer(bytearray(content[file.tell() :]), dtype)
    return values.reshape(shape, order="F" if fortran else "C")
