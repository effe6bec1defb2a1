"""Code that reads a layer's weight gets all of it, and code that would put another in its place is told what to do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations, prune

from tests.laws.subjects import Method, in_both_forms, methods, on_every_topology, operated
from tests.strategies import Case, cases
from tests.topologies import case_of
from tgdsurgery import RewriteError, apply_tgd, remove_tgd
from tgdsurgery.core.errors import RowsError
from tgdsurgery.surgery.compact import Divided

X = torch.linspace(-1, 1, 384).view(2, 3, 8, 8)
ROWS = pytest.mark.parametrize("rows", [1, 3])


class Own(nn.Conv2d):
    """Without a twin: its weight is put together by a property."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


def network(rows: int, form: str = "compact") -> tuple[nn.Module, nn.Module]:
    """A network and its TGD network, with so many of the 16 channels trainable."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 1), Own(2, 2, 3)
    ).eval()
    scores = apply_tgd(net, X, phi=0.5).tgd_plan["0"].scores
    tgd = apply_tgd(net, X, phi=sorted(scores)[rows], overrides={"3": "freeze", "4": "freeze"}, form=form)
    assert tgd.tgd_plan["0"].trainable == rows
    return net, tgd


def assert_reads_whole(case: Case, method: Method) -> None:
    """Raise unless every divided parameter reads as the state has it, in the original's shape, and takes no write."""
    tgd = operated(case, method)
    state = tgd.state_dict()
    for owner, module in tgd.named_modules():
        for name, part in module._tgd_parts.items() if isinstance(module, Divided) else ():
            shown = getattr(module, name)
            assert torch.equal(shown, state[f"{owner}.{name}".lstrip(".")])
            assert shown.shape == part.shape
            if part.at is not None:
                with pytest.raises(RewriteError, match="remove_tgd"):
                    shown.data.zero_()


@given(case=cases(), method=methods)
def test_random_networks_read_whole(case, method):
    assert_reads_whole(case, method)


@on_every_topology
@pytest.mark.parametrize("phi", [0.2, 0.95])
def test_catalogue_reads_whole(name, phi):
    assert_reads_whole(case_of(name), Method(phi=phi))


