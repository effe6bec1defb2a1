"""Networks with the user's own ops: refused without a rule, and like any other network with one.

Every op has a twin made of torch's own ops, which need no rule: maps, plans and gradients must be the twin's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.laws.subjects import assert_equal_tensors, in_both_forms, with_flags_of
from tests.oracles.interventions import assert_same_influence, producers_by_intervention
from tests.strategies.case import Case, randomise, scalar_loss
from tgdsurgery import (
    UnsupportedOpError,
    apply_tgd,
    channel_map,
    plan_tgd,
    register_rule,
    remove_tgd,
    verify,
)
from tgdsurgery.mapping.rules.call import Call, Traced

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def custom(name: str, twin: Callable[..., object]) -> Callable[..., object]:
    """The twin as an op that torch cannot look into, with fake tensors and gradients of its own."""
    op = torch.library.custom_op(f"tgdops::{name}", twin, mutates_args=())
    op.register_fake(twin)

    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = [leaf.detach().requires_grad_() for leaf in ctx.saved_tensors]
            outputs = twin(*inputs)
            return torch.autograd.grad(outputs, inputs, gradients)

    def save(ctx: object, inputs: tuple[Tensor, ...], output: object) -> None:
        ctx.save_for_backward(*inputs)

    op.register_autograd(backward, setup_context=save)
    return getattr(torch.ops.tgdops, name)  # unlike `op`, it can be copied with the network that holds it


def squash(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.sigmoid(gain * x)


def interleave(x: Tensor) -> Tensor:
    """The channels of the first half, and between them those of the second."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).clone()


def mix_pairs(x: Tensor) -> Tensor:
    """Channels 2c and 2c + 1 in two mixtures of both."""
    first, second = x[:, ::2], x[:, 1::2]
    return torch.stack([first + 0.5 * second, second - 0.5 * first], 2).flatten(1, 2)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Even and odd channels."""
    return x[:, ::2].clone(), x[:, 1::2].clone()


def mix_pairs_rule(call: Call, x: Traced) -> Tensor:
    pairs = x.labels.unflatten(1, (-1, 2))
    return call.table.reduce(pairs, [2]).expand(pairs.shape).reshape(call.shape)


def halves_rule(call: Call, x: Traced) -> tuple[Tensor, Tensor]:
    return x.labels[:, ::2], x.labels[:, 1::2]


class Ops(NamedTuple):
    """One way to compute the four."""

    squash: Callable[..., Tensor]
    interleave: Callable[..., Tensor]
    mix_pairs: Callable[..., Tensor]
    halves: Callable[..., tuple[Tensor, Tensor]]


class Net(nn.Module):
    """The four ops between convolutions."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.gain = nn.Parameter(torch.zeros(4, 1, 1))
        self.even, self.odd = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ops.interleave(self.ops.squash(self.stem(x), self.gain))
        x = self.ops.mix_pairs(F.silu(self.body(x)))
        even, odd = self.ops.halves(x)
        return self.even(even) + self.odd(odd)


TWINS = Ops(squash, interleave, mix_pairs, halves)
CUSTOM = Ops(*(custom(name, twin) for name, twin in TWINS._asdict().items()))
register_rule("tgdops::squash", "pointwise")
register_rule("tgdops::interleave", "movement")
register_rule("tgdops::mix_pairs", mix_pairs_rule)
register_rule("tgdops::halves", halves_rule)


def networks() -> tuple[Net, Net]:
    """With the custom ops, and with their twins; the same weights."""
    net, twin = (randomise(Net(ops), seed=0) for ops in (CUSTOM, TWINS))
    assert torch.equal(net(X), twin(X))
    return net, twin


def test_map_is_the_twins():
    net, twin = networks()
    assert channel_map(net, X) == channel_map(twin, X)
    fed = [sorted(p.channel for p in reached) for reached in channel_map(net, X).producers("body")]
    assert fed == [[0], [2], [1], [3]]
    fed = [sorted(p.channel for p in reached) for reached in channel_map(net, X).producers("odd")]
    assert fed == [[0, 1], [2, 3], [4, 5]]


@in_both_forms
def test_training_is_the_twins(form):
    net, twin = networks()
    pair = [apply_tgd(model, X, phi=0.8, form=form) for model in (net, twin)]
    assert pair[0].tgd_plan == pair[1].tgd_plan == plan_tgd(net, X, phi=0.8)
    assert 0 < pair[0].tgd_plan.share < 1
    assert torch.equal(pair[0](X), with_flags_of(net, pair[0])(X))
    for model in pair:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            scalar_loss(model(X)).backward()
            optimizer.step()
    assert_equal_tensors(pair[0].state_dict(), pair[1].state_dict())
    assert verify(net, pair[0], pair[0].tgd_plan).ok
    assert not torch.equal(pair[0].get_parameter("stem.weight"), net.stem.weight)
    plain = remove_tgd(pair[0])
    assert type(plain) is Net
    assert torch.equal(plain(X), with_flags_of(pair[0], plain)(X))


