"""Names, parameters and places of the layers a channel map finds, and what it refuses."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.oracles.interventions import assert_same_influence, producers_by_intervention
from tests.strategies import Case
from tgdsurgery import (
    CaptureError,
    ExampleInputError,
    MapConflictError,
    Producer,
    UnsupportedOpError,
    apply_tgd,
    channel_map,
    plan_tgd,
)
from tgdsurgery.core.arguments import as_arguments
from tgdsurgery.mapping.example_inputs import find_inputs


def names_of(found: object) -> list[tuple[str, int, int]]:
    return [(rows.name, rows.axis, rows.groups) for rows in found.parameters]  # type: ignore[attr-defined]


def test_layers_of_a_chain() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.GroupNorm(2, 6),
    )
    layers = channel_map(net).layers
    assert list(layers) == ["0", "1", "2", "3", "4"]
    assert [layer.role for layer in layers.values()] == ["filter", "channel", "channel", "filter", "channel"]
    assert [layer.modules for layer in layers.values()] == [("0",), ("1",), ("2",), ("3",), ("4",)]
    assert {layer.channel_axis for layer in layers.values()} == {-3}
    assert layers["1"].statistics == ("1.running_mean", "1.running_var")
    assert names_of(layers["3"]) == [("3.weight", 1, 2), ("3.bias", 0, 1)]


class Functional(nn.Module):
    """A conv, a linear layer in either layout and a layer scale, all without modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.gamma = nn.Parameter(torch.randn(4, 1, 1))
        self.mix = nn.Parameter(torch.randn(4, 5))
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.kernel) * self.gamma
        return self.last(y.mean((2, 3)) @ self.mix)


def test_functional_calls_are_named_by_their_parameter() -> None:
    layers = channel_map(Functional(), torch.randn(2, 1, 6, 6)).layers
    assert {name: (layer.role, layer.modules) for name, layer in layers.items()} == {
        "kernel": ("filter", ()),
        "gamma": ("channel", ()),
        "mix": ("filter", ()),
        "last": ("filter", ("last",)),
    }
    assert names_of(layers["mix"]) == [("mix", 1, 1)]


def test_computed_weights_belong_to_their_module() -> None:
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    spectral_norm = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 1))
    layers = channel_map(nn.Sequential(weight_norm, spectral_norm)).layers
    assert {rows.name for rows in layers["0"].parameters} == {
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
        "0.bias",
    }
    assert {rows.name for rows in layers["1"].parameters} == {"1.parametrizations.weight.original", "1.bias"}


def test_packed_attention_projection_is_one_layer() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.attention = nn.Conv1d(2, 4, 1), nn.MultiheadAttention(4, 2, batch_first=True)
            self.last = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).transpose(1, 2)
            return self.last(self.attention(tokens, tokens, tokens, need_weights=False)[0])

    found = channel_map(Attending(), torch.randn(2, 2, 5))
    packed = found.layers["attention.in_proj_weight"]
    assert packed.channels == 12
    assert {rows.name for rows in packed.parameters} == {"attention.in_proj_weight", "attention.in_proj_bias"}
    reached = found.producers("attention.out_proj")
    # Values keep their channel; queries and keys of the same head weigh them all.
    assert Producer("attention.in_proj_weight", 8) in reached[0]
    assert Producer("attention.in_proj_weight", 9) not in reached[0]


def test_weight_used_along_both_axes_stays_frozen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Linear(3, 4, bias=False)
            self.last = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.linear(self.code(x), self.code.weight.t()))

    found = channel_map(Tied(), torch.randn(5, 3))
    assert found.unmapped == {"code.weight": 12}


class OtherInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y.flip(1) if self.training else y)


def test_modes_that_disagree_are_refused() -> None:
    with pytest.raises(MapConflictError, match=r"Input channel 0 of 'last'.*first\[1\] only in train"):
        channel_map(OtherInTraining(), torch.randn(1, 1, 4, 4))


def test_heads_of_one_mode_are_added() -> None:
    class Supervised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last, self.aux = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1), nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            y = self.stem(x)
            return [self.last(y), self.aux(y)] if self.training else [self.last(y)]

    assert set(channel_map(Supervised()).consumers) == {"stem", "last", "aux"}