def assert_distance_is_zero_or_refused(
    case: Case, method: Method, way: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Raise unless no parameter has a distance to what the original has under its name."""
    tgd = operated(case, method)
    anchors = {name: value.clone() for name, value in case.model.state_dict().items()}
    for name, parameter in tgd.named_parameters():
        try:
            distance = way(parameter, anchors[name])
        except RuntimeError:  # of torch, at most shapes
            continue
        assert not distance.any(), name


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "p - p0": lambda p, p0: p - p0,
    "p0 - p": lambda p, p0: p0 - p,
    "torch.sub": torch.sub,
    "torch.dist": torch.dist,
    "under no_grad": torch.no_grad()(lambda p, p0: p0 - p),
}


@given(
    case=cases(),
    method=methods,
    phi=st.sampled_from([0.01, 0.1, 0.3]),
    way=st.sampled_from(sorted(DISTANCES)),
)
def test_random_networks_anchored_to_pretrained_weights(case, method, phi, way):
    """L2-SP: a row of a weight is never broadcast against all rows of the checkpoint."""
    assert_distance_is_zero_or_refused(case, method._replace(phi=phi), DISTANCES[way])


@on_every_topology
@in_both_forms
@pytest.mark.parametrize("phi", [0.05, 0.4])
def test_catalogue_anchored_to_pretrained_weights(name, form, phi):
    assert_distance_is_zero_or_refused(case_of(name), Method(phi=phi, form=form), torch.sub)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "assigned": lambda net: net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True) and net,
    "moved": lambda net: net.double().float(),
}


@pytest.mark.parametrize("how", COPIES)
def test_one_row_is_as_loud_in_a_copy(how):
    net, tgd = network(1)
    tgd = COPIES[how](tgd)
    for name, parameter in tgd.named_parameters():
        with pytest.raises(RowsError, match=r"'sub', \(1.* met \(.*remove_tgd"):
            parameter - net.get_parameter(name)


def test_one_row_is_used_as_ever_among_its_like():
    """Averages, penalties between two TGD networks of one plan, and steps."""
    _, tgd = network(1)
    other = copy.deepcopy(tgd)
    for parameter, anchor in zip(tgd.parameters(), other.parameters(), strict=True):
        assert not (parameter - anchor).any()
    average = torch.optim.swa_utils.AveragedModel(tgd)
    average.update_parameters(tgd)
    optimizer = torch.optim.AdamW(tgd.parameters(), lr=0.1, foreach=True)
    tgd(X).square().mean().backward()
    optimizer.step()
    average.update_parameters(tgd)
    assert all((p != q).any() for p, q in zip(tgd.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("flow", ["masked", "full"])
@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (2, 2)], ids=["convolution", "linear"])
def test_an_activation_may_have_the_shape_of_the_weight(shape, flow):
    """The backward multiplies it with the rows, and broadcasts nothing."""
    torch.manual_seed(0)
    layers = (
        (nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 1))
        if len(shape) == 4
        else (nn.Linear(2, 2), nn.Linear(2, 3))
    )
    net = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    x = torch.rand(shape, requires_grad=True)
    assert net[0].weight.shape == x.shape
    tgd = apply_tgd(net, x, phi=0.5, flow=flow)
    assert any(len(rows) == 1 for rows in tgd.parameters())
    tgd(x).square().mean().backward()
    assert x.grad.any()


class FrozenBatchNorm(nn.Module):
    """As torchvision, timm and detectors have it: the values of a batch norm, as buffers."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(norm.num_features))
            getattr(self, name).data = getattr(norm, name).data.clone().detach()
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


@ROWS
@in_both_forms
def test_batch_norms_frozen_afterwards(rows, form):
    net, tgd = network(rows, form)
    frozen = FrozenBatchNorm(tgd.get_submodule("1"))
    x = net[0](X)
    torch.testing.assert_close(frozen(x), net[1](x))


@ROWS
@in_both_forms
def test_a_conv_and_its_norm_fused_afterwards(rows, form):
    net, tgd = network(rows, form)
    conv, norm = tgd.get_submodule("0"), tgd.get_submodule("1")
    statistics = norm.running_mean, norm.running_var, norm.eps
    weight, bias = fusion.fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
    torch.testing.assert_close(F.conv2d(X, weight, bias, padding=1), net[1](net[0](X)))


@ROWS
def test_torchs_own_fusion_is_refused(rows):
    _, tgd = network(rows)
    with pytest.raises(RewriteError, match="remove_tgd"):
        fusion.fuse_conv_bn_eval(tgd[0], tgd[1])
    plain = remove_tgd(tgd).eval()
    torch.testing.assert_close(fusion.fuse_conv_bn_eval(plain[0], plain[1])(X), plain[:2](X))


def assign(conv: nn.Module) -> None:
    conv.weight = nn.Parameter(conv.weight.detach().clone())


def freeze(conv: nn.Module) -> None:
    conv.weight.requires_grad = False


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another weight": assign,
    "a Parameter of it": lambda conv: nn.Parameter(conv.weight),
    "no bias": lambda conv: setattr(conv, "bias", None),
    "deleted": lambda conv: delattr(conv, "weight"),
    "frozen": freeze,
    "frozen by method": lambda conv: conv.weight.requires_grad_(False),
    "initialised": lambda conv: nn.init.kaiming_normal_(conv.weight),
    "clipped": lambda conv: conv.weight.data.clamp_(-1, 1),
    "a row of it": lambda conv: conv.weight.detach()[0].zero_(),
    "an entry of it": lambda conv: conv.weight.data.__setitem__(0, 0.0),
    "out": lambda conv: torch.add(conv.weight.detach(), 1.0, out=conv.weight.data),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "pruned rows": lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
    "optimized": lambda conv: torch.optim.SGD([conv.weight], 0.1),
    "its gradient": lambda conv: conv.weight.grad,
    "a hook": lambda conv: conv.weight.register_hook(print),
}


@ROWS
@pytest.mark.parametrize("change", CHANGES)
def test_what_would_be_lost_is_refused_and_changes_nothing(change, rows):
    _, tgd = network(rows)
    before, expected = copy.deepcopy(tgd.state_dict()), tgd(X)
    with pytest.raises(RewriteError, match="remove_tgd"):
        CHANGES[change](tgd[0])
    assert all(torch.equal(value, before[name]) for name, value in tgd.state_dict().items())
    assert torch.equal(tgd(X), expected)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("way", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_the_old_norms_of_weights_are_refused(way):
    _, tgd = network(1)
    with pytest.raises(RewriteError, match="remove_tgd"):
        way(tgd[0])


def test_the_whole_is_differentiable_and_counts_as_a_parameter():
    _, tgd = network(3)
    assert isinstance(tgd[0].weight, nn.Parameter)
    rows = dict(tgd.named_parameters())["0.weight"]
    (gradient,) = torch.autograd.grad(tgd[0].weight.square().sum(), rows)
    assert torch.equal(gradient, 2 * rows)
    assert type(tgd[0].weight * 2) is Tensor


@in_both_forms
def test_a_layer_of_the_same_type_is_a_plain_one(form):
    """LoRA on top of a TGD network makes its own layers so."""
    net, tgd = network(3, form)
    for name, module in net.named_modules():
        if name:
            made = type(tgd.get_submodule(name))
            kind = type(module)
            arguments = {nn.Conv2d: (3, 4, 3), Own: (3, 4, 3), nn.BatchNorm2d: (4,), nn.ReLU: ()}[kind]
            assert type(made(*arguments)) is kind
            assert list(made(*arguments).state_dict()) == list(kind(*arguments).state_dict())
