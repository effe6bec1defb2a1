"""Two forms of a network are the same but for rounding, or they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tgdsurgery.core.errors import RewriteError
from tgdsurgery.surgery.equivalence import difference, refuse_other, same_results

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """The gradient of the first bias cancels out in train mode: the norm takes the mean away."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def first(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.relu(self.norm(self.first(x))))


class Reordered(Net):
    """The same sums in another order."""

    def first(self, x: Tensor) -> Tensor:
        return F.conv2d(x.flip(1), self.conv.weight.flip(1), self.conv.bias)


class GradientOff(Net):
    off = 1e-3

    def first(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * (1 + self.off))
        return y


class BiasLost(Net):
    def first(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight)


class OutputOff(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * (1 + 1e-6)


class OutputNan(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).index_fill(0, torch.tensor([0]), torch.nan)


class Detached(Net):
    def first(self, x: Tensor) -> Tensor:
        return self.conv(x).detach()


class Listed(Net):
    def forward(self, x: Tensor) -> Any:
        return [super().forward(x)]


class GradientBarelyOff(GradientOff):
    """Too little for float32 to tell from sums in another order."""

    off = 1e-6


class Single(Net):
    """The same, in the network's own type."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).float()


def forms_differ(reference: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> str | None:
    """`difference`, of forms of the reference itself."""
    return difference(reference(), reference, other, ((X,), {}), holds=False)


def test_rounding_is_no_difference() -> None:
    assert forms_differ(Net, Reordered) is None
    assert not same_results(Net(), Reordered(), ((X,), {}))


def test_a_gradient_that_is_nothing_but_rounding_was_among_them() -> None:
    """Otherwise the test above would show less than it says."""
    found = []
    for make in (Net, Reordered):
        net = make().double().train()
        net(X.double()).square().sum().backward()
        found.append((net.conv.bias.grad, net.conv.weight.grad))
    (one, weights), (other, _) = found
    assert not torch.allclose(one, other, rtol=0.1, atol=0.0)
    assert one.abs().max() < 1e-12 * weights.abs().max()


@pytest.mark.parametrize("other", [GradientOff, BiasLost, OutputOff, OutputNan, Detached, Listed])
def test_what_is_not_rounding_is_a_difference(other: Callable[[], nn.Module]) -> None:
    assert forms_differ(Net, other) == "its outputs or gradients differ"
    assert not same_results(Net(), other(), ((X,), {}))


@pytest.mark.parametrize("other", [GradientBarelyOff, Single])
def test_small_networks_are_compared_in_float64(other: Callable[[], nn.Module]) -> None:
    assert same_results(Net(), other(), ((X,), {}))
    assert forms_differ(Net, other) == "its outputs or gradients differ"


@pytest.mark.parametrize("other", [GradientOff, BiasLost, OutputOff, OutputNan, Detached, Listed])
def test_what_is_not_rounding_is_a_difference_at_first_sight_too(
    other: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgdsurgery.surgery.equivalence.MAX_SMALL_PARAMETERS", 0)
    assert forms_differ(Net, other) == "its outputs or gradients differ"
    assert forms_differ(Net, Reordered) is None
    assert forms_differ(Net, Net) is None


def test_a_first_look_takes_two_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tgdsurgery.surgery.equivalence.MAX_SMALL_PARAMETERS", 0)
    seen: list[int] = []

    class Seen(Net):
        def forward(self, x: Tensor) -> Any:
            seen.append(len(x))
            return super().forward(x)

    assert forms_differ(Net, Seen) is None
    assert seen == [2, 2]
    assert forms_differ(GradientOff, Seen) == "its outputs or gradients differ"
    assert seen[-1] == len(X)


def test_a_form_that_does_not_run_says_why() -> None:
    class Broken(Net):
        def first(self, x: Tensor) -> Tensor:
            raise LookupError("no such row")

    assert forms_differ(Net, Broken) == "it does not run (LookupError: no such row)"
    assert forms_differ(Broken, Net) == (
        "the network runs neither in eval nor in train mode (LookupError: no such row)"
    )


def test_the_same_network_has_the_same_results() -> None:
    assert same_results(Net(), Net(), ((X,), {}))


class FailsInTraining(Net):
    """As a form of which one mode does not run."""

    def first(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("no such axis")
        return self.conv(x)


class FailsInTheBackward(Net):
    def first(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.conv(x))
        return y + y.mul_(0) if self.training else self.conv(x)


class DrawsEveryTime(Net):
    """Another output in every call."""

    calls = 0

    def forward(self, x: Tensor) -> Any:
        DrawsEveryTime.calls += 1
        return super().forward(x) * DrawsEveryTime.calls


COMPARED: dict[str, Callable[..., object]] = {
    "with one form": lambda model, form, holds: refuse_other(model, form, ((X,), {}), holds=holds),
    "with two forms": lambda model, form, holds: difference(model, form, form, ((X,), {}), holds=holds),
}
with_forms = pytest.mark.parametrize("compare", COMPARED.values(), ids=COMPARED)


@with_forms
@pytest.mark.parametrize("form", [FailsInTraining, FailsInTheBackward])
def test_a_mode_that_ran_before_has_to_run(compare: Any, form: Callable[[], nn.Module]) -> None:
    with pytest.raises(RewriteError, match="does not run in train mode, and without it does"):
        compare(Net(), form, True)
    compare(form(), form, True)


@with_forms
@pytest.mark.parametrize("holds", [False, True])
def test_the_model_itself_is_one_side(compare: Any, holds: bool) -> None:
    compare(Net(), Net, holds)
    with pytest.raises(RewriteError, match="something else in eval mode"):
        compare(Net(), BiasLost, holds)


class OtherNorm(Net):
    """As a form that holds statistics."""

    def forward(self, x: Tensor) -> Any:
        self.norm.eval()
        return super().forward(x)


@with_forms
def test_only_what_holds_statistics_may_differ_in_train_mode(compare: Any) -> None:
    compare(Net(), OtherNorm, True)
    with pytest.raises(RewriteError, match="something else in train mode"):
        compare(Net(), OtherNorm, False)


@with_forms
def test_a_model_that_is_never_the_same_is_not_compared(compare: Any) -> None:
    compare(DrawsEveryTime(), Net, False)
