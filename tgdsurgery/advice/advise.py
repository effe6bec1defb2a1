"""Try before you train: which share of the filters, which flow, or something else than TGD."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, get_args

import torch
from torch import nn

from tgdsurgery.advice.records import Trial
from tgdsurgery.advice.result import LOW, Advice
from tgdsurgery.advice.trials import FULL, Evaluate, Trials, Way, has_lora
from tgdsurgery.core.copying import refuse_unfit
from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.plan import Flow, TGDPlan, check_share
from tgdsurgery.mapping.state import statistics_of
from tgdsurgery.storage.delta_entries import listed
from tgdsurgery.storage.weights import not_finite
from tgdsurgery.sweep.phi import sweep_phi
from tgdsurgery.sweep.result import SweepResult

RATES = (3e-4, 1e-3, 3e-3)
SHARES = (0.1, 0.25, 0.5)
PHIS = (0.1, 0.2, 0.3, 0.4, 0.5)
TOLERANCE = 0.05


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
    Adam; batch norms keep their running statistics.

    They are compared where they have learned the same. The target is the new error with half of what full fine-tuning
    gains at the end of its best trial. A trial counts if it ends at the target or below. Its old error at the target is
    that where its new error first falls to the target; between two of the points at which a trial is measured (none, a
    third, two thirds and all of its steps), the old error is taken as linear in the new one. The trial with the lowest
    is recommended. A difference of up to 2 % counts as none, and then TGD is: it keeps most weights bit for bit.

    A trial is short, and has one seed. It shows what learns and what forgets early, not where a long training ends.

    Args:
        model: the pretrained network; it is not touched.
        batches: pairs of inputs and targets of the new data, on the device of the model. Inputs are a tensor, a tuple
            of positional arguments or a dict of keyword arguments. The first `steps` are kept in memory; fewer are
            used again and again.
        loss: takes the outputs and the targets, returns a scalar tensor to minimise that depends on the outputs.
        evaluate_old: takes a network in evaluation mode and returns one number for the old task, the lower the better.
        evaluate_new: the same for the new task, on data that `batches` does not have.
        shares: budgets of TGD to try.
        steps: of each trial.
        progress: wraps the trials and gets their number, as `tqdm` does, to show a bar.

    Returns:
        The advice; `print` shows the trials and the recommendation.

    Raises:
        PlanError: no batches, a setting out of range, nothing to train, weights that are NaN, a loss that is no scalar
            tensor with a gradient, or an evaluation that returns no finite number.
        CaptureError: the model's forward fails on a batch; or as `apply_tgd`.
        UnsupportedOpError, RewriteError: as `apply_tgd`.

    Example:
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
        >>> x = torch.rand(8, 1, 16, 16)
        >>> def error(target):
        ...     return lambda net: nn.functional.mse_loss(net(x), target)
        >>> errors = {"evaluate_old": error(x), "evaluate_new": error(x.flip(-1))}
        >>> advice = advise(net, [(x, x.flip(-1))], nn.functional.mse_loss, **errors, steps=6)
        >>> advice.untouched.new > min(trial.last.new for trial in advice.trials)
        True
        >>> Advice.from_json(advice.to_json()) == advice
        True
    """
    _check(shares, steps)
    _refuse_unfit(model)
    trials = Trials(model, batches, loss, evaluate_old, evaluate_new, steps)
    trials.check_loss()  # what can fail does so before the work, and with what is clearest
    scores = _scores(trials.plan())
    untouched = trials.untouched()
    sweep = _sweep(trials, evaluate_old) if untouched.old > 0 else None
    ways = [Way("TGD", flow, share) for share in shares for flow in get_args(Flow)]
    ways += [Way("LoRA")] if has_lora() else []
    shown = progress or (lambda items, total: items)
    total = len(RATES) + 2 * len(ways)
    done = [trial for trial in shown(_all(trials, ways), total) if trial is not None]
    return Advice(
        untouched=untouched,
        steps=steps,
        trials=tuple(done),
        histogram=tuple(torch.histc(scores, 10, 0.0, 1.0).int().tolist()),
        low=int((scores < LOW).sum()) / max(len(scores), 1),
        sweep=sweep,
    )


def _all(trials: Trials, ways: Sequence[Way]) -> Iterator[Trial | None]:
    """Full fine-tuning at all rates; then the others at the one where it ends best, and at a higher one.

    Fewer rows need a higher one.
    """
    full: list[Trial] = []
    for rate in RATES:
        trial = trials.run(FULL, rate)
        full += [] if trial is None else [trial]
        yield trial
    best = min(full, key=lambda trial: trial.last.new).rate
    for way in ways:
        for rate in (best, 3 * best):
            yield trials.run(way, rate)


def _scores(plan: TGDPlan) -> torch.Tensor:
    """The scores of all filters that have one."""
    filters = (entry for entry in plan.entries if entry.layer.role == "filter")
    known = [score for entry in filters for score in entry.scores if score is not None]
    return torch.tensor(known, dtype=torch.float64)


def _sweep(trials: Trials, evaluate_old: Evaluate) -> SweepResult:
    return sweep_phi(trials.model, evaluate_old, PHIS, trials.inputs, tolerance=TOLERANCE)


def _refuse_unfit(model: nn.Module) -> None:
    """Raise if there is nothing to train, or a weight is not finite, and would spoil every evaluation."""
    refuse_unfit(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise PlanError(
            "No parameter of the model has requires_grad=True.", "Set it where training may move."
        )
    if names := not_finite(dict(chain(model.named_parameters(), statistics_of(model)))):
        raise PlanError(
            f"The model holds NaN or infinity in {listed(names)}.", "Load weights that are finite."
        )


def _check(shares: Sequence[float], steps: int) -> None:
    if not shares:
        raise PlanError("There is no share to try.", "Give some, such as [0.1, 0.25, 0.5].")
    for share in shares:
        check_share("share", share)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 3:
        raise PlanError(f"steps is {steps!r}.", "Give a whole number from 3, such as 30.")
