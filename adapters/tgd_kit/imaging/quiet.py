"""Image libraries that keep to themselves: what they would say is checked here, or does not matter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from nibabel import imageglobals


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of pydicom, nibabel and numpy in the block, and none of nibabel's own lines."""
    logger = imageglobals.logger
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
