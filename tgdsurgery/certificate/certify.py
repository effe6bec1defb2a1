"""A certificate from files."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tgdsurgery.certificate.compare import compare
from tgdsurgery.certificate.hashing import file_record
from tgdsurgery.certificate.limits import Limit
from tgdsurgery.certificate.record import (
    Certificate,
    FileRecord,
    Impact,
    Measurement,
    Modifications,
    PlannedLayer,
    Protocol,
)
from tgdsurgery.certificate.rollback import rolled_back
from tgdsurgery.core.copying import copy_model
from tgdsurgery.core.errors import CheckpointError, PlanError, TGDWarning
from tgdsurgery.core.measuring import measured
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.tables import spans
from tgdsurgery.storage.checkpoints import read_state_dict
from tgdsurgery.storage.delta_entries import listed
from tgdsurgery.storage.delta_state import is_delta, plan_of_delta, state_with_delta
from tgdsurgery.storage.plan_file import read_plan
from tgdsurgery.storage.weights import bare_names, load_weights, not_finite

Task = tuple[Callable[[nn.Module], Any], str]
RULES = (
    "Every tensor of base and tuned is compared bit for bit; the sign of a zero and the payload of a NaN count.",
    "Frozen is every channel that the plan does not list as trainable: its weights, its bias and the scale and "
    "shift of its norm.",
    "Running statistics of frozen channels {statistics}.",
    "A tensor that the plan knows nothing of is frozen whole, unless it counts batches (num_batches_tracked).",
    "Tensors that are added, missing, of another shape or dtype, or whose rows are in another order count against "
    "the tuned network.",
    "Rollback: the base's values are put into the entries that may move; the result has to be the base, bit for bit.",
    "A limit holds for the value of the tuned network, and was given before anything was measured.",
)


def certify(
    base: str | Path,
    tuned: str | Path,
    plan: TGDPlan | str | Path | None = None,
    *,
    delta: str | Path | None = None,
    model: nn.Module | None = None,
    old_task: Task | None = None,
    new_task: Task | None = None,
) -> Certificate:
    """Prove from files what training changed in a network: what the plan allows, and nothing else.

    Needs no code of the network, unless tasks are to be measured. No code in the files is run.

    Args:
        base: checkpoint before training.
        tuned: checkpoint after training (of the TGD network or of what `remove_tgd` made of it), or a delta.
        plan: what was allowed to change: a plan, or a JSON file of `tgd plan` or `TGDPlan.to_json`. A delta's own
            if None.
        delta: a delta that is to make `tuned` of `base`, bit for bit.
        model: the network that the checkpoints are for, to be measured; it is not touched.
        old_task: an evaluation, and the limit that the tuned network has to keep, such as `"<=0.125"` or `">=0.9"`.
            The evaluation takes a network (a copy, in evaluation mode) and returns one number. It sees the same
            random numbers every time.
        new_task: the same for the new task.

    Returns:
        The certificate; `ok` is the verdict, `findings` says what speaks against it.

    Raises:
        CheckpointError: a file that cannot be read, a delta for another base, or one with another plan.
        PlanError: no plan, or one for another network; a limit that is none; tasks without a model; an evaluation
            that returns no finite number.

    Warns:
        TGDWarning: `tuned` holds NaN or infinity.

    Example:
        >>> import tempfile
        >>> from tgdsurgery import apply_tgd, remove_tgd
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))
        >>> tgd = apply_tgd(net, phi=0.3)
        >>> with torch.no_grad():
        ...     for parameter in tgd.parameters():
        ...         _ = parameter.add_(1)  # in place of training
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save(net.state_dict(), folder / "base.pt")
        >>> torch.save(tgd.state_dict(), folder / "tuned.pt")
        >>> certify(folder / "base.pt", folder / "tuned.pt", tgd.tgd_plan).ok
        True
    """
    tasks = {name: task for name, task in (("old", old_task), ("new", new_task)) if task}
    limits = tuple(Limit(name, _name_of(evaluate), text) for name, (evaluate, text) in tasks.items())
    if tasks and model is None:
        raise PlanError("There is no network to measure.", "Give the model that the checkpoints are for.")
    given = _read(Path(base), Path(tuned), plan, Path(delta) if delta else None)
    if names := not_finite(given.tuned):
        warnings.warn(
            f"{tuned} holds NaN or infinity in {listed(names)}. Bits are certified, not what they are good for.",
            TGDWarning,
            stacklevel=2,
        )
    return Certificate(
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={
            "tgdsurgery": version("tgdsurgery"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        files=given.files,
        description_of_modifications=_modifications(given.plan),
        modification_protocol=Protocol(_rules(given.plan), limits),
        impact_assessment=Impact(
            compare(given.base, given.tuned, given.plan),
            rolled_back(given.base, given.tuned, given.plan, given.adapted),
            tuple(
                _measured(limit, evaluate, model, given.base, given.tuned)
                for limit, (evaluate, _) in zip(limits, tasks.values(), strict=True)
                if model is not None
            ),
        ),
    )


class _Given(NamedTuple):
    """What was read: the plan, the two states, what base and delta make if that is to be checked, and the files."""

    plan: TGDPlan
    base: Mapping[str, Tensor]
    tuned: Mapping[str, Tensor]
    adapted: Mapping[str, Tensor] | None
    files: tuple[FileRecord, ...]


def _read(base: Path, tuned: Path, plan: TGDPlan | str | Path | None, delta: Path | None) -> _Given:
    alone = is_delta(tuned)
    if alone and delta is not None:
        raise CheckpointError(
            f"{tuned} is a delta itself.", "Give a checkpoint beside a delta, or one delta."
        )
    change = tuned if alone else delta
    chosen = _chosen(plan, change)
    before = bare_names(read_state_dict(base), chosen.tensors)
    made = None if change is None else state_with_delta(before, change)
    after = made if alone and made is not None else bare_names(read_state_dict(tuned), chosen.tensors)
    files = [file_record("base", base, before), file_record("delta" if alone else "tuned", tuned, after)]
    if isinstance(plan, str | Path):
        files.append(file_record("plan", Path(plan)))
    if delta is not None:
        files.append(file_record("delta", delta))
    return _Given(chosen, before, after, None if alone else made, tuple(files))


def _chosen(plan: TGDPlan | str | Path | None, delta: Path | None) -> TGDPlan:
    """The plan that was given, or the delta's; they have to be the same where there are two."""
    given = read_plan(Path(plan)) if isinstance(plan, str | Path) else plan
    carried = plan_of_delta(delta) if delta else None
    if given is not None and carried is not None and given.digest != carried.digest:
        raise CheckpointError(f"{delta} was made with another plan.", "Give the plan that it was made with.")
    found = given or carried
    if found is None:
        raise PlanError(
            "Nothing says what was allowed to change.", "Give the plan, or the delta: it carries its own."
        )
    return found


