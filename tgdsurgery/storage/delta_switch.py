"""Several deltas over one network in memory, of which one at a time is put on, in place."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from tgdsurgery.core.errors import RewriteError
from tgdsurgery.storage.delta_entries import (
    Entries,
    check_base,
    check_values,
    entries_of,
    fingerprint,
    listed,
    named_in,
    plain_network,
    state_of,
)
from tgdsurgery.storage.delta_file import read_delta

Index: TypeAlias = "tuple[Any, ...]"


class Rows(NamedTuple):
    """Some entries of a tensor: where they are, and what is written there.

    Args:
        places: index of the tensor, on its device.
        values: of the shape of `tensor[places]`, on its device.
    """

    places: Index
    values: Tensor


class DeltaSwitch:
    """Several deltas over one base network, switched in the network itself.

    One network and many small sets of rows are in memory, on the network's device. Inside `with deltas(name):` the
    network is the adapted one, for all that use it; after it, also after an error, it is the base again. Rows are
    copied in both directions and never computed, so both are exact, bit for bit. Parameters stay the same objects in
    the same memory: an optimizer, a compiled graph or a CUDA graph that uses them goes on as before.

    One delta is on at a time. To enter a block while another one is open, in this or in another thread, is an error:
    a thread that waited for its turn could still not keep the others from running the network as it is now.

    The base must not change. A weight that is written to, between blocks or inside one, is found by torch's version
    counters and is an error, at the next block or at the end of this one; what is written past them (`tensor.data`) is
    not found. Buffers, such as statistics that a forward in training mode moves, are saved whole, and come back at the
    end of a block; between blocks a batch norm's count of batches tells that they moved.

    Args:
        base_model: the plain network that `apply_tgd` was given, where it will run; wrappers are looked through.
            Nothing is written to it before the first block.
        deltas: files that `save_delta` wrote, by any name. Each is checked as `load_delta` does it.

    Raises:
        CheckpointError: a file is missing, damaged, no delta, or made from another network.
        RewriteError: the base is a TGD network, or its `state_dict` holds copies and not the tensors themselves.

    Example:
        >>> import tempfile, torch
        >>> from tgdsurgery import apply_tgd, save_delta
        >>> _ = torch.manual_seed(0)
        >>> base = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3)).eval()
        >>> tgd, file = apply_tgd(base, phi=0.3), Path(tempfile.mkdtemp()) / "scanner_b.safetensors"
        >>> with torch.no_grad():
        ...     for parameter in tgd.parameters():
        ...         _ = parameter.add_(1)  # in place of training
        >>> save_delta(tgd, file)
        >>> x, deltas = torch.ones(1, 1, 8, 8), DeltaSwitch(base, {"scanner_b": file})
        >>> before = base(x)
        >>> with deltas("scanner_b"):
        ...     torch.equal(base(x), before), torch.equal(base(x), tgd(x))
        (False, True)
        >>> torch.equal(base(x), before)
        True
    """

    def __init__(self, base_model: nn.Module, deltas: Mapping[str, str | Path]) -> None:
        self._net = plain_network(base_model)
        self._lock = threading.Lock()
        self._active: str | None = None
        state = state_of(self._net)
        own = {id(tensor) for _, tensor in named_in(self._net)}
        if copies := [name for name, tensor in state.items() if id(tensor) not in own]:
            raise RewriteError(
                f"The state_dict of this {type(self._net).__name__} holds copies ({listed(copies)}).",
                "Use load_delta, which makes an adapted network.",
            )
        self._tensors = {id(tensor): tensor for tensor in state.values()}
        self._deltas: dict[str, dict[int, Rows]] = {}
        self._base: dict[int, Rows] = {}
        with torch.no_grad():
            self._load(state, {name: Path(path) for name, path in deltas.items()})
        self._stamps = {key: _stamp(tensor) for key, tensor in self._tensors.items()}

    def _load(self, state: Mapping[str, Tensor], files: Mapping[str, Path]) -> None:
        """Check and read all deltas, and keep what the base has where one of them writes, and in buffers."""
        buffers = [tensor for tensor in self._tensors.values() if _is_buffer(tensor)]
        union = {id(tensor): torch.tensor(True).expand(tensor.shape) for tensor in buffers}
        plans: dict[str, _Places] = {}
        for name, path in files.items():
            delta = read_delta(path)
            if delta.plan.digest not in plans:  # patients share a plan, mostly
                plans[delta.plan.digest] = _Places(entries_of(state, delta.plan, named_in(self._net)))
            places = plans[delta.plan.digest]
            check_base(places.found, delta.base, path)
            check_values(places.entries, delta.values, path)
            self._deltas[name] = {
                id(tensor): Rows(index, delta.values[entry].to(tensor.device).view(tensor[index].shape))
                for entry, (tensor, index) in places.indices.items()
            }
            for entry, (tensor, _) in places.indices.items():
                movable = places.entries[entry].movable
                union[id(tensor)] = union.get(id(tensor), movable) | movable
        for key, movable in union.items():
            tensor = self._tensors[key]
            index = _index(movable, tensor.device)
            self._base[key] = Rows(index, tensor[index].clone())

    @property
    def active(self) -> str | None:
        """The name of the delta that is on; None for the base."""
        return self._active

    @property
    def nbytes(self) -> int:
        """Memory that is held beside the network, in bytes: all rows, the base's too, and where they belong."""
        held = [rows for delta in (*self._deltas.values(), self._base) for rows in delta.values()]
        tensors = [part for rows in held for part in (*rows.places, rows.values) if isinstance(part, Tensor)]
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())

    @contextmanager
    def __call__(self, name: str) -> Iterator[nn.Module]:
        """Put a delta on for the length of a block, which gets the network.

        Raises:
            RewriteError: there is no such delta, another one is on, or the network was changed from outside.
        """
        if name not in self._deltas:
            raise RewriteError(f"There is no delta {name!r}.", f"There are: {listed(self._deltas, most=10)}.")
        if not self._lock.acquire(blocking=False):
            raise RewriteError(
                f"The delta {self._active!r} is on.", "Leave its block first; one delta is on at a time."
            )
        try:
            self._check_unchanged()
            self._active = name
            try:
                self._write(self._deltas[name])
                yield self._net
            finally:
                self._restore(self._deltas[name])
                self._active = None
            self._check_unchanged()
        finally:
            self._lock.release()

    @torch.no_grad()
    def _write(self, delta: Mapping[int, Rows]) -> None:
        for key, (places, values) in delta.items():
            tensor = self._tensors[key]
            tensor[places] = values
            self._stamps[key] = _stamp(tensor)

    @torch.no_grad()
    def _restore(self, delta: Mapping[int, Rows]) -> None:
        """The base's rows again, and its buffers. A weight that was written to meanwhile keeps its old stamp."""
        for key, (places, values) in self._base.items():
            tensor = self._tensors[key]
            buffer = _is_buffer(tensor)
            if key in delta or buffer:
                written = not buffer and _stamp(tensor) != self._stamps[key]
                tensor[places] = values
                if not written:
                    self._stamps[key] = _stamp(tensor)

    def _check_unchanged(self) -> None:
        state = state_of(self._net)
        changed = [
            name
            for name, tensor in state.items()
            if id(tensor) not in self._stamps or self._stamps[id(tensor)] != _stamp(tensor)
        ]
        if changed or len({id(tensor) for tensor in state.values()}) != len(self._stamps):
            raise RewriteError(
                f"The network was changed or moved after DeltaSwitch saw it ({listed(changed) or 'tensors are gone'}).",
                "Load the base's weights again, where it will run, and make a new DeltaSwitch.",
            )


