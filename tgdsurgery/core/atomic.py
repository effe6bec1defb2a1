"""Files appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tgdsurgery.core.errors import CheckpointError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` if the body succeeds.

    Raises:
        CheckpointError: the file cannot be written.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise CheckpointError(f"{path} is not a regular file.", "Name a file to write to.")
    if not target.parent.is_dir():
        raise CheckpointError(f"The folder of {path} does not exist.", "Make it first.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror}.", "Name a file in a folder you can write to."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