def test_a_batch_of_one_is_doubled_for_train_mode() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    assert channel_map(net, torch.randn(1, 1, 4, 4)).consumers == ("0", "3")


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Conv1d(3, 1, 3), (2, 3, 64)),
        (nn.Conv2d(3, 1, 3), (2, 3, 64, 64)),
        (nn.Conv3d(3, 1, 3), (2, 3, 16, 16, 16)),
        (nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2 * 24 * 24, 1)), (2, 1, 28, 28)),
        (nn.Linear(7, 1), (2, 7)),
    ],
)
def test_inputs_are_found(net: nn.Module, shape: tuple[int, ...]) -> None:
    (found,), _ = find_inputs(net)
    assert found.shape == shape


def test_found_inputs_follow_the_dtype() -> None:
    (found,), _ = find_inputs(nn.Conv2d(1, 1, 3).to(torch.bfloat16))
    assert found.dtype == torch.bfloat16


def test_feature_maps_written_into_a_buffer_are_followed() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 2, 1)
            self.head = nn.Conv2d(3, 1, 1)
            self.register_buffer("cache", torch.zeros(1, 3, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            self.cache[:, 2:] = self.one(x)
            self.cache[:, :2] = self.two(x)
            return self.head(self.cache)

    net = Cached()
    reached = channel_map(net, torch.randn(1, 3, 8, 8)).producers("head")
    assert [sorted(producers) for producers in reached] == [
        [Producer("two", 0)],
        [Producer("two", 1)],
        [Producer("one", 0)],
    ]
    assert not net.cache.any()


def test_maps_that_outgrow_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tgdsurgery.mapping.labels.MAX_MEMBERS", 20)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1))
    with pytest.raises(UnsupportedOpError, match=r"in module '\d'\) too much has mixed.*before and behind"):
        channel_map(net)


def test_views_of_a_buffer_see_what_is_written_to_it_later() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1)
            self.register_buffer("cache", torch.zeros(1, 2, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            view = self.cache[:, :, :4]
            self.cache.copy_(self.stem(x))
            return self.head(view)

    reached = channel_map(Viewed(), torch.randn(1, 3, 8, 8)).producers("head")
    assert [sorted(producers) for producers in reached] == [[Producer("stem", 0)], [Producer("stem", 1)]]


def test_inputs_that_cannot_be_found_are_asked_for() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.conv(x + y)

    with pytest.raises(ExampleInputError, match=r"missing 1 required positional argument.*example_inputs="):
        channel_map(Two())
    with pytest.raises(ExampleInputError, match=r"no torch\.nn conv or linear"):
        channel_map(nn.ReLU())


@pytest.mark.parametrize("given", [3, "image", [], (None,), {}])
def test_useless_inputs_are_refused(given: object) -> None:
    with pytest.raises(ExampleInputError, match="Give"):
        as_arguments(given)


class Scripted(nn.Module):
    """A part of it is TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is, but is still around
            self.part = torch.jit.trace(nn.Conv2d(2, 2, 1), torch.zeros(1, 2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.first(x))


UNFIT = {
    "no module": (lambda: "no", r"The model is of type str\. Give a torch\.nn\.Module\."),
    "TorchScript": (Scripted, "'part' is TorchScript.*nn.Module it was made from"),
    "uninitialised": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.LazyConv2d(2, 1)),
        r"'1' \(LazyConv2d\) has parameters that are not initialised.*Call the model once",
    ),
    "uninitialised statistics": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.LazyBatchNorm2d(affine=False)),
        r"'1' \(LazyBatchNorm2d\) has parameters that are not initialised",
    ),
}


@pytest.mark.parametrize("image", [None, torch.randn(2, 1, 4, 4)], ids=["found", "given"])
@pytest.mark.parametrize("start", [channel_map, plan_tgd, apply_tgd])
@pytest.mark.parametrize(("make", "message"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_looked_into_is_refused_up_front(make, message, start, image) -> None:
    with pytest.raises(CaptureError, match=message):
        start(make(), image)


class OtherBias(nn.Module):
    """Biases that are not the filters' own: made by a layer, and behind a fixed matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.made = nn.Conv2d(1, 2, 1), nn.Linear(1, 2)
        self.second, self.last = nn.Conv2d(2, 2, 1, bias=False), nn.Linear(2, 1)
        self.register_buffer("fixed", torch.eye(2))
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.first(x), self.second.weight, self.made(x.mean((2, 3)))[0])
        return self.last(F.linear(y.flatten(2).transpose(1, 2), self.fixed, self.shift))


def test_a_bias_that_is_not_the_filters_own_reaches_on() -> None:
    found = channel_map(OtherBias(), torch.randn(1, 1, 4, 4))
    everything = [Producer(layer, channel) for layer in ("made", "second") for channel in (0, 1)]
    assert [sorted(reached) for reached in found.producers("last")] == [everything] * 2
    assert [sorted(reached) for reached in found.channel_layers("last")] == [
        [Producer("shift", 0)],
        [Producer("shift", 1)],
    ]


def test_memory_that_is_written_to_under_another_type_is_refused() -> None:
    class Retyped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.view_as_complex(self.first(x).unflatten(3, (-1, 2)))
            torch.view_as_real(y)[:, :1] = 0
            return self.last(y.real)

    with pytest.raises(UnsupportedOpError, match="looked at as another type"):
        channel_map(Retyped(), torch.randn(1, 1, 4, 4))


class Recurrent(nn.Module):
    """A recurrent layer of torch between a convolution and a head."""

    def __init__(self, kind: type[nn.RNNBase], **settings: bool) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 3, 3, padding=1)
        self.rnn = kind(3, 2, batch_first=True, **settings)
        self.head = nn.Linear(4 if settings.get("bidirectional") else 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.stem(x).transpose(1, 2))[0])


