"""Networks that keep something between calls: the map is that of a call with others before it."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.strategies.case import randomise
from tgdsurgery import ChannelMap, Producer, UnsupportedOpError, channel_map

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Frames(nn.Module):
    """A convolution, what a memory makes of its output, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.start()

    def start(self) -> None:
        """Nothing has been seen."""

    def seen(self, y: Tensor) -> Tensor:
        """What the head reads."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.seen(F.silu(self.stem(x))))


class LastFrame(Frames):
    """The frame before beside the present one, half of each, in another order."""

    def start(self) -> None:
        self.last = None

    def seen(self, y: Tensor) -> Tensor:
        last = torch.zeros_like(y) if self.last is None else self.last
        self.last = y.detach()
        return torch.cat([y[:, :2], last.flip(1)[:, 2:]], 1)


class InABuffer(Frames):
    """A buffer that is read, then written to in place."""

    def start(self) -> None:
        self.register_buffer("last", torch.zeros(2, 4, 6, 6))

    def seen(self, y: Tensor) -> Tensor:
        out = y + self.last.roll(1, 1)
        self.last.copy_(y)
        return out


class InPartOfABuffer(Frames):
    """A temporal shift: some channels are those of the frame before."""

    def start(self) -> None:
        self.register_buffer("last", torch.zeros(2, 2, 6, 6), persistent=False)

    def seen(self, y: Tensor) -> Tensor:
        out = torch.cat([self.last, y[:, 2:]], 1)
        self.last[:, :1] = y[:, :1]
        self.last[:, 1:] = y[:, 3:]
        return out


class Accumulated(Frames):
    """A state that every call reads and writes: what comes in wanders through all channels."""

    def start(self) -> None:
        self.state: dict[str, Tensor] = {"sum": torch.zeros(2, 4, 6, 6)}

    def seen(self, y: Tensor) -> Tensor:
        self.state["sum"] = 0.5 * self.state["sum"].roll(1, 1) + F.pad(y[:, :1], (0, 0, 0, 0, 0, 3))
        return self.state["sum"]


class ThreeFrames(Frames):
    """The last three frames in a queue."""

    def start(self) -> None:
        self.queue: deque[Tensor] = deque(maxlen=3)

    def seen(self, y: Tensor) -> Tensor:
        self.queue.append(y)
        return torch.stack(list(self.queue)).sum(0) + self.queue[0].flip(1)


class LooksOnly(Frames):
    """Features are kept for others to look at."""

    def start(self) -> None:
        self.features: list[Tensor] = []

    def seen(self, y: Tensor) -> Tensor:
        self.features = [y]
        return y


STEM = {channel: {channel} for channel in range(4)}
EXPECTED = {
    LastFrame: [{0}, {1}, {1}, {0}],
    InABuffer: [{0, 3}, {1, 0}, {2, 1}, {3, 2}],
    InPartOfABuffer: [{0}, {3}, {2}, {3}],
    Accumulated: [{0}, {0}, {0}, {0}],
    ThreeFrames: [{0, 3}, {1, 2}, {1, 2}, {0, 3}],
    LooksOnly: [{0}, {1}, {2}, {3}],
}


def fed(found: ChannelMap, consumer: str = "head") -> list[set[int]]:
    return [{producer.channel for producer in reached} for reached in found.producers(consumer)]


def by_intervention(net: nn.Module, calls: int = 8) -> list[set[int]]:
    """The stem's filters that the head feels when they are changed in all of several calls."""
    found: list[set[int]] = [set() for _ in range(4)]
    frames = torch.randn(calls, *X.shape, dtype=torch.float64)

    def read(changed: int | None) -> Tensor:
        model, seen = copy.deepcopy(net).double(), []
        if changed is not None:
            model.stem.weight.data[changed] += 1
        model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
        for frame in frames:
            model(frame)
        return torch.stack(seen)

    reference = read(None)
    for channel in range(4):
        moved = (read(channel) != reference).transpose(0, 2).flatten(1).any(1)
        for place in moved.nonzero().flatten().tolist():
            found[place].add(channel)
    return found


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("kind", EXPECTED)
def test_what_was_kept_feeds_the_next_call(kind, used):
    net = randomise(kind(), seed=0).eval()
    assert by_intervention(net) == EXPECTED[kind]
    if used:
        with torch.no_grad():
            net(X)
    found = channel_map(net, X)
    assert fed(found) == EXPECTED[kind]
    assert found.layers["stem"].modules == ("stem",)


def test_the_models_own_memory_is_left_alone():
    net = LastFrame().eval()
    channel_map(net, X)
    assert net.last is None


class Otherwise(Frames):
    """The first call takes another way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fuse = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)

    def start(self) -> None:
        self.last = None

    def seen(self, y: Tensor) -> Tensor:
        out = self.first(y) if self.last is None else self.fuse(torch.cat([y, self.last], 1))
        self.last = out.detach()
        return out


def test_the_first_call_counts_too():
    found = channel_map(Otherwise(), X)
    assert set(found.consumers) == {"stem", "first", "fuse", "head"}
    assert [sorted(reached) for reached in found.producers("head")] == [
        [Producer("first", channel), Producer("fuse", channel)] for channel in range(4)
    ]
    assert sorted(found.producers("fuse")[5]) == [Producer("first", 1), Producer("fuse", 1)]


class Growing(Frames):
    """All frames that were ever seen."""

    def start(self) -> None:
        self.bank: list[Tensor] = []

    def seen(self, y: Tensor) -> Tensor:
        self.bank.append(y.detach())
        return torch.stack(self.bank).mean(0)


class Elsewhere(Frames):
    """The frame before is kept where no module shows it."""

    def start(self) -> None:
        self.kept = Keeper()

    def seen(self, y: Tensor) -> Tensor:
        last, self.kept.frame = self.kept.frame, y
        return y if last is None else y + last.flip(1)


class Keeper:
    """Something that is no container."""

    frame: Tensor | None = None


@pytest.mark.parametrize(
    ("kind", "where"),
    [(Growing, r"module '', attribute bank\[0\]"), (Elsewhere, "in no attribute of a module")],
)
def test_what_cannot_be_followed_from_call_to_call_is_refused(kind, where):
    with pytest.raises(UnsupportedOpError, match=rf"an earlier call has left behind.*{where}"):
        channel_map(kind(), X)


class CachesBiases(nn.Module):
    """In evaluation the positions' biases are looked up once, and kept until it is trained again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.biases = nn.Parameter(torch.zeros(4, 5))
        self.register_buffer("places", torch.tensor([0, 3, 1, 2, 4, 3]))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> CachesBiases:
        if mode:
            self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.biases[:, self.places, None]
        if not self.training:
            bias = self.cache.setdefault("bias", bias)
        return self.head(self.stem(x) + bias)


def test_what_training_clears_is_cleared():
    net = CachesBiases().eval()
    before = channel_map(net, X)
    net(X)
    assert channel_map(net, X) == before
    assert before.layers["biases"].role == "channel"