class Around(nn.Module):
    """conv -> an op -> conv."""

    def __init__(self, op: Callable[[Tensor], Tensor], channels: int = 4) -> None:
        super().__init__()
        self.first, self.op, self.last = nn.Conv2d(3, channels, 1), op, nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self.first(x)))


def fed_by(op: Callable[[Tensor], Tensor], **settings: str) -> list[list[int]]:
    """Which channels of the first convolution reach each input channel of the last."""
    reached = channel_map(Around(op), X, **settings).producers("last")
    return [sorted(producer.channel for producer in producers) for producers in reached]


def test_ops_of_the_older_interface():
    """Defined by a schema, as extensions in C++ are too."""
    library = torch.library.Library("tgdops", "FRAGMENT")
    library.define("turn(Tensor x, int by=1) -> Tensor")
    library.impl("turn", lambda x, by=1: x.roll(by, 1), "CompositeExplicitAutograd")
    with pytest.raises(UnsupportedOpError, match=r'register_rule\("tgdops::turn"'):
        fed_by(torch.ops.tgdops.turn)
    register_rule(torch.ops.tgdops.turn, "movement")
    assert fed_by(torch.ops.tgdops.turn) == [[3], [0], [1], [2]]
    assert fed_by(lambda x: torch.ops.tgdops.turn(x, by=2)) == [[2], [3], [0], [1]]


def test_ops_written_in_python_are_looked_into():
    """An autograd.Function is made of torch's own ops, and needs no rule."""

    class Flip(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.flip(1)

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient.flip(1)

    assert fed_by(Flip.apply) == [[3], [2], [1], [0]]


def test_a_later_rule_replaces_an_earlier_one():
    def again(x: Tensor) -> Tensor:
        return x.clone()

    op = custom("again", again)
    register_rule("tgdops::again", "mix")
    assert fed_by(op) == [[0, 1, 2, 3]] * 4
    register_rule("tgdops::again", "pointwise")
    assert fed_by(op) == [[0], [1], [2], [3]]


MOVERS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda x: x.float().flip(1).to(x.dtype),
    "bfloat16": lambda x: x.to(torch.bfloat16).flip(1).to(x.dtype),
    "float64": lambda x: torch.nn.functional.pad(x.double(), (0, 0, 0, 0, 1, -1)).to(x.dtype).flip(1),
}


def moving(name: str, moves: Callable[[Tensor], Tensor]) -> Callable[..., object]:
    def run(x: Tensor) -> Tensor:
        return moves(x)

    op = custom(name, run)
    register_rule(f"tgdops::{name}", "movement")
    return op


@pytest.mark.parametrize("name", MOVERS)
def test_a_mover_may_compute_in_any_type(name):
    op = moving(f"flip_in_{name}", MOVERS[name])
    padded = name == "float64"  # by a channel that nobody writes, in the place of the last
    assert fed_by(op) == ([[2], [1], [0], []] if padded else [[3], [2], [1], [0]])


def test_many_channels_are_too_many_for_a_mover_that_rounds_small_numbers():
    """Beyond 256 bfloat16 has no whole number for each channel."""
    op = moving("flip_many", MOVERS["bfloat16"])
    with pytest.raises(UnsupportedOpError, match="does more than move"):
        channel_map(Around(op, channels=600), X)


MORE: dict[str, Callable[[Tensor], Tensor]] = {
    "adds one": lambda x: x + 1,
    "adds up": lambda x: x.cumsum(1).to(x.dtype),
    "negates": lambda x: -x,
    "sorts": lambda x: x.sort(1).values,
    "clips": lambda x: x.clamp(max=2),
    "takes from one": lambda x: 1 - x,
    "mixes a little": lambda x: x.double().add(0.01 * x.double().mean(1, keepdim=True)).to(x.dtype),
    "takes the mean away": lambda x: (x.double() - x.double().mean((2, 3), keepdim=True)).to(x.dtype),
    "halves by sign": lambda x: torch.cat([x.relu(), (-x).relu()], 1)[:, 2:6].clone(),
    "takes the least around": lambda x: -F.max_pool2d(F.pad(-x.double(), (1, 1, 1, 1)), 3, 1).to(x.dtype),
}


@pytest.mark.parametrize("name", MORE)
def test_what_does_more_than_move_is_refused(name):
    spelt = name.replace(" ", "_")
    op = moving(spelt, MORE[name])
    with pytest.raises(UnsupportedOpError, match=rf"rule of the op tgdops.{spelt}.*does more than move"):
        fed_by(op)


