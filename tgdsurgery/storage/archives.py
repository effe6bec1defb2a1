"""Zip archives of torch: whole, not packed beyond reason, and of which kind."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.storage.tensor_file import AGAIN, check_claim

CHUNK = 2**20  # bytes that are read at a time


def is_zip(path: Path) -> bool:
    """Whether it ends like a zip; whether it is whole, `checked_names` says."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one of several parts, by its end
        return True


def checked_names(path: Path) -> list[str]:
    """The members of an archive.

    Raises:
        CheckpointError: it unpacks to far more than its size, or its checksums say that it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_claim(sum(member.file_size for member in members), path, "data")
            # torch writes a checksum of 0 where it was told to compute none.
            damaged = any(member.CRC and not _is_whole(archive, member) for member in members)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises anything on a damaged directory
        raise CheckpointError(f"{path} is damaged or cut off.", AGAIN) from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: a checksum is wrong.", AGAIN)
    return [member.filename for member in members]


def _is_whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as file:
            while file.read(CHUNK):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def is_torchscript(names: set[str]) -> bool:
    """Whether an archive with these members, its own folder left out, holds TorchScript."""
    return "constants.pkl" in names or any(name.startswith("code/") for name in names)
