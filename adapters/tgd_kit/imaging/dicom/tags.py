"""DICOM tags, read strictly: what is missing or malformed is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from tgd_kit.errors import ImageError

EXPORT = "Export the series again with all its tags, or pass a NIfTI file."


def optional(dataset: Dataset, tag: str) -> Any:
    """The value of a tag; None if it is missing or empty.

    Raises:
        ImageError: it is not of its type (pydicom reads a value when it is asked for).
    """
    try:
        value = dataset.get(tag)
    except (ValueError, TypeError) as error:
        raise ImageError(f"{tag} is malformed.", EXPORT) from error
    return None if hasattr(value, "__len__") and len(value) == 0 else value


def require(dataset: Dataset, tag: str) -> Any:
    """The value of a tag.

    Raises:
        ImageError: it is missing, empty, or not of its type.
    """
    value = optional(dataset, tag)
    if value is None:
        raise ImageError(f"{getattr(dataset, 'filename', 'The series')} has no {tag}.", EXPORT)
    return value


def numbers(dataset: Dataset, tag: str, count: int) -> npt.NDArray[np.float64]:
    """The `count` finite numbers of a tag.

    Raises:
        ImageError: it is missing, or holds something else.
    """
    value = require(dataset, tag)
    try:
        found = np.atleast_1d(np.asarray(value, dtype=float))
    except (ValueError, TypeError):
        found = np.array([np.nan])
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ImageError(f"{tag} is {value}, not {count} number{'s' * (count > 1)}.", EXPORT)
    return found


def positive(dataset: Dataset, tag: str) -> float:
    """The number of a tag, which must be above zero.

    Raises:
        ImageError: it is missing, or something else.
    """
    value = float(numbers(dataset, tag, 1)[0])
    if value <= 0:
        raise ImageError(f"{tag} is {value:g}.", EXPORT)
    return value