class _Places:
    """Where a plan lets a network's tensors move."""

    def __init__(self, entries: Mapping[str, Entries]) -> None:
        self.entries, self.found = entries, fingerprint(entries)

    @cached_property
    def indices(self) -> dict[str, tuple[Tensor, Index]]:
        """By name each tensor that may move, and where; only to be asked for once a delta was checked."""
        return {
            name: (tensor, _index(movable, tensor.device))
            for name, (tensor, movable) in self.entries.items()
            if movable.any()
        }


def _index(movable: Tensor, device: torch.device) -> Index:
    """Where a mask is True: everywhere, in rows along one axis, or entry by entry; in the order of `tensor[mask]`."""
    if movable.all():
        return (...,)
    for axis in range(movable.dim()):
        rows = movable.movedim(axis, 0).reshape(movable.shape[axis], -1)
        if torch.equal(rows.any(1), rows.all(1)):
            return (*[slice(None)] * axis, rows.any(1).nonzero().flatten().to(device))
    return tuple(places.to(device) for places in movable.nonzero(as_tuple=True))


def _is_buffer(tensor: Tensor) -> bool:
    return not isinstance(tensor, nn.Parameter)


def _stamp(tensor: Tensor) -> tuple[int, int]:
    """Another one if the tensor was written to or moved. Tensors made in inference mode do not count writes."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version
