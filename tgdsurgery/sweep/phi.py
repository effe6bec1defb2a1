"""The threshold study: leave out what scores below phi, see what the old task says, propose a phi."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from tgdsurgery.core.errors import PlanError, RewriteError
from tgdsurgery.core.measuring import measured
from tgdsurgery.core.plan import Override, TGDPlan, check_share
from tgdsurgery.mapping.channel_map import map_model
from tgdsurgery.mapping.example_inputs import arguments_for
from tgdsurgery.scoring import gather
from tgdsurgery.scoring.custom import by
from tgdsurgery.scoring.decide import make_plan
from tgdsurgery.settings import Score, TGDSettings
from tgdsurgery.surgery.tgd_network import unwrapped
from tgdsurgery.sweep.ablation import without_flagged
from tgdsurgery.sweep.result import SweepResult, SweepRow


def sweep_phi(
    model: nn.Module,
    evaluate: Callable[[nn.Module], Any],
    phis: Iterable[float],
    example_inputs: object = None,
    *,
    k: int = 5,
    alpha: float = 1.0,
    score: Score | None = None,
    overrides: Mapping[str, Override] | None = None,
    tolerance: float = 0.05,
) -> SweepResult:
    """For each phi, leave out the channels that score below it, and see how much worse the old task gets.

    What TGD may retrain should be what the network hardly uses. So this measures the network without it, and
    proposes the largest phi that costs the old task next to nothing. The model is scored once for all phis;
    where two phis flag the same channels, the network is evaluated once.

    A channel is left out where the TGD layer would stand: its feature map is zero as it leaves the filter,
    and zero again as it leaves each norm or other channel layer that is flagged (a norm would turn the zero into its
    shift). A layer without a module of its own gets its parameters' rows set to zero instead. What is not flagged stays
    as it is. Layers with the override "train" are left in: they are retrained whatever phi is.

    Args:
        model: the pretrained network; it is not touched.
        evaluate: takes a network (a copy, in evaluation mode) and returns one number for the old task, the lower
            the better: an error, or 1 - accuracy. It sees the same random numbers at every phi.
        phis: the thresholds to try, in [0, 1].
        example_inputs: as in `plan_tgd`.
        k: as in `plan_tgd`.
        alpha: as in `plan_tgd`.
        score: as in `plan_tgd`.
        overrides: as in `plan_tgd`.
        tolerance: the largest relative rise of the value that is accepted; 0.05 means up to 5% above the
            untouched network's.

    Returns:
        The result, with the `proposed` phi; `print` shows it as a table, `plot` draws it.

    Raises:
        PlanError: a setting out of range; a `score` of another shape or range; `evaluate` returns no finite
            number, or one for the untouched network that is not above 0 (there is no relative rise over it).
        RewriteError: the model is wrapped or a TGD network already.
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
    # Leaving out a layer that is always retrained says nothing about phi.
    rules = {name: "freeze" if rule == "train" else rule for name, rule in (overrides or {}).items()}
    thresholds = _checked(phis, tolerance)
    settings = TGDSettings(overrides=rules, k=k, alpha=alpha, score=score)
    if unwrapped(model) is not model or any("tgd_plan" in vars(module) for module in model.modules()):
        raise RewriteError(
            "The model is wrapped, or is a TGD network.", "Give the plain network inside; see remove_tgd."
        )
    mapped = map_model(model, arguments_for(model, example_inputs))
    scores = gather.score(mapped, gather.by_kse(k, alpha) if score is None else by(score, model))
    known: dict[tuple[tuple[bool, ...], ...], float] = {}

    def value(plan: TGDPlan) -> float:
        masks = tuple(entry.mask for entry in plan.entries)
        if masks not in known:
            known[masks] = measured(evaluate, without_flagged(model, plan), f"at phi {plan.phi:g}")
        return known[masks]

    untouched = value(make_plan(mapped.channels, scores, TGDSettings(phi=0.0)))
    if untouched <= 0:
        raise PlanError(
            f"evaluate returns {untouched:g} for the untouched network, and no relative rise can be told from there.",
            "Return an error above 0, such as 1 - accuracy; compare with the truth, not with the network's own output.",
        )
    rows = []
    for phi in thresholds:
        plan = make_plan(mapped.channels, scores, replace(settings, phi=phi))
        found = value(plan)
        rows.append(SweepRow(phi, plan.share, found, (found - untouched) / untouched))
    return SweepResult(tuple(rows), untouched, tolerance)


def _checked(phis: Iterable[float], tolerance: float) -> list[float]:
    """The thresholds, rising, each once."""
    given = list(phis)
    if not given:
        raise PlanError("There is no phi to try.", "Give some, such as [0.1, 0.2, 0.3, 0.4].")
    for phi in given:
        check_share("phi", phi)
    if (
        isinstance(tolerance, bool)
        or not isinstance(tolerance, (int, float))
        or not 0 <= tolerance < math.inf
    ):
        raise PlanError(f"tolerance is {tolerance!r}.", "Give a number from 0, such as 0.05 for 5%.")
    return sorted({float(phi) for phi in given})
