"""The types of the arrays that adapters work on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Mask = NDArray[np.bool_]
