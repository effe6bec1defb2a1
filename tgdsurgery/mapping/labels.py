"""Interned sets on integer tensors: every element of a label tensor stands for the set of writers behind it.

A writer is whoever can change what flows there: an output channel of a layer, or a row of a parameter.
Equal sets have equal ids, so that sets are compared, moved and broadcast as plain integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

EMPTY = 0


# Labels from here on are the sets of one writer, which nobody has to store: most labels are. A label has 31 bits, so
# that a pair of them fits in an int64.
SINGLE = 2**30


# A member takes some 60 bytes. The sets of a ViT-L have ten million; where everything mixes with everything
# (layer upon layer whose kernels are made from the input) there is no end to it.
MAX_MEMBERS = 50_000_000


class TableFullError(Exception):
    """The sets of one table have more than `MAX_MEMBERS` members together."""


Kind = Literal["layer", "row", "nothing"]


@dataclass(frozen=True)
class Block:
    """Writers that are numbered in a row: the channels of a layer, or the rows of a parameter.

    Args:
        kind: "layer" or "row"; "nothing" for a choice that picked no element, so that nobody knows who writes there.
        name: of the layer, or of the parameter (or group of parameters that share their rows), or where it was picked.
        start: number of the first writer.
        count: how many they are.
    """

    kind: Kind
    name: str
    start: int
    count: int


class LabelTable:
    """The interned sets behind the ids of all label tensors of one run. Id 0 is the empty set, `SINGLE` + w
    that of writer w alone.

    >>> table = LabelTable()
    >>> a, b = table.block("layer", "conv", 2)
    >>> both = table.union(a, b)
    >>> sorted(table.members(int(both)))
    [0, 1]
    >>> table.block_of(1).name
    'conv'
    """

    def __init__(self) -> None:
        self._sets: list[frozenset[int]] = [frozenset()]
        self._ids: dict[frozenset[int], int] = {frozenset(): EMPTY}
        self._united: dict[int, int] = {}  # two labels in one number -> their union
        self._blocks: dict[tuple[str, str, int], tuple[Block, Tensor]] = {}
        self._block_of: list[Block] = []
        self.unknown: list[Block] = []  # those of kind "nothing"
        self._members = 0

    def members(self, label: int) -> frozenset[int]:
        """The numbers of the writers in the set that a label stands for."""
        return frozenset((label - SINGLE,)) if label >= SINGLE else self._sets[label]

    def knows(self, labels: Tensor) -> bool:
        """Whether all of these numbers are labels."""
        small = collapse(labels)
        single = (small >= SINGLE) & (small < SINGLE + len(self._block_of))
        return bool((single | (small >= 0) & (small < len(self._sets))).all())

    def block_of(self, writer: int) -> Block:
        """The block that a writer's number belongs to."""
        return self._block_of[writer]

    @property
    def blocks(self) -> list[Block]:
        """All blocks, in the order of their writers' numbers."""
        return [block for block, _ in self._blocks.values()]

    def block(self, kind: Kind, name: str, count: int) -> Tensor:
        """One label per writer of a block, each the set of that writer alone; shape (count,).

        The same name and count give the same writers again.
        """
        if (kind, name, count) not in self._blocks:
            made = Block(kind, name, len(self._block_of), count)
            self._block_of += [made] * count
            self.unknown += [made] if kind == "nothing" else []
            self._blocks[kind, name, count] = made, torch.arange(count) + (SINGLE + made.start)
        return self._blocks[kind, name, count][1]

    def union(self, first: Tensor, second: Tensor) -> Tensor:
        """Element by element the union of two label tensors, which are broadcast against each other."""
        shape = torch.broadcast_shapes(first.shape, second.shape)
        first, second = torch.broadcast_tensors(collapse(first), collapse(second))
        if torch.equal(first, second) or not bool(second.any()):
            return first.expand(shape)
        if not bool(first.any()):
            return second.expand(shape)
        pairs, place = torch.unique((first << 32) | second, return_inverse=True)
        united = torch.tensor([self._unite_pair(pair) for pair in pairs.tolist()], dtype=torch.int64)
        return united[place].expand(shape)

    def reduce(self, labels: Tensor, dims: Sequence[int]) -> Tensor:
        """The union over `dims`, which stay as axes of length 1 (0-d tensors stay as they are)."""
        dims = sorted({dim % labels.dim() for dim in dims}) if labels.dim() else []
        kept_shape = [1 if dim in dims else size for dim, size in enumerate(labels.shape)]
        if not labels.numel():
            return torch.full(kept_shape, EMPTY)
        small = collapse(labels)
        over = [dim for dim in dims if small.shape[dim] > 1]
        if over:
            kept = [dim for dim in range(small.dim()) if dim not in over]
            rows = small.permute(*kept, *over).flatten(len(kept))
            shape, rows = rows.shape[:-1], rows.reshape(-1, rows.shape[-1])
            distinct, place = torch.unique(rows, dim=0, return_inverse=True)
            united = torch.tensor([self.unite(row) for row in distinct.tolist()], dtype=torch.int64)
            small = united[place].reshape(shape)
            for dim in over:
                small = small.unsqueeze(dim)
        return small.expand(kept_shape)

    def unite(self, labels: Iterable[int]) -> int:
        """One label: the union of the given ones."""
        return self._intern(frozenset().union(*map(self.members, set(labels))))

    def mix(self, *tensors: Tensor) -> Tensor:
        """One label (a 0-d tensor): everything that is in the given tensors."""
        return torch.tensor(self.unite(label for t in tensors for label in collapse(t).unique().tolist()))

    def _unite_pair(self, pair: int) -> int:
        label = self._united.get(pair)
        if label is None:
            label = self._united[pair] = self._intern(
                self.members(pair >> 32) | self.members(pair & 0xFFFFFFFF)
            )
        return label

    def _intern(self, members: frozenset[int]) -> int:
        if len(members) == 1:
            return SINGLE + next(iter(members))
        label = self._ids.setdefault(members, len(self._sets))
        if label == len(self._sets):
            self._sets.append(members)
            self._members += len(members)
            if self._members > MAX_MEMBERS:
                raise TableFullError
        return label


def collapse(labels: Tensor) -> Tensor:
    """The same labels with every axis along which they do not change narrowed to length 1.

    >>> collapse(torch.tensor([[1, 2], [1, 2]]))
    tensor([[1, 2]])
    """
    for dim, size in enumerate(labels.shape):
        if size < 2:
            continue
        first = labels.narrow(dim, 0, 1)
        if labels.stride(dim) == 0 or (
            # The ends differ in most cases: a look at them spares the pass over all.
            torch.equal(first, labels.narrow(dim, size - 1, 1)) and bool((labels == first).all())
        ):
            labels = first
    return labels
