"""Try before you train: which share of the filters, which flow, or something else than TGD."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, get_args

import torch
from torch import nn

from tgdsurgery.advice.result import LOW, Advice, Trial
from tgdsurgery.advice.trials import Evaluate, Trials, Way, has_lora
from tgdsurgery.core.copying import refuse_unfit
from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.plan import Flow, TGDPlan, check_share
from tgdsurgery.sweep.phi import sweep_phi

RATES = (3e-4, 1e-3, 3e-3)
SHARES = (0.1, 0.25, 0.5)
PHIS = (0.1, 0.2, 0.3, 0.4, 0.5)
TOLERANCE = 0.05
GAIN = 0.5  # of what full fine-tuning gains: where the methods are compared
ALIKE = 0.02  # relative difference of old errors that a short trial cannot tell


def advise(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Any],
    *,
    evaluate_old: Evaluate,
    evaluate_new: Evaluate,
    shares: Sequence[float] = SHARES,
    steps: int = 30,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> Advice:
    """Try TGD and what it competes with for a few steps on the user's own data, and say what they speak for.

    Full fine-tuning is tried first, at three learning rates. TGD, with each share and flow, and LoRA (where PEFT is
    installed) are tried at the best of these rates and at three times of it. All are trained on the same batches, with
    Adam; batch norms keep their running statistics. They are compared where they have learned half as much as full
    fine-tuning at its best: what counts there is the old error. A difference below 2 % counts as none, and then TGD is
    recommended: it keeps most weights bit for bit.

    A trial is short. It shows what learns and what forgets early, not where a long training ends.

    Args:
        model: the pretrained network; it is not touched.
        batches: pairs of inputs and targets of the new data, on the device of the model. Inputs are a tensor, a tuple
            of positional arguments or a dict of keyword arguments. The first `steps` are kept in memory; fewer are
            used again and again.
        loss: takes the outputs and the targets, returns a scalar to minimise.
        evaluate_old: takes a network in evaluation mode and returns one number for the old task, the lower the better.
        evaluate_new: the same for the new task, on data that `batches` does not have.
        shares: budgets of TGD to try.
        steps: of each trial.
        progress: wraps the trials and gets their number, as `tqdm` does, to show a bar.

    Returns:
        The advice; `print` shows the trials and the recommendation.

    Raises:
        PlanError: no batches, a setting out of range, or an evaluation that returns no finite number.
        CaptureError, UnsupportedOpError, RewriteError: as `apply_tgd`.

    Example:
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
        >>> x = torch.rand(8, 1, 16, 16)
        >>> def error(target):
        ...     return lambda net: nn.functional.mse_loss(net(x), target)
        >>> errors = {"evaluate_old": error(x), "evaluate_new": error(x.flip(-1))}
        >>> advice = advise(net, [(x, x.flip(-1))], nn.functional.mse_loss, **errors, steps=6)
        >>> advice.untouched.new > min(trial.points[-1].new for trial in advice.trials)
        True
        >>> Advice.from_json(advice.to_json()) == advice
        True
    """
    _check(shares, steps)
    refuse_unfit(model)
    trials = Trials(model, batches, loss, evaluate_old, evaluate_new, steps)
    plan = trials.plan()  # fails before the work, if it has to
    ways = [Way("TGD", flow, share) for share in shares for flow in get_args(Flow)]
    ways += [Way("LoRA")] if has_lora() else []
    shown = progress or (lambda items, total: items)
    total = len(RATES) + 2 * len(ways)
    done = [trial for trial in shown(_all(trials, ways), total) if trial is not None]
    scores = _scores(plan)
    target = _target(done, trials.untouched.new)
    return Advice(
        untouched=trials.untouched,
        steps=steps,
        trials=tuple(done),
        histogram=tuple(torch.histc(scores, 10, 0.0, 1.0).int().tolist()),
        low=float((scores < LOW).double().mean()),
        slack=_slack(trials, evaluate_old),
        tolerance=TOLERANCE,
        target=target,
        chosen=None if target is None else _chosen(done, target),
    )


def _all(trials: Trials, ways: Sequence[Way]) -> Iterator[Trial | None]:
    """Full fine-tuning at all rates; then the others at its best one, and at a higher one, which fewer rows need."""
    full: list[Trial] = []
    for rate in RATES:
        trial = trials.run(Way("full fine-tuning"), rate)
        full += [] if trial is None else [trial]
        yield trial
    if not full:
        raise PlanError(
            "No parameter of the model has requires_grad=True.", "Set it where training may move."
        )
    best = min(full, key=lambda trial: min(point.new for point in trial.points)).rate
    for way in ways:
        for rate in (best, 3 * best):
            yield trials.run(way, rate)


def _target(trials: Sequence[Trial], untouched: float) -> float | None:
    """The new error with half of full fine-tuning's gain; None if it gains nothing."""
    full = (point.new for trial in trials if trial.method == "full fine-tuning" for point in trial.points)
    gained = untouched - min(full)
    return untouched - GAIN * gained if gained > 0 else None


def _chosen(trials: Sequence[Trial], target: float) -> int:
    """The number of the trial with the lowest old error at the target; TGD's best, unless another is clearly lower."""
    reached = {number: point.old for number, trial in enumerate(trials) if (point := trial.at(target))}
    lowest = min(reached, key=reached.__getitem__)
    ours = [number for number in reached if trials[number].method == "TGD"]
    if not ours:
        return lowest
    best = min(ours, key=reached.__getitem__)
    return best if reached[best] <= reached[lowest] + ALIKE * abs(reached[lowest]) else lowest


def _scores(plan: TGDPlan) -> torch.Tensor:
    known = [score for entry in plan.entries for score in entry.scores if score is not None]
    return torch.tensor(known, dtype=torch.float64)


def _slack(trials: Trials, evaluate_old: Evaluate) -> float | None:
    if trials.untouched.old == 0:  # no relative rise over nothing
        return None
    found = sweep_phi(trials.model, evaluate_old, PHIS, trials.inputs, tolerance=TOLERANCE)
    left_out = {row.phi: row.dropped for row in found.rows}
    return found.proposed if found.proposed is not None and left_out[found.proposed] > 0 else None


def _check(shares: Sequence[float], steps: int) -> None:
    if not shares:
        raise PlanError("There is no share to try.", "Give some, such as [0.1, 0.25, 0.5].")
    for share in shares:
        check_share("share", share)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 3:
        raise PlanError(f"steps is {steps!r}.", "Give a whole number from 3, such as 30.")