def test_fixed_whole_numbers_that_a_mover_is_given_are_indices():
    @torch.library.custom_op("tgdops::reorder", mutates_args=())
    def reorder(x: Tensor, order: Tensor) -> Tensor:
        return x[:, order]

    register_rule(reorder, "movement")
    assert fed_by(lambda x: torch.ops.tgdops.reorder(x, torch.tensor([2, 0, 3, 1]))) == [[2], [0], [3], [1]]
    with pytest.raises(UnsupportedOpError, match=r"rule of the op tgdops.reorder"):
        fed_by(lambda x: torch.ops.tgdops.reorder(x, x.mean((0, 2, 3)).argsort()))


def test_whole_numbers_that_no_filter_writes_may_be_indices_too():
    """Drawn by chance, or made of the network's input: their labels, all empty, are no order."""

    @torch.library.custom_op("tgdops::pick", mutates_args=())
    def pick(x: Tensor, order: Tensor) -> Tensor:
        return x[:, order]

    class ByInput(Around):
        def forward(self, x: Tensor) -> Tensor:
            order = torch.cat([x, x], 1)[:, :4].mean((0, 2, 3)).argsort()
            return self.last(torch.ops.tgdops.pick(self.first(x), order))

    register_rule(pick, "movement")
    assert fed_by(lambda x: torch.ops.tgdops.pick(x, torch.randperm(4))) == [[0, 1, 2, 3]] * 4
    reached = channel_map(ByInput(nn.Identity()), X).producers("last")
    assert [sorted(producer.channel for producer in filters) for filters in reached] == [[0, 1, 2, 3]] * 4


