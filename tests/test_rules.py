"""Ops without a rule fail closed; users teach their own."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tgdsurgery import Producer, UnsupportedOpError, channel_map, register_rule
from tgdsurgery.mapping.rules.call import Call, Traced


@torch.library.custom_op("tgdtests::swap", mutates_args=())
def swap(x: Tensor) -> Tensor:
    """The two halves of the channels change places."""
    return x.roll(x.shape[1] // 2, 1)


@swap.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    """conv -> a custom op -> conv."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.op, self.last = nn.Conv2d(1, 4, 1), op, nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self.first(x)))


def fed_by(model: nn.Module, **settings: str) -> list[list[int]]:
    found = channel_map(model, torch.randn(1, 1, 4, 4), **settings)  # type: ignore[arg-type]
    assert all(producer.layer == "first" for reached in found.producers("last") for producer in reached)
    return [sorted(producer.channel for producer in reached) for reached in found.producers("last")]


def copying_op(name: str) -> Callable[[Tensor], Tensor]:
    """A fresh custom op without a rule."""

    def run(x: Tensor) -> Tensor:
        return x.clone()

    op = torch.library.custom_op(f"tgdtests::{name}", run, mutates_args=())
    op.register_fake(torch.empty_like)
    return lambda x: op(x)


def test_unknown_op_is_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedOpError, match=r"tgdtests\.nameless.*register_rule\(\"tgdtests::nameless\""
    ):
        fed_by(Custom(copying_op("nameless")))


def test_mix_keeps_everything_and_says_so() -> None:
    model = Custom(copying_op("mixed"))
    assert fed_by(model, on_unknown="mix") == [[0, 1, 2, 3]] * 4
    found = channel_map(model, torch.randn(1, 1, 4, 4), on_unknown="mix")
    assert found.mixed == ("tgdtests.mixed.default",)


def test_unknown_op_on_the_network_input_needs_no_rule() -> None:
    op = copying_op("early")

    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(op(x))

    assert channel_map(Early(), torch.randn(1, 1, 4, 4)).producers("conv") == (frozenset(),)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("pointwise", [[0], [1], [2], [3]]), ("mix", [[0, 1, 2, 3]] * 4)],
)
def test_registered_kinds(kind: str, expected: list[list[int]]) -> None:
    op = copying_op(f"as_{kind}")
    register_rule(f"tgdtests::as_{kind}", kind)  # type: ignore[arg-type]
    assert fed_by(Custom(op)) == expected


def test_registered_movement_is_run_on_the_labels() -> None:
    register_rule(torch.ops.tgdtests.swap, "movement")
    assert fed_by(Custom(lambda x: swap(x))) == [[2], [3], [0], [1]]


def test_registered_function() -> None:
    op = copying_op("pairs")

    def rule(call: Call, x: Traced) -> Tensor:
        return call.table.union(x.labels, x.labels.flip(1))

    register_rule(torch.ops.tgdtests.pairs.default, rule)
    assert fed_by(Custom(op)) == [[0, 3], [1, 2], [1, 2], [0, 3]]


