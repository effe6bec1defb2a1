"""Several deltas over one base as a single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tgdsurgery.core.bits import differing
from tgdsurgery.core.errors import CheckpointError
from tgdsurgery.core.plan import LayerPlan, TGDPlan
from tgdsurgery.core.records import Layer
from tgdsurgery.storage.delta import checked, made
from tgdsurgery.storage.delta_entries import (
    Entries,
    Named,
    entries_of,
    listed,
    named_in,
    plain_network,
    state_of,
)
from tgdsurgery.storage.delta_file import Delta, read_delta, write_delta

Overlap = Literal["refuse", "first", "last"]
COUNTER = "num_batches_tracked"


def merge_deltas(
    base_model: nn.Module,
    paths: Sequence[str | Path],
    path: str | Path,
    *,
    overlap: Overlap = "refuse",
) -> None:
    """Write one delta that does what several do: values are copied, never computed.

    Its plan trains what any of theirs does. Two deltas overlap where both may write an entry and write other bits;
    equal bits are no conflict. Of a batch norm's count of batches, which every delta holds, the larger one is taken.

    Args:
        base_model: the plain network that all of them were made from; it is not touched.
        paths: two deltas or more.
        path: the merged one, a .safetensors file. It is chosen where the conditions of all hold, and can be taken
            off a checkpoint if all of them can.
        overlap: what happens where they overlap: "refuse", or take the value of the "first" or the "last" of them.

    Raises:
        CheckpointError: a file is damaged or made from another network; they overlap and are to be refused; their
            conditions contradict each other; or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from tgdsurgery import apply_tgd, load_delta, plan_tgd, save_delta
        >>> _ = torch.manual_seed(0)
        >>> base = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 3))
        >>> folder, plan = Path(tempfile.mkdtemp()), plan_tgd(base)
        >>> for name, frozen in {"a": "0", "b": "2"}.items():
        ...     tgd = apply_tgd(base, plan=plan.override({"0": "train", "2": "train", frozen: "freeze"}))
        ...     for parameter in tgd.parameters():
        ...         _ = parameter.data.add_(1)  # in place of training
        ...     save_delta(tgd, folder / f"{name}.safetensors")
        >>> merge_deltas(base, [folder / "a.safetensors", folder / "b.safetensors"], folder / "both.safetensors")
        >>> both = load_delta(base, folder / "both.safetensors")
        >>> [torch.equal(layer.weight, base[index].weight + 1) for index, layer in enumerate(both) if index in (0, 2)]
        [True, True]
    """
    net = plain_network(base_model)
    files = {Path(file): read_delta(Path(file)) for file in paths}
    write_delta(merged(state_of(net), files, overlap, list(named_in(net))), Path(path))


def merged(
    state: Mapping[str, Tensor],
    files: Mapping[Path, Delta],
    overlap: Overlap = "refuse",
    named: Named | None = None,
) -> Delta:
    """The deltas of several files as one; see `merge_deltas`.

    Args:
        state: of the base.
        files: the deltas and where they come from.
        overlap: what happens where they overlap.
        named: see `entries_of`; can be read more than once.
    """
    if not files or overlap not in get_args(Overlap):
        raise CheckpointError(
            f"{len(files)} deltas cannot be merged with overlap={overlap!r}.",
            f"Give one or more, and one of {', '.join(get_args(Overlap))}.",
        )
    plan = merged_plan([delta.plan for delta in files.values()])
    before = entries_of(state, plan, named)
    after = {name: tensor.detach().clone() for name, (tensor, _) in before.items()}
    written = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in after.items()}
    clashes: dict[str, int] = {}
    ordered = list(files.items())
    for file, delta in reversed(ordered) if overlap == "first" else ordered:
        entries = checked(entries_of(state, delta.plan, named), delta, file)
        for name, values in delta.values.items():
            clashes[name] = clashes.get(name, 0) + _put(
                name, values, entries[name], after[name], written[name]
            )
    if overlap == "refuse" and (names := [name for name, count in clashes.items() if count]):
        raise CheckpointError(
            f"The deltas write other values to {sum(clashes.values()):,} entries that they share "
            f"({listed(names)}).",
            "Say which one counts there: overlap='first' or 'last' (--overlap).",
        )
    changed = {name: Entries(after[name], movable) for name, (_, movable) in before.items()}
    return made(
        changed,
        plan,
        before=before,
        when=_conditions(files),
        reversible=all(delta.before is not None for delta in files.values()),
    )


def _put(name: str, values: Tensor, entry: Entries, after: Tensor, written: Tensor) -> int:
    """Write the values of one delta; how many entries had other values of an earlier one."""
    where = entry.movable.to(after.device)
    earlier = after[where].cpu()
    clash = differing(earlier, values) & written[entry.movable]
    if name.rpartition(".")[2] == COUNTER:
        values, clash = torch.maximum(values, earlier) if clash.any() else values, clash & False
    after[where] = values.to(after.device)
    written[entry.movable] = True
    return int(clash.sum())


def merged_plan(plans: Sequence[TGDPlan]) -> TGDPlan:
    """A plan that trains what any of these does; its settings and scores are those of the first.

    Raises:
        CheckpointError: the plans are of different networks.
    """
    first = plans[0]
    layers: dict[str, LayerPlan] = {}
    for plan in plans:
        for entry in plan.entries:
            known = layers.get(entry.layer.name)
            layers[entry.layer.name] = _united(known, entry) if known else entry
    mapped = {rows.name for entry in layers.values() for rows in entry.layer.parameters}
    unmapped = {name: count for plan in plans for name, count in plan.unmapped.items() if name not in mapped}
    return replace(
        first,
        entries=tuple(layers.values()),
        unmapped=unmapped,
        budget=None,
        flow=first.flow if all(plan.flow == first.flow for plan in plans) else "full",
        norm_stats="hold" if all(plan.norm_stats == "hold" for plan in plans) else "batch",
    )


def _united(one: LayerPlan, other: LayerPlan) -> LayerPlan:
    def shape(layer: Layer) -> object:
        return [
            (rows.name, rows.shape, rows.axis, rows.groups) for rows in layer.parameters
        ], layer.statistics

    if shape(one.layer) != shape(other.layer) or len(one.mask) != len(other.mask):
        raise CheckpointError(
            f"The deltas' plans are of different networks: {one.layer.name!r} differs.",
            "Merge deltas over one base.",
        )
    parameters = tuple(
        replace(a, requires_grad=a.requires_grad or b.requires_grad)
        for a, b in zip(one.layer.parameters, other.layer.parameters, strict=True)
    )
    mask = tuple(a or b for a, b in zip(one.mask, other.mask, strict=True))
    return replace(one, layer=replace(one.layer, parameters=parameters), mask=mask)


def _conditions(files: Mapping[Path, Delta]) -> dict[str, str]:
    when: dict[str, str] = {}
    for file, delta in files.items():
        for tag, value in delta.when.items():
            if when.setdefault(tag, value) != value:
                raise CheckpointError(
                    f"{file} is for {tag}={value}, and another one for {tag}={when[tag]}.",
                    "Merge deltas that are chosen for the same scans.",
                )
    return when
