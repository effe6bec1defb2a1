"""What a threshold study found: prints as a table, goes to JSON and back, plots."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.errors import TGDError
from tgdsurgery.core.reading import read_record
from tgdsurgery.core.tables import as_text, table

SWEEP_FORMAT = "tgdsurgery-sweep-1"


@dataclass(frozen=True)
class SweepRow:
    """One threshold of a sweep.

    Args:
        phi: the threshold.
        dropped: share of the network's parameters that belong to the channels below it, in [0, 1].
        value: what `evaluate` said of the network without these channels.
        change: relative rise of the value over the untouched network's: (value - untouched) / untouched.
    """

    phi: float
    dropped: float
    value: float
    change: float


@dataclass(frozen=True)
class SweepResult:
    """What leaving out the channels below each phi did; prints as a table, goes to JSON and back, plots.

    Args:
        rows: one per phi, rising.
        untouched: what `evaluate` said of the network as it is.
        tolerance: the largest change that `proposed` accepts.
    """

    rows: tuple[SweepRow, ...]
    untouched: float
    tolerance: float

    @property
    def proposed(self) -> float | None:
        """The largest phi whose change, like that of all smaller ones, is at most the tolerance; or None."""
        found = None
        for row in self.rows:
            if row.change > self.tolerance:
                break
            found = row.phi
        return found

    def to_json(self) -> str:
        """The result as JSON text; `SweepResult.from_json` reads it back to an equal result."""
        data = {"format": SWEEP_FORMAT, "proposed": self.proposed, **dataclasses.asdict(self)}
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> SweepResult:
        """A result from the text of `to_json`.

        Raises:
            PlanError: the text is not JSON, or not a sweep of this format.
        """
        return read_record(
            cls,
            text,
            SWEEP_FORMAT,
            "a sweep",
            "Write one with `tgd sweep ... -o sweep.json`.",
            derived=("proposed",),
        )

    def plot(self, path: str | Path) -> None:
        """Draw change and dropped share against phi, with the tolerance and the proposed phi.

        Args:
            path: a .png, .svg, .pdf or another format that matplotlib writes; replaced only when it is whole.

        Raises:
            TGDError: matplotlib is not installed, or cannot write this format.
            CheckpointError: the file cannot be written.
        """
        kind = plot_format(path)
        from matplotlib.figure import Figure  # noqa: PLC0415 (optional)

        figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
        change, dropped = figure.subplots(2, sharex=True)
        phis = [row.phi for row in self.rows]
        change.plot(phis, [100 * row.change for row in self.rows], "o-")
        change.axhline(100 * self.tolerance, color="grey", linestyle=":", label="tolerance")
        change.set_ylabel("change of the value, %")
        if max((row.change for row in self.rows), default=0.0) > 10 * self.tolerance > 0:
            change.set_ylim(top=1000 * self.tolerance)  # what decides would be flat beside what breaks down
        dropped.plot(phis, [100 * row.dropped for row in self.rows], "s-")
        dropped.set_ylim(0, 100)
        dropped.set_ylabel("parameters left out, %")
        dropped.set_xlabel("phi")
        if self.proposed is not None:
            for panel in (change, dropped):
                panel.axvline(self.proposed, color="C1", label=f"proposed, {self.proposed:g}")
        change.legend()
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind)

    def __str__(self) -> str:
        rows = [
            (f"{row.phi:g}", f"{row.dropped:.1%}", f"{row.value:.4g}", f"{row.change:+.1%}")
            for row in self.rows
        ]
        limit = f"{self.tolerance:.1%}"
        if self.proposed is None:
            verdict = f"No phi is proposed: at the smallest the value rises by more than {limit} already."
        else:
            verdict = f"Proposed: phi {self.proposed:g}. Up to there the value rises by at most {limit}."
        columns = ("phi", "left out", "value", "change")
        caption = f"Untouched network: {self.untouched:.4g}.\n{verdict}"
        return as_text(table(columns, rows, title="Without the channels below phi", caption=caption))


def plot_format(path: str | Path) -> str:
    """The format that matplotlib writes a file of this name in.

    Raises:
        TGDError: matplotlib is not installed, or has no such format.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise TGDError(
            "Plots need matplotlib, which is not installed.", "Try: pip install matplotlib"
        ) from error
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FigureCanvasBase.get_supported_filetypes():
        raise TGDError(f"{path} has no suffix of a picture.", "Name it .png, .svg or .pdf.")
    return kind
