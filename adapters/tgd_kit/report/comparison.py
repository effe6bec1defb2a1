"""Pictures of results: slices on one grey scale, and what they differ by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tgd_kit.runs.files import replacing

Slice = npt.NDArray[np.float32]


def draw_comparison(
    slices: Mapping[str, Slice], target: str, path: Path, *, top: float, span: float = 1.0
) -> None:
    """Draw slices side by side, dark where uptake is high, above their difference from the target.

    Args:
        slices: title to (y, x) slice in SUV, drawn in this order.
        target: title of the slice that the others are compared with.
        path: PNG file.
        top: SUV drawn black; 0 is white.
        span: difference in SUV drawn in full colour.
    """
    figure = Figure(figsize=(2.7 * len(slices) + 0.9, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(slices), squeeze=False)
    for (title, values), image, difference in zip(slices.items(), *axes, strict=True):
        shown = image.imshow(values, cmap="gray_r", vmin=0, vmax=top)
        image.set_title(title)
        compared = difference.imshow(values - slices[target], cmap="RdBu_r", vmin=-span, vmax=span)
        for axis in (image, difference):
            axis.set_axis_off()
    figure.colorbar(shown, ax=axes[0], label=f"SUV, 0 to {top:g}", pad=0.01)
    figure.colorbar(compared, ax=axes[1], label=f"difference from {target} (SUV)", pad=0.01)
    with replacing(path) as temporary:
        figure.savefig(temporary)
