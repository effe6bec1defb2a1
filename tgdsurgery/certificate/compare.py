"""Two states of one network against a plan, tensor by tensor: what moved, and whether it was allowed to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tgdsurgery.certificate.rules import Kind, Rule, rule_for, rules_of
from tgdsurgery.core.bits import as_bits, differing
from tgdsurgery.core.plan import LayerPlan, TGDPlan
from tgdsurgery.core.records import ParameterRows

State = Literal["unchanged", "changed", "permuted", "recast", "reshaped", "added", "removed"]
MAX_CHANNELS = 20  # channels that are named per tensor


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the two states.

    Args:
        name: its name in the `state_dict`.
        layer: the plan's layer that it belongs to; None if the plan knows nothing of it.
        kind: what it is to the plan. All of an unknown tensor counts as frozen; a counter may move.
        state: what became of it. "permuted": the same rows in another order. "recast": another dtype.
        dtype: before, and also after where it differs (`float32 > float16`).
        shape: sizes before (`16x1x3x3`), and also after where they differ.
        frozen: entries that had to stay.
        frozen_changed: how many of them did not, bit for bit.
        channels: the channels of those, the first `MAX_CHANNELS`.
        trainable: entries that were allowed to move.
        trainable_changed: how many of them moved.
        largest: largest change of a trainable entry; None where one is not a finite number.
        rms: root of the mean square change of the trainable entries; None where one is not a finite number.
    """

    name: str
    layer: str | None
    kind: Kind
    state: State
    dtype: str
    shape: str
    frozen: int
    frozen_changed: int
    channels: tuple[int, ...]
    trainable: int
    trainable_changed: int
    largest: float | None = 0.0
    rms: float | None = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing happened to it that the plan does not allow."""
        kept = self.frozen_changed == 0 and self.state in ("unchanged", "changed")
        return kept or self.kind == "counter"


@dataclass(frozen=True)
class LayerDrift:
    """How far training moved one layer: its parameters and statistics together.

    Args:
        layer: its name.
        type: class name of the module, for display.
        channels: how many output channels it has.
        trainable: how many of them were allowed to move.
        moved: in how many of those at least one entry moved.
        frozen_changed: frozen entries that changed; 0 in a network that keeps to the plan.
        largest: largest change of a trainable parameter entry; None where one is not a finite number.
        rms: root of the mean square change of the trainable parameter entries; None as above.
    """

    layer: str
    type: str
    channels: int
    trainable: int
    moved: int
    frozen_changed: int
    largest: float | None
    rms: float | None


@dataclass(frozen=True)
class Comparison:
    """All tensors of the two states, and the drift of each layer of the plan."""

    tensors: tuple[TensorRecord, ...]
    layers: tuple[LayerDrift, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing changed that the plan does not allow."""
        return all(record.ok for record in self.tensors)


def compare(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], plan: TGDPlan) -> Comparison:
    """Compare every tensor bit for bit. All that the plan does not allow to move has to be the same.

    That includes tensors that the plan knows nothing of, unless they count batches.

    Args:
        base: tensors by name before training, on the CPU.
        tuned: the same after.
        plan: what was allowed to move.

    Raises:
        PlanError: the plan was made for another network than the base.
    """
    rules = rules_of(plan, base)
    tensors, moved = [], dict[str, set[int]]()
    for name in {**base, **tuned}:
        rule = rule_for(name, rules, base, tuned)
        if name in base and name in tuned:
            record, channels = _both(name, rule, base[name], tuned[name])
            moved.setdefault(record.layer or "", set()).update(channels)
        else:
            record = _one(name, rule, base.get(name), tuned.get(name))
        tensors.append(record)
    by_layer = _by_layer(tensors)
    drift = [
        _drift(entry, by_layer.get(entry.layer.name, []), moved.get(entry.layer.name, set()))
        for entry in plan.entries
    ]
    return Comparison(tuple(tensors), tuple(drift))


def _one(name: str, rule: Rule, before: Tensor | None, after: Tensor | None) -> TensorRecord:
    """A tensor that only one of the states has."""
    state: State = "added" if before is None else "removed"
    tensor = after if before is None else before
    assert tensor is not None
    return TensorRecord(
        name, rule.layer, rule.kind, state, _dtype(tensor), _sizes(tensor), tensor.numel(), 0, (), 0, 0
    )


