"""Figures of the scores for papers: PNG, SVG or PDF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.errors import TGDError
from tgdsurgery.report.content import Content, ReportLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["histogram", "layers", "moved"]
SUFFIXES = (".png", ".svg", ".pdf")
BINS = 50
COLUMNS = 240  # of the map: a layer's channels, few or many, fill its row
BELOW, ABOVE = "tab:orange", "tab:blue"
DPI = 200


class FigureError(TGDError):
    """A figure that cannot be drawn."""


def draw(content: Content, kind: Kind, path: Path) -> None:
    """Draw one figure; the file is replaced only when all is written.

    Args:
        content: what is drawn.
        kind: "histogram" of all scores with the threshold, "layers" for a map of the scores by layer and channel,
            "moved" for a map of what moved.
        path: PNG, SVG or PDF, by its suffix.

    Raises:
        FigureError: matplotlib is not installed, the suffix is another one, or nothing is known of what moved.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise FigureError(f"{path} is no figure.", f"Let its name end with {', '.join(SUFFIXES)}.")
    try:
        from matplotlib import rc_context  # noqa: PLC0415 (optional, and heavy)
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure as NewFigure  # noqa: PLC0415
    except ImportError as error:
        raise FigureError("A figure needs matplotlib.", 'Try: pip install "tgdsurgery[report]"') from error
    layers = _layers(content, kind)
    height = 3.0 if kind == "histogram" else min(12.0, max(2.0, 1.2 + 0.16 * len(layers)))
    figure = NewFigure(figsize=(6.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    if kind == "histogram":
        _histogram(axis, content, layers)
    else:
        _map(figure, axis, content, layers, kind)
    # Text stays text in SVG, and the same numbers make the same file.
    with replacing(path) as temporary, rc_context({"svg.fonttype": "none", "svg.hashsalt": "tgdsurgery"}):
        suffix = path.suffix.lower().removeprefix(".")
        metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
        figure.savefig(temporary, format=suffix, dpi=DPI, metadata=metadata)


def _layers(content: Content, kind: Kind) -> list[ReportLayer]:
    """Those that the figure shows."""
    filters = [layer for layer in content.layers if layer.role == "filter"]
    if kind == "moved":
        filters = [layer for layer in filters if layer.moved]
        if not filters:
            raise FigureError("Nothing is known of what moved.", "Name the other checkpoint: --against BASE.")
    return filters


def _histogram(axis: Axes, content: Content, layers: list[ReportLayer]) -> None:
    scores = [score for layer in layers for score in layer.scores if score is not None]
    below = [score for score in scores if score < content.phi]
    what = "filters" if content.scored == "filters" else "input channels"
    bins = [edge / BINS for edge in range(BINS + 1)]
    axis.hist([below, [s for s in scores if s >= content.phi]], bins, stacked=True, color=[BELOW, ABOVE])
    axis.axvline(
        content.phi, color=BELOW, label=f"phi {content.phi:g}: {len(below):,} of {len(scores):,} below"
    )
    axis.set(xlabel=f"KSE of {what}", ylabel=what, xlim=(0, 1))
    axis.legend(frameon=False)


def _map(figure: Figure, axis: Axes, content: Content, layers: list[ReportLayer], kind: Kind) -> None:
    rows = [_resampled(layer.moved if kind == "moved" else layer.scores) for layer in layers]
    most = None if kind == "moved" else 1.0
    shown = axis.imshow(
        rows,
        aspect="auto",
        interpolation="nearest",
        vmin=0,
        vmax=most,
        extent=(0, 100, len(rows) - 0.5, -0.5),
    )
    step = max(1, len(rows) // 60 + (len(rows) > 60))
    ticks = range(0, len(rows), step)
    # matplotlib would read a name with two dollar signs as mathematics
    names = [layers[tick].name[-40:].replace("$", r"\$") for tick in ticks]
    axis.set_yticks(list(ticks), names, fontsize="x-small")
    axis.set_xlabel("% of the layer's channels, sorted")
    label = "relative change" if kind == "moved" else "KSE"  # short: it is as high as the map
    figure.colorbar(shown, ax=axis, label=label)


def _resampled(values: tuple[float | None, ...] | tuple[float, ...]) -> list[float]:
    known = sorted(value for value in values if value is not None)
    if not known:
        return [float("nan")] * COLUMNS
    return [known[min(len(known) - 1, column * len(known) // COLUMNS)] for column in range(COLUMNS)]
