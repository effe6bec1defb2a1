"""The retrained rows as a small file on top of a base network: what one patient or scanner needs, kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from tgdsurgery.core.bits import differing
from tgdsurgery.core.copying import copy_model
from tgdsurgery.core.errors import CheckpointError, RewriteError
from tgdsurgery.core.plan import TGDPlan, check_share
from tgdsurgery.core.tables import counted
from tgdsurgery.storage.delta_entries import (
    Entries,
    check_base,
    check_values,
    entries_of,
    fingerprint,
    listed,
    movable_values,
    named_in,
    plain_network,
    state_of,
    with_values,
)
from tgdsurgery.storage.delta_file import Delta, read_delta, write_delta
from tgdsurgery.surgery.remove import remove_tgd
from tgdsurgery.surgery.tgd_network import plan_of


def save_delta(
    tgd_model: nn.Module,
    path: str | Path,
    *,
    base: nn.Module | None = None,
    when: Mapping[str, str] | None = None,
) -> None:
    """Write what a TGD network has learnt, without the base network it was made from.

    Args:
        tgd_model: what `apply_tgd` returned, in either form, trained; may be wrapped in DDP, DataParallel or
            torch.compile. It is not touched.
        path: a .safetensors file; replaced only when all is written.
        base: the network that `apply_tgd` was given; its rows are stored too. That doubles the file, and lets
            `tgd delta remove` turn an adapted checkpoint back into the base.
        when: tags of a scan and their values, by DICOM keyword: `choose_delta` picks the file for scans that have
            all of them.

    Raises:
        RewriteError: `tgd_model` is not a TGD network; or a layer was replaced, pruned or added after apply_tgd.
        CheckpointError: the file cannot be written, the network has state that is not a tensor, `base` is another
            network, or a condition is none.

    Example:
        >>> import tempfile, torch
        >>> from tgdsurgery import apply_tgd, remove_tgd
        >>> _ = torch.manual_seed(0)
        >>> base = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))
        >>> tgd = apply_tgd(base, phi=0.3)
        >>> with torch.no_grad():
        ...     for parameter in tgd.parameters():
        ...         _ = parameter.add_(1)  # in place of training
        >>> file = Path(tempfile.mkdtemp()) / "patient.safetensors"
        >>> save_delta(tgd, file)
        >>> adapted = load_delta(base, file)
        >>> torch.equal(adapted[0].weight, remove_tgd(tgd)[0].weight)
        True
    """
    plan = plan_of(tgd_model)
    plain = remove_tgd(tgd_model)
    _refuse_added(plain, plan)
    entries = entries_of(state_of(plain), plan, named_in(plain))
    before = None
    if base is not None:
        net = plain_network(base)
        before = entries_of(state_of(net), plan, named_in(net))
    write_delta(made(entries, plan, before=before, when=when or {}, reversible=base is not None), Path(path))


def load_delta(base_model: nn.Module, path: str | Path, scale: float = 1.0) -> nn.Module:
    """A copy of the base network with the retrained rows of a delta put in.

    Bit for bit the network that `remove_tgd` made of the one that was saved. Deltas can be stacked: what this
    returns can be the base of the next one. Only buffers that are not in the `state_dict` stay the base's.

    Args:
        base_model: the plain network that `apply_tgd` was given; wrappers are looked through. It is not touched.
        path: a file that `save_delta` wrote. No code in it is run.
        scale: how far to go from the base (0) to the adapted network (1), both of which come bit for bit. Between
            them, each retrained entry is base + scale * (adapted - base), computed in double precision and then
            rounded to its dtype; entries that training left alone stay bit for bit. Whole numbers, such as a batch
            norm's count of batches, are the adapted network's unless scale is 0.

    Raises:
        CheckpointError: the file is missing, damaged or no delta; or what is frozen in the plan is not, bit for
            bit, what it was in the network the delta was made from.
        PlanError: scale is not a number from 0 to 1.
        RewriteError: the base is a TGD network itself, or cannot be copied.
    """
    check_share("scale", scale)
    delta, base = read_delta(Path(path)), plain_network(base_model)
    net = copy_model(base)
    state = state_of(net)
    entries = checked(entries_of(state, delta.plan, named_in(net)), delta, Path(path))
    net.load_state_dict(with_values(state, entries, delta.values, scale))
    return net


def checked(entries: Mapping[str, Entries], delta: Delta, path: Path) -> Mapping[str, Entries]:
    """The entries of a network, if the delta is for it.

    Raises:
        CheckpointError: it was made from another network, or is damaged.
    """
    check_base(fingerprint(entries), delta.base, path)
    check_values(entries, delta.values, path)
    return entries


def made(
    adapted: Mapping[str, Entries],
    plan: TGDPlan,
    *,
    before: Mapping[str, Entries] | None,
    when: Mapping[str, str],
    reversible: bool,
) -> Delta:
    """The delta of an adapted network.

    Args:
        adapted: the network's entries.
        plan: what was trained.
        before: those of the network it was adapted from, which then must agree in all that is frozen.
        when: the conditions under which it is chosen.
        reversible: whether the entries of `before` are kept.

    Raises:
        CheckpointError: frozen entries differ, or tensors.
    """
    found = fingerprint(adapted)
    if before is not None:
        base = fingerprint(before)
        if wrong := [name for name in {**base, **found} if base.get(name) != found.get(name)]:
            raise CheckpointError(
                f"In {counted(len(wrong), 'tensor')}, base and adapted network differ in what the plan freezes, in "
                f"shape or dtype, or one lacks it ({listed(wrong)}).",
                "Give the plan that it was trained with, and the base of that training.",
            )
    old = movable_values(before) if before is not None and reversible else None
    return Delta(movable_values(adapted), plan, found, old, when)


def taken_off(entries: Mapping[str, Entries], delta: Delta, path: Path) -> Mapping[str, Tensor]:
    """The base's movable values, for a network that has exactly the delta's.

    Raises:
        CheckpointError: the file does not hold them, or the network is not this delta's.
    """
    if delta.before is None:
        raise CheckpointError(
            f"{path} does not hold the base's rows.",
            "Take the base itself; to be able to take a delta off, write it with --reversible.",
        )
    found = movable_values(checked(entries, delta, path))
    wrong = [name for name, values in delta.values.items() if differing(found[name], values).any()]
    if wrong:
        raise CheckpointError(
            f"The rows of {path} are not those of the network in {counted(len(wrong), 'tensor')} ({listed(wrong)}).",
            "Give the checkpoint that was made with this delta, unscaled.",
        )
    return delta.before


def _refuse_added(plain: nn.Module, plan: TGDPlan) -> None:
    planned = {*plan.unmapped, *(rows.name for entry in plan.entries for rows in entry.layer.parameters)}
    if added := [name for name, _ in plain.named_parameters() if name not in planned]:
        layer = added[0].rpartition(".")[0] or added[0]
        raise RewriteError(
            f"{layer} was added after apply_tgd, and no base would have it.",
            f"Add it before, and use overrides={{{layer!r}: 'train'}}; or save what remove_tgd returns, whole.",
        )
