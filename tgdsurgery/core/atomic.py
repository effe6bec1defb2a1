"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tgdsurgery.core.errors import CheckpointError, TGDError
from tgdsurgery.core.tables import shortened

_HOST = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path next to `path`; it takes the place of `path` if the body succeeds.

    The file gets the permissions of the one it replaces, or else those that any new file gets. What a killed
    process left behind of this file is removed.

    Raises:
        CheckpointError: the file cannot be written.
    """
    shown = shortened(str(path))
    try:
        target = Path(path).resolve()
        if target.exists() and not target.is_file():
            raise CheckpointError(f"{shown} is not a regular file.", "Name a file to write to.")
        if not target.parent.is_dir():
            raise CheckpointError(f"The folder of {shown} does not exist.", "Make it first.")
        _clean_up(target)
        temporary = target.with_name(f".{target.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        temporary.touch(exist_ok=False)
    except (OSError, ValueError) as error:
        raise _refusal(shown, error) from error
    try:
        mode = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        os.chmod(temporary, mode & 0o777)
        os.replace(temporary, target)
    except OSError as error:
        raise _refusal(shown, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _refusal(shown: str, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(
        f"{shown} cannot be written: {reason}.", "Check the folder, its permissions and the disk."
    )


def _clean_up(target: Path) -> None:
    """Remove the temporary files of `target` whose process, on this machine, is gone."""
    pattern = re.compile(rf"{re.escape(f'.{target.name}.{_HOST}')}-(\d+)-[0-9a-f]+\.tmp")
    for other in target.parent.glob(f".*.{_HOST}-*.tmp"):
        if (left := pattern.fullmatch(other.name)) and not _is_alive(int(left[1])):
            with suppress(OSError):
                other.unlink()


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # where signal 0 is not a question
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's, or a system that cannot tell
        return True
    return True


def check_suffix(path: Path, suffix: str) -> None:
    """Raise unless the path ends as its format does: readers go by it.

    Raises:
        TGDError: it does not.
    """
    if path.suffix.lower() != suffix:
        raise TGDError(f"{path} does not end in {suffix}.", f"Name it {path.stem}{suffix}.")
