"""DICOM tags, read strictly: what is missing or malformed is refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as SequenceOfDatasets

from tgd_kit.errors import ImageError, printable
from tgd_kit.imaging.quiet import quiet

EXPORT = "Export the series again with all its tags, or pass a NIfTI file."


def optional(dataset: Dataset, tag: str) -> Any:
    """The value of a tag; None if it is missing or empty.

    Raises:
        ImageError: it is not of its type (pydicom reads a value when it is asked for).
    """
    try:
        value = dataset.get(tag)
    except Exception as error:  # pydicom raises anything on bytes that are not of the tag's type
        raise ImageError(f"{tag} is malformed.", EXPORT) from error
    return None if hasattr(value, "__len__") and len(value) == 0 else value


def require(dataset: Dataset, tag: str) -> Any:
    """The value of a tag.

    Raises:
        ImageError: it is missing, empty, or not of its type.
    """
    value = optional(dataset, tag)
    if value is None:
        raise ImageError(f"{printable(getattr(dataset, 'filename', 'The series'))} has no {tag}.", EXPORT)
    return value


def numbers(dataset: Dataset, tag: str, count: int) -> npt.NDArray[np.float64]:
    """The `count` finite numbers of a tag.

    Raises:
        ImageError: it is missing, or holds something else.
    """
    value = require(dataset, tag)
    try:
        found = np.atleast_1d(np.asarray(value, dtype=float))
    except (ValueError, TypeError, OverflowError):
        found = np.array([np.nan])
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ImageError(f"{tag} is {printable(value)}, not {count} number{'s' * (count > 1)}.", EXPORT)
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


def texts(datasets: Sequence[Dataset]) -> dict[str, str]:
    """Every tag that has one and the same value in all slices, as text: what a series says of itself.

    By keyword; several values are joined by backslashes, as in DICOM. Sequences, private tags and those that cannot be
    read are left out.
    """
    keywords = filter(None, map(keyword_for_tag, datasets[0].keys()))
    with quiet():  # a clinical header has faults
        found = {keyword: {_text(dataset, keyword) for dataset in datasets} for keyword in keywords}
    alike = {keyword: values.pop() for keyword, values in found.items() if len(values) == 1}
    return {keyword: value for keyword, value in alike.items() if value is not None}


def _text(dataset: Dataset, tag: str) -> str | None:
    try:
        value = optional(dataset, tag)
    except ImageError:  # a faulty tag that nobody asked for
        return None
    if value is None or isinstance(value, SequenceOfDatasets):
        return None
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value).strip()


def same(datasets: Sequence[Dataset], *tags: str) -> None:
    """Refuse slices in which one of the tags differs, or which only some of them have.

    Raises:
        ImageError: naming the first such tag.
    """
    for tag in tags:
        values = {str(optional(dataset, tag)) for dataset in datasets}
        if len(values) > 1:
            two = " and ".join(sorted(printable(value, 80) for value in values)[:2])
            raise ImageError(
                f"{tag} differs between the slices: {two}.", "Pass one series as the scanner wrote it."
            )
