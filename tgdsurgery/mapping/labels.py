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


# Up to so many labels Python is faster than finding the distinct ones first.
_FEW = 4096


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
        self._pairs: dict[int, int] = {}  # two labels in one number -> their union
        self._united: dict[
            tuple[torch.Size, bytes], Tensor
        ] = {}  # the same for tensors of pairs, by their content
        self._rows: dict[bytes, int] = {}  # labels -> their union
        self._blocks: dict[tuple[str, str, int], tuple[Block, Tensor]] = {}
        self._block_of: list[Block] = []
        self.unknown: list[Block] = []  # those of kind "nothing"
        self._members = 0

    def members(self, label: int) -> frozenset[int]:
        """The numbers of the writers in the set that a label stands for."""
        return frozenset((label - SINGLE,)) if label >= SINGLE else self._sets[label]

    def knows(self, labels: Tensor) -> bool:
        """Whether all of these numbers are labels."""
        if not labels.numel():
            return True
        lowest, highest = (int(end) for end in torch.aminmax(unexpanded(labels)))
        if lowest < 0 or highest >= SINGLE + len(self._block_of):
            return False
        sets = len(self._sets)
        return highest < sets or lowest >= SINGLE or not bool(((labels >= sets) & (labels < SINGLE)).any())

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
        first, second = torch.broadcast_tensors(first, second)
        shape = first.shape
        first, second = torch.broadcast_tensors(collapse(first), collapse(second))
        if torch.equal(first, second) or not bool(second.any()):
            return first.expand(shape)
        if not bool(first.any()):
            return second.expand(shape)
        return self._unite_pairs((first << 32) | second).expand(shape)

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
            rows, _ = _distinct(rows, 1)
            rows, which = _distinct(rows, 0)
            small = torch.tensor([self._unite_row(row) for row in rows.contiguous()])[which].reshape(shape)
            for dim in over:
                small = small.unsqueeze(dim)
        return small.expand(kept_shape)

    def unite(self, labels: Iterable[int]) -> int:
        """One label: the union of the given ones."""
        distinct = set(labels)
        alone = [label - SINGLE for label in distinct if label >= SINGLE]
        return self._intern(
            frozenset(alone).union(*(self._sets[label] for label in distinct if label < SINGLE))
        )

    def mix(self, *tensors: Tensor) -> Tensor:
        """One label (a 0-d tensor): everything that is in the given tensors."""
        small = [collapse(tensor).flatten() for tensor in tensors]
        few = (labels if labels.numel() <= _FEW else labels.unique() for labels in small)
        return torch.tensor(self.unite(label for labels in few for label in labels.tolist()))

    def _unite_pairs(self, pairs: Tensor) -> Tensor:
        """The union of each pair of labels, which are two in one number."""
        if pairs.numel() > _FEW:
            for dim, size in enumerate(pairs.shape):
                distinct, which = _distinct(pairs, dim)
                if distinct.shape[dim] < size:
                    return self._unite_pairs(distinct).index_select(dim, which)
            return self._unite_each(pairs)
        # The runs of a model are mostly alike, so that the same is united again.
        content = pairs.shape, pairs.numpy().tobytes()
        if content not in self._united:
            self._united[content] = self._unite_each(pairs)
        return self._united[content]

    def _unite_each(self, pairs: Tensor) -> Tensor:
        known, ids = self._pairs, self._ids
        united = []
        for pair in pairs.flatten().tolist():
            label = known.get(pair)
            if label is None:
                one, other = pair >> 32, pair & 0xFFFFFFFF
                if one >= SINGLE and other >= SINGLE:
                    members = frozenset((one - SINGLE, other - SINGLE))
                else:
                    members = self.members(one) | self.members(other)
                label = ids.get(members)
                label = known[pair] = self._new(members) if label is None else label
            united.append(label)
        return torch.tensor(united).view(pairs.shape)

    def _unite_row(self, row: Tensor) -> int:
        """The union of some labels, (L,)."""
        content = row.numpy().tobytes()
        if content not in self._rows:
            self._rows[content] = self.unite(row.tolist())
        return self._rows[content]

    def _intern(self, members: frozenset[int]) -> int:
        label = self._ids.get(members)
        return self._new(members) if label is None else label

    def _new(self, members: frozenset[int]) -> int:
        """The label of a set that has none yet, or of one writer alone."""
        if len(members) == 1:
            return SINGLE + next(iter(members))
        label = self._ids[members] = len(self._sets)
        self._sets.append(members)
        self._members += len(members)
        if self._members > MAX_MEMBERS:
            raise TableFullError
        return label


def _distinct(labels: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The distinct slices along an axis, and which of them each slice is."""
    slices = labels.movedim(dim, 0)
    whole = slices.numpy().tobytes()
    width = len(whole) // len(slices)
    contents = [whole[start : start + width] for start in range(0, len(whole), width)]
    numbers: dict[bytes, int] = {}
    which = [numbers.setdefault(content, len(numbers)) for content in contents]
    if len(numbers) < len(slices):
        first: dict[int, int] = {}
        for place, number in enumerate(which):
            first.setdefault(number, place)
        labels = labels.index_select(dim, torch.tensor(list(first.values())))
    return labels, torch.tensor(which)


def collapse(labels: Tensor) -> Tensor:
    """The same labels with every axis along which they do not change narrowed to length 1.

    >>> collapse(torch.tensor([[1, 2], [1, 2]]))
    tensor([[1, 2]])
    """
    labels = unexpanded(labels)
    for dim, size in enumerate(labels.shape):
        if size < 2:
            continue
        first = labels.narrow(dim, 0, 1)
        # The ends differ in most cases: a look at them spares the pass over all.
        if torch.equal(first, labels.narrow(dim, size - 1, 1)) and bool((labels == first).all()):
            labels = first
    return labels


def unexpanded(labels: Tensor) -> Tensor:
    """The same labels without the axes that were expanded; quicker than `collapse`."""
    strides = labels.stride()
    if 0 not in strides:
        return labels
    shape = [size if stride else min(size, 1) for size, stride in zip(labels.shape, strides, strict=True)]
    return labels.as_strided(shape, strides)


def any_in(labels: Tensor) -> bool:
    """Whether any element has a writer."""
    return bool(unexpanded(labels).any())