class Picking(nn.Module):
    """The input decides which channel goes where."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        order = y.mean((0, 2, 3)).argsort()
        return self.last(y[:, order])


def test_indices_that_the_input_decides_mix() -> None:
    found = channel_map(Picking(), torch.randn(1, 1, 4, 4))
    everything = {Producer("first", channel) for channel in range(3)}
    assert [set(reached) for reached in found.producers("last")] == [everything] * 3


def places(y: Tensor) -> Tensor:
    """Indices of channel 0, for `scatter`."""
    return torch.zeros(y.shape[0], 1, *y.shape[2:], dtype=torch.int64)


def five_written(y: Tensor) -> Tensor:
    whole = y.long()
    whole[:, torch.tensor([1])] = torch.tensor(5)
    return whole.float()


def read_before_it_changes(y: Tensor) -> Tensor:
    order = torch.arange(4)
    read = y[:, order]
    order.add_(1).remainder_(4)
    return read


def read_after_it_changed(y: Tensor) -> Tensor:
    order = torch.arange(4)
    order.add_(1).remainder_(4)
    return y[:, order]


def into_new_room(y: Tensor) -> Tensor:
    out = torch.empty(0)
    torch.index_select(y, 1, torch.tensor([2, 0, 1, 3]), out=out)
    return out.relu()


def into_memory_with_a_view(y: Tensor) -> Tensor:
    out = torch.empty_like(y)
    view = out[:, :2]
    torch.mul(y, 2, out=out)
    out.add_(y.flip(1))
    return torch.cat([view, view], 1)


def into_memory_that_is_written_again(y: Tensor) -> Tensor:
    out = torch.empty_like(y)
    torch.mul(y, 2, out=out)
    out[:, 1] = 0
    return out


EVERYTHING = [[0, 1, 2, 3]] * 4
INDEXED: dict[str, tuple[Callable[[Tensor], Tensor], list[list[int]]]] = {
    **{
        f"{number} is written": (
            partial(lambda n, y: y.scatter(1, places(y), n), number),
            [[], [1], [2], [3]],
        )
        for number in (1.0, -1.0, 7.0, -math.inf)
    },
    "an integer is written": (five_written, [[0], [], [2], [3]]),
    "a channel is written": (lambda y: y.scatter(1, places(y), y[:, 2:3]), [[2], [1], [2], [3]]),
    "a channel is filled": (lambda y: y.index_fill(1, torch.tensor([2]), 3.0), [[0], [1], [], [3]]),
    "a computed number is filled in": (
        lambda y: y.index_fill(1, torch.tensor([2]), y[0, 3, 0, 0]),
        [[0], [1], [3], [3]],
    ),
    "a number is added": (
        lambda y: y.scatter(1, places(y), 1.0, reduce="add"),
        [[0], [1], [2], [3]],
    ),
    "a channel is multiplied": (
        lambda y: y.scatter(1, places(y), y[:, 2:3], reduce="multiply"),
        [[0, 2], [1], [2], [3]],
    ),
    "a channel is added": (lambda y: y.scatter_add(1, places(y), y[:, 2:3]), [[0, 2], [1], [2], [3]]),
    "a channel is added to another": (
        lambda y: y.index_add(1, torch.tensor([0]), y[:, 2:3]),
        [[0, 2], [1], [2], [3]],
    ),
    "many are added to one": (
        lambda y: y.index_add(1, torch.tensor([1, 3, 1, 1, 3]), y[:, [0, 0, 2, 3, 1]]),
        [[0], [0, 1, 2, 3], [2], [0, 1, 3]],
    ),
    "channels are added in place": (
        lambda y: y.new_zeros(y.shape).index_add_(1, torch.tensor([2, 0, 2]), y[:, 1:], alpha=2),
        [[2], [], [1, 3], []],
    ),
    "channels are averaged": (
        lambda y: y.index_reduce(1, torch.tensor([0, 0]), y[:, 2:], "mean", include_self=False),
        [[2, 3], [1], [2], [3]],
    ),
    "the largest is taken": (
        lambda y: y.scatter_reduce(1, places(y), y[:, 2:3], reduce="amax"),
        [[0, 2], [1], [2], [3]],
    ),
    "the largest of the others is taken": (
        lambda y: y.scatter_reduce(1, places(y), y[:, 2:], reduce="amax", include_self=False),
        [[2], [1], [2], [3]],
    ),
    "a channel is accumulated": (
        lambda y: y.index_put((torch.tensor(0), torch.tensor(1)), y[0, 2], accumulate=True),
        [[0], [1, 2], [2], [3]],
    ),
    "channels are accumulated": (
        lambda y: torch.ops.aten.index_put(y, [None, torch.tensor([1, 1])], y[:, 2:], True),
        [[0], [1, 2, 3], [2], [3]],
    ),
    "added where the input says": (
        lambda y: y.index_add(1, y.mean((0, 2, 3)).argsort()[:1], y[:, 2:3]),
        EVERYTHING,
    ),
    "a fixed choice": (
        lambda y: torch.where(torch.tensor([True, False, True, False])[:, None, None], y, y.flip(1)),
        [[0], [2], [2], [0]],
    ),
    "a fixed choice of a number": (
        lambda y: torch.where(torch.arange(4)[:, None, None] < 2, y, 0.0),
        [[0], [1], [], []],
    ),
    "a fixed mask is filled": (
        lambda y: y.masked_fill(torch.arange(4)[:, None, None] == 1, -math.inf),
        [[0], [], [2], [3]],
    ),
    "a fixed mask is filled in place": (
        lambda y: y.masked_fill_(torch.arange(4)[:, None, None] == 1, y[0, 2, 0, 0].clone()),
        [[0], [2], [2], [3]],
    ),
    "a choice that the features make": (
        lambda y: torch.where(y[:, :1] > 0, y, y.flip(1)),
        [[0, 3], [0, 1, 2], [0, 1, 2], [0, 3]],
    ),
    "a transform over space": (
        lambda y: torch.fft.irfft2(torch.fft.rfft2(y) * 2, s=y.shape[2:]),
        [[0], [1], [2], [3]],
    ),
    "a transform over space, in parts": (
        lambda y: torch.view_as_complex(torch.view_as_real(torch.fft.fft2(y.flip(1))) * 2).abs(),
        [[3], [2], [1], [0]],
    ),
    "a transform over channels": (lambda y: torch.fft.fft(y, dim=1).real, EVERYTHING),
    "a mask that is fixed": (
        lambda y: y.masked_scatter(torch.tensor([True, False, True, False])[:, None, None], y.flip(1)),
        [[3], [1], [2], [3]],
    ),
    "an order that changes later": (read_before_it_changes, [[0], [1], [2], [3]]),
    "an order that has changed": (read_after_it_changed, [[1], [2], [3], [0]]),
    "an order by chance": (lambda y: y[:, torch.randperm(4)], EVERYTHING),
    "a choice by chance": (lambda y: torch.cat([y, y], 1)[:, torch.rand(8) < 2][:, :4], EVERYTHING),
    "out= with new room": (into_new_room, [[2], [0], [1], [3]]),
    "out= behind a view": (into_memory_with_a_view, [[0, 3], [1, 2], [0, 3], [1, 2]]),
    "out= and written again": (into_memory_that_is_written_again, [[0], [], [2], [3]]),
    "numbers of repeats": (
        lambda y: y.repeat_interleave(y.mean((0, 2, 3)).abs().long() + 1, 1)[:, :4],
        EVERYTHING,
    ),
}


@pytest.mark.filterwarnings("ignore:The reduce argument|index_reduce")
@pytest.mark.parametrize(("op", "expected"), INDEXED.values(), ids=INDEXED)
def test_numbers_are_no_labels(op: Callable[[Tensor], Tensor], expected: list[list[int]]) -> None:
    assert fed_by(Custom(op)) == expected


class OrderedByParameter(nn.Module):
    """What a parameter decides does not depend on the input; it does depend on the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)
        self.order = nn.Parameter(torch.tensor([0.3, 0.1, 0.4, 0.2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)[:, self.order.argsort()])


def test_an_order_by_a_parameter_is_its_own() -> None:
    found = channel_map(OrderedByParameter(), torch.randn(1, 1, 4, 4))
    assert [len(filters) for filters in found.producers("last")] == [4] * 4
    assert [len(channel_layers) for channel_layers in found.channel_layers("last")] == [4] * 4


class Prefixed(nn.Module):
    """A mask that the input decides, behind a fixed one of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 3, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        always = torch.ones(x.shape[0], 1, 1, 1, dtype=torch.int64)
        mask = torch.cat([always, self.gate(x.mean((2, 3), keepdim=True)).long()], 1)
        return self.last(self.first(x) * mask)


def test_fixed_whole_numbers_are_no_labels() -> None:
    reached = channel_map(Prefixed(), torch.randn(1, 1, 4, 4)).producers("last")
    by_gate = [{Producer("first", c), Producer("gate", c - 1)} for c in (1, 2, 3)]
    assert [set(producers) for producers in reached] == [{Producer("first", 0)}, *by_gate]


WRONG = {
    "numbers of its own": (lambda call, x: x.labels + 2**29, "returns numbers that are no labels"),
    "a wrong shape": (
        lambda call, x: x.labels[:, :1, :2],
        "returns labels of shape .*1, 1, 2, 4.* for an output",
    ),
    "nothing": (lambda call, x: None, "returns None, which are no labels"),
    "floats": (lambda call, x: x.labels.float(), "returns labels of torch.float32"),
    "an error": (lambda call, x: 1 / 0, "fails with ZeroDivisionError: division by zero"),
    "another signature": (lambda x: x.labels, "fails with TypeError"),
}


@pytest.mark.parametrize(("rule", "what"), WRONG.values(), ids=WRONG)
def test_a_wrong_rule_is_a_typed_error(rule: Callable[..., object], what: str) -> None:
    op = copying_op("wrong")
    register_rule("tgdtests::wrong", rule)
    place = r"op tgdtests\.wrong\.default \(node wrong_default, in module 'the model itself'\)"
    with pytest.raises(
        UnsupportedOpError, match=f"{place} {what}.*returns int64 labels.*custom_ops.md"
    ) as raised:
        fed_by(Custom(op))
    assert isinstance(raised.value.__cause__, Exception) == ("fails" in what)


@pytest.mark.parametrize("result", [(0,), "one", None, (0, 0, 0), (0.0, 0.0)])
def test_a_rule_for_several_outputs_has_labels_for_each(result: object) -> None:
    @torch.library.custom_op("tgdtests::two", mutates_args=())
    def two(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.clone(), x.clone()

    def rule(call: Call, x: Traced) -> object:
        if not isinstance(result, tuple):
            return result
        return tuple(x.labels.to(torch.tensor(part).dtype) for part in result)

    register_rule(two, rule)
    with pytest.raises(UnsupportedOpError, match=r"rule of the op tgdtests\.two"):
        fed_by(Custom(lambda x: two(x)[0]))
    register_rule(two, lambda call, x: (x.labels, x.labels.flip(1)))
    assert fed_by(Custom(lambda x: two(x)[1])) == [[3], [2], [1], [0]]


def test_a_rule_for_an_op_that_only_writes_says_what_it_writes() -> None:
    @torch.library.custom_op("tgdtests::double_", mutates_args=("x",))
    def double_(x: Tensor) -> None:
        x.mul_(2)

    def doubled(x: Tensor) -> Tensor:
        x = x.clone()
        double_(x)
        return x

    register_rule(double_, lambda call, x: None)
    with pytest.raises(UnsupportedOpError, match=r"tgdtests\.double_.* returns None"):
        fed_by(Custom(doubled))
    register_rule(double_, lambda call, x: x.labels)
    assert fed_by(Custom(doubled)) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("op", ["tgdtests::nonexisting", "swap", "tgdtests::swap.default", len, None])
def test_a_rule_needs_an_op_that_is_there(op: object) -> None:
    with pytest.raises(UnsupportedOpError, match=r"There is no op .*without an overload"):
        register_rule(op, "mix")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["pointwize", None, 3, ["mix"]])
def test_a_rule_is_one_of_three_words_or_a_function(rule: object) -> None:
    with pytest.raises(
        UnsupportedOpError, match=r"tgdtests::swap is .*'pointwise', 'movement', 'mix', or a function"
    ):
        register_rule("tgdtests::swap", rule)  # type: ignore[arg-type]


def test_an_unknown_op_can_be_left_out_by_operating_on_a_part() -> None:
    with pytest.raises(UnsupportedOpError, match=r"model\.backbone = apply_tgd\(model\.backbone"):
        fed_by(Custom(lambda x: x * torch.histc(x, 4)[0]))


class Finding(nn.Module):
    """Places that the features pick, and a layer that reads what is there."""

    def __init__(self, least: float, *, reads: bool = True) -> None:
        super().__init__()
        self.first, self.other, self.last = nn.Conv2d(1, 2, 1), nn.Linear(2, 2), nn.Linear(2, 1)
        self.least, self.reads = least, reads

    def forward(self, x: Tensor) -> list[Tensor]:
        places = self.other(self.first(x).flatten(2).transpose(1, 2)[0])
        found = (places.sum(1) > self.least).nonzero()[:, 0]
        filled = torch.zeros_like(places)
        filled[found] = places[found] * 2
        return [self.last(filled if self.reads else places), filled]


def test_what_is_found_may_be_anything() -> None:
    found = channel_map(Finding(-math.inf), torch.randn(1, 1, 4, 4))
    assert [sorted(p.channel for p in reached) for reached in found.producers("last")] == [[0, 1]] * 2


def test_where_numbers_leave_nothing_has_to_be_found() -> None:
    found = channel_map(Finding(math.inf, reads=False), torch.randn(1, 1, 4, 4))
    assert [sorted(reached) for reached in found.producers("last")] == [
        [Producer("other", c)] for c in (0, 1)
    ]


@pytest.mark.parametrize("on_unknown", ["raise", "mix"])
def test_a_layer_that_would_read_what_is_found_needs_something_to_be_found(on_unknown) -> None:
    with pytest.raises(
        UnsupportedOpError, match=r"nothing is picked by the op aten.nonzero.*module 'last'.*model\.backbone"
    ):
        channel_map(Finding(math.inf), torch.randn(1, 1, 4, 4), on_unknown=on_unknown)
