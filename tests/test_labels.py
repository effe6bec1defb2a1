"""Interned sets: unions and reductions of label tensors against plain Python sets, element by element."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from tgdsurgery.mapping.labels import EMPTY, LabelTable, collapse

WRITERS = 5


def drawn_labels(table: LabelTable, members: list[list[int]], shape: tuple[int, ...]) -> torch.Tensor:
    single = table.block("layer", "conv", WRITERS).tolist()
    flat = [table.unite(single[index] for index in element) for element in members]
    return torch.tensor(flat, dtype=torch.int64).reshape(shape)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[LabelTable, torch.Tensor, torch.Tensor]:
    """Two label tensors that broadcast against each other."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    other = tuple(draw(st.sampled_from([1, size])) for size in shape)
    element = st.lists(st.integers(0, WRITERS - 1), max_size=3)
    table = LabelTable()
    tensors = [
        drawn_labels(table, draw(st.lists(element, min_size=n, max_size=n)), sizes)
        for sizes in (shape, other)
        for n in [torch.Size(sizes).numel()]
    ]
    return table, tensors[0], tensors[1]


@given(pairs())
def test_union_is_the_union_of_sets(drawn: tuple[LabelTable, torch.Tensor, torch.Tensor]) -> None:
    table, first, second = drawn
    united = table.union(first, second)
    assert united.shape == torch.broadcast_shapes(first.shape, second.shape)
    for a, b, both in zip(
        *(t.expand(united.shape).flatten().tolist() for t in (first, second, united)), strict=True
    ):
        assert table.members(both) == table.members(a) | table.members(b)


@given(pairs(), st.data())
def test_reduce_is_the_union_over_the_axes(
    drawn: tuple[LabelTable, torch.Tensor, torch.Tensor], data: st.DataObject
) -> None:
    table, labels, _ = drawn
    dims = sorted(data.draw(st.sets(st.integers(0, labels.dim() - 1))))
    reduced = table.reduce(labels, dims)
    assert list(reduced.shape) == [1 if d in dims else size for d, size in enumerate(labels.shape)]
    expected: dict[tuple[int, ...], frozenset[int]] = {}
    for place in itertools.product(*(range(size) for size in labels.shape)):
        kept = tuple(0 if d in dims else index for d, index in enumerate(place))
        expected[kept] = expected.get(kept, frozenset()) | table.members(int(labels[place]))
    for place, members in expected.items():
        assert table.members(int(reduced[place])) == members


def test_large_tensors_of_few_labels_are_united_slice_by_slice() -> None:
    """As with a class token: of many tokens two are different."""
    table = LabelTable()
    first, last, own = (table.block("layer", name, 60) for name in ("first", "last", "own"))
    tokens = torch.stack([first, *[last] * 99, first])  # over 4096 of them
    united = table.union(tokens, own)
    for token in (0, 1, 57, 100):
        of = first if token in (0, 100) else last
        assert torch.equal(united[token], table.union(of, own))
    assert torch.equal(table.reduce(united, [0])[0], table.union(table.union(first, last), own))
    everything = table.reduce(united, [0, 1])
    assert table.members(int(everything)) == frozenset(range(180))
    mixed = torch.randint(2**30, 2**30 + 180, (70, 70), generator=torch.Generator().manual_seed(0))
    again = table.union(mixed, mixed.t())
    for row, column in ((0, 0), (3, 5), (69, 2)):
        assert table.members(int(again[row, column])) == table.members(
            int(mixed[row, column])
        ) | table.members(int(mixed[column, row]))


@given(pairs())
def test_collapse_keeps_every_label(drawn: tuple[LabelTable, torch.Tensor, torch.Tensor]) -> None:
    _, labels, _ = drawn
    assert torch.equal(collapse(labels).expand(labels.shape), labels)


def test_equal_sets_have_equal_labels() -> None:
    table = LabelTable()
    a, b, c = table.block("row", "weight", 3).tolist()
    assert table.unite([table.unite([a, b]), c]) == table.unite([c, table.unite([b, a]), a])
    assert table.unite([]) == EMPTY
