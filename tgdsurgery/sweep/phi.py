"""The threshold study: leave out what scores below phi, see what the old task says, propose a phi."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tgdsurgery.core.atomic import replacing
from tgdsurgery.core.copying import own_randomness
from tgdsurgery.core.errors import PlanError, RewriteError, TGDError
from tgdsurgery.core.plan import Override, TGDPlan
from tgdsurgery.core.tables import as_text, table
from tgdsurgery.mapping.channel_map import map_model
from tgdsurgery.mapping.example_inputs import arguments_for
from tgdsurgery.scoring.decide import check_settings, make_plan
from tgdsurgery.scoring.gather import score
from tgdsurgery.surgery.tgd_network import unwrapped
from tgdsurgery.sweep.ablation import without_flagged

SWEEP_FORMAT = "tgdsurgery-sweep-1"


@dataclass(frozen=True)
class SweepRow:
    """One threshold of a sweep.

    Args:
        phi: the threshold.
        dropped: share of the network's parameters that belong to the channels below it, in [0, 1].
        value: what `evaluate` said of the network without these channels.
        change: relative rise of the value over the untouched network's: (value - untouched) / |untouched|.
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
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] != SWEEP_FORMAT:
                raise ValueError("unknown format")
            rows = tuple(
                SweepRow(**{key: float(value) for key, value in row.items()}) for row in data["rows"]
            )
            return cls(rows, float(data["untouched"]), float(data["tolerance"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlanError(
                f"This is not a sweep of format {SWEEP_FORMAT} ({error}).",
                "Write one with `tgd sweep ... -o sweep.json`.",
            ) from error

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


def sweep_phi(
    model: nn.Module,
    evaluate: Callable[[nn.Module], Any],
    phis: Iterable[float],
    example_inputs: object = None,
    *,
    k: int = 5,
    alpha: float = 1.0,
    overrides: Mapping[str, Override] | None = None,
    tolerance: float = 0.05,
) -> SweepResult:
    """For each phi, leave out the channels that score below it, and see how much worse the old task gets.

    What TGD may retrain should be what the network hardly uses. So this measures the network without it, and
    proposes the largest phi that costs the old task next to nothing. The model is scored once for all phis;
    where two phis flag the same channels, the network is evaluated once.

    A channel is left out where the TGD layer would stand: its feature map is zero as it leaves the filter,
    and zero again as it leaves each norm or other carrier that is flagged (a norm would turn the zero into its
    shift). A layer that is no module gets its parameters' rows set to zero instead. What is not flagged stays
    as it is. Layers with the override "train" are left in: they are retrained whatever phi is.

    Args:
        model: the pretrained network; it is not touched.
        evaluate: takes a network (a copy, in evaluation mode) and returns one number for the old task, the lower
            the better: an error, or 1 - accuracy. It sees the same random numbers at every phi.
        phis: the thresholds to try, in [0, 1].
        example_inputs: as in `plan_tgd`.
        k: as in `plan_tgd`.
        alpha: as in `plan_tgd`.
        overrides: as in `plan_tgd`.
        tolerance: the largest relative rise of the value that is accepted; 0.05 means up to 5% above the
            untouched network's.

    Returns:
        The result, with the `proposed` phi; `print` shows it as a table, `plot` draws it.

    Raises:
        PlanError: a setting out of range; `evaluate` returns no finite number, or 0 for the untouched network
            (there is no relative rise over 0).
        RewriteError: the model is wrapped or has TGD layers already.
        CaptureError: as in `plan_tgd`.
        UnsupportedOpError: as in `plan_tgd`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3))
        >>> with torch.no_grad():
        ...     net[2].weight[:, ::2] *= 1e-3  # every other feature map is hardly used
        >>> image = torch.randn(4, 1, 16, 16)
        >>> truth = image[..., 2:-2, 2:-2]
        >>> result = sweep_phi(net, lambda net: nn.functional.mse_loss(net(image), truth), [0.1, 0.3, 0.99])
        >>> [round(row.dropped, 2) for row in result.rows]
        [0.26, 0.26, 0.46]
        >>> result.proposed
        0.3

    Reference:
        Chen, Asma, Chan: Targeted Gradient Descent, MICCAI 2021 (section 3.2 and figure 4).
    """
    # To leave out a layer that is retrained in any case says nothing about phi.
    rules = {name: "freeze" if rule == "train" else rule for name, rule in (overrides or {}).items()}
    thresholds = _checked(phis, rules, tolerance)
    if unwrapped(model) is not model or any("tgd_plan" in vars(module) for module in model.modules()):
        raise RewriteError(
            "The model is wrapped, or has TGD layers.", "Give the plain network inside; see remove_tgd."
        )
    mapped = map_model(model, arguments_for(model, example_inputs))
    scores = score(mapped, k=k, alpha=alpha)
    known: dict[tuple[tuple[bool, ...], ...], float] = {}

    def value(plan: TGDPlan) -> float:
        masks = tuple(entry.mask for entry in plan.entries)
        if masks not in known:
            known[masks] = _measured(evaluate, without_flagged(model, plan), plan.phi)
        return known[masks]

    untouched = value(make_plan(mapped.channels, scores, phi=0.0))
    if untouched == 0:
        raise PlanError(
            "evaluate returns 0 for the untouched network, and no relative rise can be told from there.",
            "Compare with the truth, not with the network's own output.",
        )
    rows = []
    for phi in thresholds:
        plan = make_plan(mapped.channels, scores, phi=phi, overrides=rules, k=k, alpha=alpha)
        found = value(plan)
        rows.append(SweepRow(phi, plan.share, found, (found - untouched) / abs(untouched)))
    return SweepResult(tuple(rows), untouched, tolerance)


def _checked(phis: Iterable[float], rules: Mapping[str, Override], tolerance: float) -> list[float]:
    """The thresholds, rising, each once."""
    given = list(phis)
    if not given:
        raise PlanError("There is no phi to try.", "Give some, such as [0.1, 0.2, 0.3, 0.4].")
    for phi in given:
        check_settings(phi=phi, budget=None, overrides=rules, flow="masked", norm_stats="hold")
    if (
        isinstance(tolerance, bool)
        or not isinstance(tolerance, (int, float))
        or not 0 <= tolerance < math.inf
    ):
        raise PlanError(f"tolerance is {tolerance!r}.", "Give a number from 0, such as 0.05 for 5%.")
    return sorted({float(phi) for phi in given})


def _measured(evaluate: Callable[[nn.Module], Any], net: nn.Module, phi: float) -> float:
    with own_randomness(net):
        found = evaluate(net)
    try:
        value = found.item() if isinstance(found, Tensor) else found.__float__()
        if math.isfinite(value):
            return float(value)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        value = found
    raise PlanError(
        f"evaluate returned {value!r} at phi {phi:g}.",
        "It has to return one finite number, the lower the better.",
    )
