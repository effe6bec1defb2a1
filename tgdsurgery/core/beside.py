"""Files that another file names: they have to lie beside it."""

from __future__ import annotations

from pathlib import Path


def beside(path: Path, name: str) -> Path | None:
    """The file that `path` calls `name`; None where that is outside of the folder of `path`.

    Links are followed. What they lead to may also lie where `path` itself links to, as in Hugging Face's cache,
    where every name is a link into one folder of contents.

    Args:
        path: a file, whose folder counts.
        name: what it names, relative to its folder.

    Raises:
        FileNotFoundError: there is no such file.

    >>> beside(Path(__file__), "plan.py").name
    'plan.py'
    >>> beside(Path(__file__), "../__init__.py") is None
    True
    """
    folders = path.parent.resolve(), path.resolve().parent
    try:
        found = (folders[0] / name).resolve()
        if Path(name).is_absolute() or not any(found.is_relative_to(folder) for folder in folders):
            return None
        there = found.is_file()
    except (OSError, ValueError):  # a name that is too long, or with a NUL in it; links in a circle
        there = False
    if not there:
        raise FileNotFoundError(name)
    return found