def test_outputs_in_lists_beside_others_are_refused():
    @torch.library.custom_op("tgdops::nested", mutates_args=())
    def nested(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x.clone(), [x.flip(1)]

    with pytest.raises(UnsupportedOpError, match=r"tgdops.nested.default returns lists of tensors beside"):
        fed_by(lambda x: torch.ops.tgdops.nested(x)[1][0])


# Ops that return nothing: what they do is what they write. The first writes to its input, the second elsewhere.


@torch.library.custom_op("tgdops::flip_", mutates_args=("x",))
def flip_(x: Tensor) -> None:
    x.copy_(x.flip(1))


@torch.library.custom_op("tgdops::flip_into", mutates_args=("out",))
def flip_into(x: Tensor, out: Tensor) -> None:
    out.copy_(x.flip(1))


def flipped_in_place(x: Tensor) -> Tensor:
    x = x.clone()
    flip_(x)
    return x


def flipped_into_memory(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    flip_into(x, out)
    return out


def added_together(x: Tensor) -> Tensor:
    x, other = x.clone(), x.flip(1)
    torch._foreach_addcmul_([x], [other], [other])
    return x


WRITERS = {
    "tgdops::flip_": flipped_in_place,
    "tgdops::flip_into": flipped_into_memory,
    "aten::_foreach_addcmul_": added_together,
}


@pytest.mark.parametrize("name", WRITERS)
def test_ops_that_only_write_are_refused_without_a_rule(name):
    with pytest.raises(UnsupportedOpError, match=rf'register_rule\("{name}"'):
        fed_by(WRITERS[name])


def test_the_rule_of_a_namesake_that_does_not_write_is_not_theirs():
    def flip(x: Tensor) -> Tensor:
        return x.flip(1).clone()

    custom("flip", flip)
    register_rule("tgdops::flip", "pointwise")
    with pytest.raises(UnsupportedOpError, match=r'register_rule\("tgdops::flip_"'):
        fed_by(flipped_in_place)


@pytest.mark.parametrize("name", WRITERS)
def test_ops_that_only_write_mix_on_request(name):
    assert fed_by(WRITERS[name], on_unknown="mix") == [[0, 1, 2, 3]] * 4


def test_the_rule_of_an_op_that_only_writes_describes_what_it_writes():
    @torch.library.custom_op("tgdops::turn_into", mutates_args=("out",))
    def turn_into(x: Tensor, out: Tensor) -> None:
        out.copy_(x.roll(1, 1))

    def turned(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        turn_into(x, out)
        return out

    register_rule("tgdops::turn_into", lambda call, x, out: x.labels.roll(1, 1))
    assert fed_by(turned) == [[3], [0], [1], [2]]


# Ops that are filter layers, and their rules.


def grouped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1, groups=2)


def upward(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv_transpose2d(x, weight, stride=2, groups=3)


def last_axis(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def gated(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """Modulated: what the filters make, times a gate."""
    return F.conv2d(x, weight) * gate.sigmoid()


class Filters(NamedTuple):
    """One way to compute the four."""

    grouped: Callable[..., Tensor]
    upward: Callable[..., Tensor]
    last_axis: Callable[..., Tensor]
    gated: Callable[..., Tensor]


class Weighted(nn.Module):
    """A weight and a bias for an op."""

    def __init__(self, op: Callable[..., Tensor], *shape: int, bias: int = 0) -> None:
        super().__init__()
        self.op, self.weight = op, nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(bias)) if bias else None

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.op(*inputs, self.weight, *([] if self.bias is None else [self.bias]))


class FilterNet(nn.Module):
    """The four filter layers with reordering, a gate and a residual around them."""

    def __init__(self, ops: Filters) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 1, 1)
        self.grouped = Weighted(ops.grouped, 6, 2, 3, 3, bias=6)
        self.upward = Weighted(ops.upward, 6, 2, 2, 2)
        self.gated = Weighted(ops.gated, 5, 6, 1, 1)
        self.last_axis = Weighted(ops.last_axis, 4, 5, bias=4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.grouped(self.stem(x)[:, [0, 2, 1, 0]]))
        y = F.silu(self.upward(y + y.flip(1)))
        y = self.gated(y, F.interpolate(self.gate(x), scale_factor=2))
        return self.head(F.silu(self.last_axis(y.movedim(1, -1))))


FILTER_TWINS = Filters(grouped, upward, last_axis, gated)
FILTERS = Filters(*(custom(name, twin) for name, twin in FILTER_TWINS._asdict().items()))
register_rule("tgdops::grouped", lambda call, x, weight, bias: call.filter(x, weight, bias, groups=2))
register_rule("tgdops::upward", lambda call, x, weight: call.filter(x, weight, groups=3, transposed=True))
register_rule("tgdops::last_axis", lambda call, x, weight, bias: call.filter(x, weight, bias))


def gated_rule(call: Call, x: Traced, gate: Traced, weight: Traced) -> Tensor:
    return call.table.union(call.filter(x, weight), gate.labels)


register_rule("tgdops::gated", gated_rule)


def filter_networks() -> tuple[FilterNet, FilterNet]:
    """With the custom ops, and with their twins; the same weights."""
    net, twin = (randomise(FilterNet(ops), seed=0) for ops in (FILTERS, FILTER_TWINS))
    assert torch.equal(net(X), twin(X))
    return net, twin


def test_filter_ops_are_consumers_and_producers():
    net, twin = filter_networks()
    found, expected = channel_map(net, X), producers_by_intervention(Case(twin, X))
    assert_same_influence({name: found.producers(name) for name in found.consumers}, expected)
    assert {name: found.layers[name].channels for name in FILTERS._fields} == {
        "grouped": 6,
        "upward": 6,
        "last_axis": 4,
        "gated": 5,
    }
    assert found.layers["grouped"].groups == 2
    assert found.layers["upward"].transposed
    assert [rows.name for rows in found.layers["grouped"].parameters] == ["grouped.weight", "grouped.bias"]
    assert found.unmapped == {}


@in_both_forms
@pytest.mark.parametrize("flow", ["masked", "full"])
def test_filter_ops_train_as_their_twins(form, flow):
    net, twin = filter_networks()
    pair = [apply_tgd(model, X, phi=0.7, form=form, flow=flow) for model in (net, twin)]
    masks = pair[0].tgd_plan.parameter_masks()
    assert_equal_tensors(masks, pair[1].tgd_plan.parameter_masks())
    for model in pair:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scalar_loss(model(X)).backward()
        optimizer.step()
    assert_equal_tensors(pair[0].state_dict(), pair[1].state_dict())
    assert verify(net, pair[0]).ok
    moved = {name: pair[0].state_dict()[name] != net.state_dict()[name] for name in masks}
    assert not any(moved[name][~mask].any() for name, mask in masks.items())
    assert sum(moved[f"{name}.weight"].any() for name in FILTERS._fields) >= 2


def fixed_kernels(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, groups=2)


def test_a_filter_op_whose_kernels_are_fixed_mixes_its_groups():
    op = custom("blur", fixed_kernels)
    register_rule("tgdops::blur", lambda call, x, weight: call.filter(x, weight, groups=2))
    weight = torch.ones(4, 2, 1, 1)
    assert fed_by(lambda x: op(x, weight)) == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_a_filter_op_with_a_weight_that_does_not_fit_is_refused_by_name():
    op = custom("misfit", fixed_kernels)
    register_rule("tgdops::misfit", lambda call, x, weight: call.filter(x, weight))
    with pytest.raises(
        UnsupportedOpError, match=r"tgdops.misfit.*4 input channels do not fit a weight of \(4, 2"
    ):
        fed_by(lambda x: op(x, torch.ones(4, 2, 1, 1)))