def _modifications(plan: TGDPlan) -> Modifications:
    layers = [
        PlannedLayer(
            entry.layer.name,
            entry.layer.type,
            entry.layer.channels,
            entry.trainable,
            spans([channel for channel, trains in enumerate(entry.mask) if trains]),
        )
        for entry in plan.entries
    ]
    return Modifications(
        plan.phi,
        plan.budget,
        plan.flow,
        plan.norm_stats,
        plan.overrides,
        plan.share,
        tuple(layers),
        tuple(plan.unmapped),
        plan.score,
    )


def _rules(plan: TGDPlan) -> tuple[str, ...]:
    statistics = "are frozen too" if plan.norm_stats == "hold" else 'may move, as the plan says ("batch")'
    return tuple(rule.format(statistics=statistics) for rule in RULES)


def _name_of(evaluate: Callable[[nn.Module], Any]) -> str:
    return getattr(evaluate, "__qualname__", type(evaluate).__name__)


def _measured(
    limit: Limit,
    evaluate: Callable[[nn.Module], Any],
    model: nn.Module,
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
) -> Measurement:
    values = []
    for what, state in (("base", base), ("tuned network", tuned)):
        net = copy_model(model)
        load_weights(net, state, f"The {what}")
        values.append(measured(evaluate, net.eval(), f"for the {what} ({limit.evaluation})"))
    before, after = values
    return Measurement(limit.task, before, after, limit.met(after))
