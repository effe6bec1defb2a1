"""Ops without a rule fail closed; users teach their own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tgdsurgery import Producer, UnsupportedOpError, channel_map, register_rule
from tgdsurgery.rules import Call, Traced


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
