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


WRONG = {
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
    """As detectors are: their boxes are picked by the values of feature maps."""
    with pytest.raises(UnsupportedOpError, match=r"model\.backbone = apply_tgd\(model\.backbone"):
        fed_by(Custom(lambda x: x * (x > 0).nonzero().sum()))