class Cells(nn.Module):
    """The LSTM's steps one by one, as linear layers that an oracle can see."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 3, 3, padding=1), nn.Linear(2, 2)
        self.ih, self.hh = nn.Linear(3, 8), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = state = x.new_zeros(x.shape[0], 2)
        seen = []
        for step in self.stem(x).unbind(2):
            enter, forget, new, leave = (self.ih(step) + self.hh(hidden)).chunk(4, 1)
            state = forget.sigmoid() * state + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * state.tanh()
            seen.append(hidden)
        return self.head(torch.stack(seen, 1))


def test_an_lstm_is_what_its_steps_are() -> None:
    x, cells = torch.randn(2, 2, 6), Cells()
    found = channel_map(Recurrent(nn.LSTM), x)
    names = {"rnn.weight_ih_l0": "ih", "rnn.weight_hh_l0": "hh"}
    renamed = {
        names.get(consumer, consumer): tuple(
            frozenset(Producer(names.get(p.layer, p.layer), p.channel) for p in reached)
            for reached in found.producers(consumer)
        )
        for consumer in found.consumers
    }
    assert_same_influence(renamed, producers_by_intervention(Case(cells, x)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_map_alike_in_every_precision(kind, settings, training) -> None:
    x, net = torch.randn(2, 2, 6), Recurrent(kind, **settings).train(training)
    single = channel_map(net, x)
    assert single == channel_map(copy.deepcopy(net).double(), x.double())
    assert {"rnn.weight_ih_l0", "rnn.weight_hh_l0"} < set(single.consumers)
    assert torch.backends.mkldnn.is_available() == torch._C._get_mkldnn_enabled()
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("start", [channel_map, plan_tgd, apply_tgd])
def test_inference_mode_is_refused_and_no_grad_is_fine(start) -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)), torch.randn(2, 1, 4, 4)
    with torch.inference_mode(), pytest.raises(CaptureError, match=r"inference_mode.*no_grad"):
        start(net, x)
    with torch.no_grad():
        start(net, x)


def test_a_single_vector_has_a_channel_axis_too() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    found = channel_map(net, torch.randn(3))
    assert [layer.modules for layer in found.layers.values()] == [("0",), ("1",)]
    assert [sorted(reached) for reached in found.producers("1")] == [[Producer("0", c)] for c in range(4)]