def _both(name: str, rule: Rule, before: Tensor, after: Tensor) -> tuple[TensorRecord, set[int]]:
    """The record, and the channels with an entry that moved and was allowed to."""
    if before.shape != after.shape:
        sizes = f"{_sizes(before)} > {_sizes(after)}"
        count = before.numel()
        record = TensorRecord(
            name, rule.layer, rule.kind, "reshaped", _dtype(before), sizes, count, count, (), 0, 0
        )
        return record, set()
    recast = before.dtype != after.dtype
    dtypes = f"{_dtype(before)} > {_dtype(after)}" if recast else _dtype(before)
    if recast:  # whether it is at least the same number, as far as the new type can tell
        before = before.to(after.dtype)
    changed = differing(before, after)
    broken, moved = changed & ~rule.movable, changed & rule.movable
    state: State = "recast" if recast else "changed" if changed.any() else "unchanged"
    if broken.any() and not recast and _is_permuted(before, after, changed, broken):
        state = "permuted"
    record = TensorRecord(
        name,
        rule.layer,
        rule.kind,
        state,
        dtypes,
        _sizes(before),
        frozen=int((~rule.movable).sum()),
        frozen_changed=int(broken.sum()),
        channels=tuple(_channels(rule.rows, broken)[:MAX_CHANNELS]),
        trainable=int(rule.movable.sum()),
        trainable_changed=int(moved.sum()),
        **_distance(before[rule.movable], after[rule.movable]),
    )
    return record, set(_channels(rule.rows, moved))


def _channels(rows: ParameterRows, mask: Tensor) -> list[int]:
    """The channels with an entry in the mask, ascending."""
    owner = rows.owner()
    shared = [axis for axis, stride in enumerate(owner.stride()) if stride == 0]
    reduced = mask.any(dim=shared, keepdim=True) if shared else mask
    found: list[int] = owner[tuple(slice(0, size) for size in reduced.shape)][reduced].unique().tolist()
    return found


def _distance(before: Tensor, after: Tensor) -> dict[str, float | None]:
    """Largest and root mean square change of these entries."""
    if not before.numel():
        return {"largest": 0.0, "rms": 0.0}
    kind = torch.complex128 if before.is_complex() else torch.float64
    change = (after.to(kind) - before.to(kind)).abs()
    change[~differing(before, after)] = 0  # an infinity or NaN that stayed did not move
    return {"largest": _finite(change.max()), "rms": _finite(change.square().mean().sqrt())}


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _is_permuted(before: Tensor, after: Tensor, changed: Tensor, broken: Tensor) -> bool:
    """Whether the rows that changed, or the frozen ones of them, are the same rows in another order.

    Rows along the first axis, or along the second: a permutation of filters shows in the next layer's channels.
    """
    for axis in range(min(before.ndim, 2)):
        for mask in (changed, broken):
            rows = mask.movedim(axis, 0).flatten(1).any(1) if mask.ndim > 1 else mask
            if _rows(before, axis, rows) == _rows(after, axis, rows):
                return True
    return False


def _rows(tensor: Tensor, axis: int, which: Tensor) -> Counter[bytes]:
    rows = as_bits(torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).movedim(
        axis, 0
    )[which]
    return Counter(row.tobytes() for row in rows.contiguous().numpy())


def _by_layer(tensors: list[TensorRecord]) -> dict[str, list[TensorRecord]]:
    found: dict[str, list[TensorRecord]] = {}
    for record in tensors:
        found.setdefault(record.layer or "", []).append(record)
    return found


def _drift(entry: LayerPlan, tensors: list[TensorRecord], moved: set[int]) -> LayerDrift:
    parameters = [record for record in tensors if record.kind == "parameter"]
    largest = [record.largest for record in parameters]
    squares = [None if r.rms is None else r.trainable * r.rms**2 for r in parameters]
    count = sum(record.trainable for record in parameters)
    return LayerDrift(
        entry.layer.name,
        entry.layer.type,
        entry.layer.channels,
        entry.trainable,
        sum(trains and channel in moved for channel, trains in enumerate(entry.mask)),
        sum(record.frozen_changed for record in tensors),
        None if None in largest else max((value for value in largest if value is not None), default=0.0),
        None
        if None in squares
        else math.sqrt(sum(value for value in squares if value is not None) / max(count, 1)),
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sizes(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
