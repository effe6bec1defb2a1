"""Functions that go on using the model they were made for: a copy of that model is no copy."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgdsurgery import CaptureError, Producer, apply_tgd, channel_map

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers and a head; subclasses connect them in their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)
        self.taps: dict[str, Tensor] = {}
        self.connect()

    def connect(self) -> None:
        """Register hooks, replace functions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.mid(F.silu(self.stem(x)))))


class Tapped(Net):
    """A hook that is a closure leaves features with the model."""

    def connect(self) -> None:
        self.mid.register_forward_hook(lambda module, args, output: self.taps.__setitem__("mid", output))

    def forward(self, x: Tensor) -> Tensor:
        self.mid(F.silu(self.stem(x)))
        return self.head(F.silu(self.taps["mid"]))


class TappedByContainer(Tapped):
    """The closure holds the dict only."""

    def connect(self) -> None:
        taps = self.taps
        self.mid.register_forward_hook(lambda module, args, output: taps.__setitem__("mid", output))


class ByLambda(Net):
    """A forward that is a lambda."""

    def connect(self) -> None:
        self.mid.forward = lambda x: F.conv2d(x, self.mid.weight, self.mid.bias, padding=1)


class ByClosure(Net):
    """A forward around the one before."""

    def connect(self) -> None:
        before = self.mid.forward

        @functools.wraps(before)
        def around(*args: Any) -> Tensor:
            return 2 * before(*args)

        self.mid.forward = around


class ByReference(Net):
    """The parent is known to a part by a weak reference."""

    def connect(self) -> None:
        self.mid.parent = weakref.ref(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.mid.parent().mid(F.silu(self.stem(x)))))


class ByTensor(Net):
    """A function that holds a parameter."""

    def connect(self) -> None:
        weight = self.mid.weight
        self.convolve: Callable[[Tensor], Tensor] = lambda x: F.conv2d(x, weight, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convolve(self.stem(x)))


BOUND = {
    Tapped: r"hook 'Tapped.connect.<locals>.<lambda>' \(forward_hooks of module 'mid'\)",
    TappedByContainer: r"hook 'TappedByContainer.*forward_hooks of module 'mid'",
    ByLambda: r"reads 'mid.weight' of the model itself: 'forward' of module 'mid'",
    ByClosure: r"reads 'mid.weight' of the model itself: 'forward' of module 'mid'",
    ByReference: r"reads 'mid.weight' of the model itself: 'parent' of module 'mid'",
    ByTensor: r"reads 'mid.weight' of the model itself: 'convolve' of module ''",
}


@pytest.mark.parametrize("start", [channel_map, apply_tgd])
@pytest.mark.parametrize("image", [X, None], ids=["given", "found"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("kind", BOUND)
def test_a_copy_that_uses_its_original_is_refused_by_name(kind, used, image, start):
    net = kind().eval()
    if used:
        with torch.no_grad():
            net(X)
    taps, attributes = dict(net.taps), dict(vars(net))
    with pytest.raises(CaptureError, match=BOUND[kind] if image is not None else "module '(mid)?'"):
        start(net, image)
    assert {name: id(tap) for name, tap in net.taps.items()} == {name: id(tap) for name, tap in taps.items()}
    assert vars(net) == attributes


class ByMethod(Net):
    """Hooks that are methods are copied with the model."""

    def connect(self) -> None:
        self.mid.register_forward_hook(self.keep)
        self.stem.register_forward_hook(functools.partial(self.keep_as, "stem"))

    def keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.taps["mid"] = output

    def keep_as(self, name: str, module: nn.Module, args: object, output: Tensor) -> None:
        self.taps[name] = output

    def forward(self, x: Tensor) -> Tensor:
        self.mid(F.silu(self.stem(x)))
        return self.head(F.silu(self.taps["mid"] + self.taps["stem"]))


class LooksAtSettings(Net):
    """A closure that asks the model for nothing but a setting."""

    def connect(self) -> None:
        self.steep = 2.0
        self.mid.register_forward_hook(lambda module, args, output: output * self.steep)


@pytest.mark.parametrize("kind", [ByMethod, LooksAtSettings])
def test_what_is_copied_or_harmless_works(kind):
    net = kind().eval()
    reached = channel_map(net, X).producers("head")
    layers = ("mid", "stem") if kind is ByMethod else ("mid",)
    assert [sorted(producers) for producers in reached] == [
        [Producer(layer, channel) for layer in layers] for channel in range(8)
    ]
    tgd = apply_tgd(net, X, phi=0.5).eval()
    other = X.flip(0)
    assert torch.equal(tgd(other), net(other))
