"""Pictures of results: figures drawn without a display, and slices beside what they differ by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tgd_kit.arrays import FloatArray, Mask
from tgd_kit.runs.files import replacing


def new_figure(width: float, height: float, dpi: float = 100) -> Figure:
    """An empty figure, sizes in inches, whose parts find their places by themselves."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's suffix."""
    with replacing(path) as temporary:
        figure.savefig(temporary)


def draw_comparison(
    slices: Mapping[str, FloatArray],
    target: str,
    path: Path,
    *,
    unit: str,
    window: tuple[float, float],
    span: float,
    colours: str = "gray",
    contours: Mapping[str, Sequence[tuple[Mask, str]]] | None = None,
) -> None:
    """Draw slices side by side, above their difference from the target.

    Args:
        slices: title to (y, x) slice, drawn in this order.
        target: title of the slice that the others are compared with.
        path: PNG file.
        unit: of the values, for the colour bars.
        window: lowest and highest value shown.
        span: difference drawn in full colour.
        colours: matplotlib's name of the colours, such as "gray_r" for dark where values are high.
        contours: title to (y, x) regions to outline, each with its colour; later ones are drawn on top.
    """
    rows, columns = slices[target].shape
    figure = new_figure(2.7 * len(slices) + 0.9, 2 * 2.7 * rows / columns + 0.6, dpi=120)
    axes = figure.subplots(2, len(slices), squeeze=False)
    for (title, values), image, difference in zip(slices.items(), *axes, strict=True):
        shown = image.imshow(values, cmap=colours, vmin=window[0], vmax=window[1])
        image.set_title(title)
        for region, colour in (contours or {}).get(title, ()):
            if region.any() and not region.all():  # else there is no outline, and matplotlib warns
                image.contour(region, levels=[0.5], colors=colour, linewidths=0.8)
        compared = difference.imshow(values - slices[target], cmap="RdBu_r", vmin=-span, vmax=span)
        for axis in (image, difference):
            axis.set_axis_off()
    figure.colorbar(shown, ax=axes[0], label=f"{unit}, {window[0]:g} to {window[1]:g}", pad=0.01)
    figure.colorbar(compared, ax=axes[1], label=f"difference ({unit})", pad=0.01)
    save_figure(figure, path)
