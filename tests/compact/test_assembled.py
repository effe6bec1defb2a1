"""Parameters without a twin, put together by a property: wherever a parameter can be, and whatever is done with it."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parallel import replicate
from torch.nn.utils import parametrizations

from tests.laws.subjects import assert_equal_tensors, with_flags_of
from tests.strategies.case import randomise, scalar_loss
from tgdsurgery import apply_tgd, remove_tgd, verify
from tgdsurgery.surgery.compact import Assembled, Compact, frozen_buffers
from tgdsurgery.surgery.layers.held_norm import HeldNorm

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


class OwnConv(nn.Conv2d):
    """A class of the user's own."""


class OwnNorm(nn.BatchNorm2d):
    """And a norm."""


class Own(nn.Module):
    """Layers of one's own classes, parameters of the root, a parameter of no layer before and after others."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1, 3, 8, 8))
        self.kernel = nn.Parameter(torch.zeros(6, 6, 3, 3))
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("shift", torch.zeros(1))
        self.first, self.norm, self.last = OwnConv(3, 6, 3, padding=1), OwnNorm(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x + self.offset)), inplace=True)
        return self.last(F.silu(F.conv2d(x, self.kernel, padding=1)) * self.scale + self.shift)


def made(model: nn.Module) -> nn.Module:
    return randomise(model, seed=0).double()


def own(**settings: Any) -> tuple[nn.Module, nn.Module]:
    net = made(Own())
    return net, apply_tgd(net, X, phi=0.5, **settings)


def step(net: nn.Module) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    scalar_loss(net.train()(X)).backward()
    optimizer.step()


def by_file(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": by_file,
}


def test_what_it_is_made_of():
    net, tgd = own()
    kinds = {name for name, module in tgd.named_modules() if isinstance(module, Assembled)}
    assert kinds == {"", "first", "norm"}
    assert isinstance(tgd, Own)
    assert type(tgd).__name__ == "DividedOwn"
    assert isinstance(tgd.norm, HeldNorm)
    assert isinstance(tgd.last, Compact)
    rows = int(tgd.tgd_plan.trainable("kernel").sum())
    assert 0 < rows < 6
    assert dict(tgd.named_parameters())["kernel"].shape == (rows, 6, 3, 3)
    assert tgd.kernel.shape == (6, 6, 3, 3)
    assert tgd.kernel is not dict(tgd.named_parameters())["kernel"]
    assert isinstance(tgd.get_buffer("offset"), Tensor)
    assert list(tgd.state_dict()) == list(net.state_dict())
    assert {"offset", "scale", "_tgd_frozen_kernel", "norm._tgd_frozen_weight"} <= set(frozen_buffers(tgd))


@pytest.mark.parametrize("how", COPIES)
def test_copies_train_by_themselves(how: str):
    """A held norm is divided as well: one class made at run time on top of another."""
    _, tgd = own()
    twin = COPIES[how](tgd)
    assert [type(module) for module in twin.modules()] == [type(module) for module in tgd.modules()]
    before = copy.deepcopy(tgd.state_dict())
    step(twin)
    assert_equal_tensors(tgd.state_dict(), before)
    assert not torch.equal(twin.state_dict()["kernel"], before["kernel"])
    step(tgd)
    assert_equal_tensors(twin.state_dict(), tgd.state_dict())
    assert verify(before, twin).ok


def test_without_a_gradient_it_is_used_like_a_parameter():
    net, tgd = own()
    with torch.no_grad():
        assert tgd.kernel.requires_grad
        assert not tgd(X).requires_grad
    with torch.inference_mode():
        assert torch.equal(tgd.kernel, net.kernel)


def test_states_of_other_types_assigned_or_with_their_graph():
    net, tgd = own()
    other = made(Own())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    for state, assign in (
        (other.state_dict(), False),
        (copy.deepcopy(net.state_dict()), True),
        (copy.deepcopy(other).state_dict(keep_vars=True), True),
    ):
        names = [name for name, _ in tgd.named_parameters()]
        tgd.load_state_dict(state, assign=assign)
        assert_equal_tensors(
            {n: t.detach() for n, t in tgd.state_dict().items()}, {n: t.detach() for n, t in state.items()}
        )
        assert [name for name, _ in tgd.named_parameters()] == names
        step(tgd)
    kept = tgd.state_dict(keep_vars=True)["kernel"]
    assert kept.requires_grad
    with pytest.raises(RuntimeError, match=r"size mismatch for kernel: .*\[3, 6, 3, 3\].*\[6, 6, 3, 3\]"):
        tgd.load_state_dict({**net.state_dict(), "kernel": net.kernel[:3]})


def test_torch_func():
    _, tgd = own()
    parameters = {name: parameter.detach().clone() for name, parameter in tgd.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return scalar_loss(torch.func.functional_call(tgd.eval(), parameters, (X,)))

    found = torch.func.grad(loss)(parameters)
    scalar_loss(tgd(X)).backward()
    for name, parameter in tgd.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_replicas(monkeypatch: pytest.MonkeyPatch):
    """What DataParallel makes for each device has no Parameters, but tensors as attributes."""
    _, tgd = own()

    def broadcast(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setitem(replicate.__globals__, "_broadcast_coalesced_reshape", broadcast)
    for replica in replicate(tgd, [0, 1]):
        assert not list(replica.parameters())
        assert torch.equal(replica.eval()(X), tgd.eval()(X))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend: str):
    torch._dynamo.reset()
    _, tgd = own()
    eager = copy.deepcopy(tgd)
    for net, run in ((eager, eager), (tgd, torch.compile(tgd, backend=backend))):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
        scalar_loss(run(X)).backward()
        optimizer.step()
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(tgd.state_dict()[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_exported_and_traced():
    _, tgd = own()
    expected = tgd.eval()(X)
    torch.testing.assert_close(torch.export.export(tgd, (X,)).module()(X), expected)
    torch.testing.assert_close(torch.jit.trace(tgd, X, check_trace=False)(X), expected)


class Twice(Own):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.ParameterDict({"kernel": self.kernel})

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.again["kernel"].mean()


def test_a_parameter_of_two_modules():
    net = made(Twice())
    tgd = apply_tgd(net, X, phi=0.5)
    parameters = dict(tgd.named_parameters(remove_duplicate=False))
    assert parameters["again.kernel"] is parameters["kernel"]
    assert tgd.again.get_buffer("_tgd_frozen_kernel") is tgd.get_buffer("_tgd_frozen_kernel")
    for other in (tgd, copy.deepcopy(tgd), by_file(tgd)):
        step(other)
        state = other.state_dict()
        assert torch.equal(state["kernel"], state["again.kernel"])
        assert not torch.equal(state["kernel"], net.kernel)
    plain = remove_tgd(tgd)
    assert plain.again["kernel"] is plain.kernel
    assert type(plain.again) is nn.ParameterDict


def test_what_the_user_froze_keeps_its_place():
    net = made(nn.Sequential(OwnConv(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    tgd = apply_tgd(net, X, phi=0.5)
    assert [name for name, _ in tgd.named_parameters()] == ["0.bias", "2.weight"]
    assert list(tgd.state_dict()) == list(net.state_dict())
    before = copy.deepcopy(tgd.state_dict())
    with torch.no_grad():
        for parameter in tgd.parameters():
            parameter.add_(1)
    assert verify(before, tgd).ok
    plain = remove_tgd(tgd)
    assert {n: p.requires_grad for n, p in plain.named_parameters()} == {
        n: p.requires_grad for n, p in net.named_parameters()
    }


class WithMemory(nn.Module):
    """A recurrent layer keeps a list of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.memory, self.last = nn.Conv1d(3, 4, 3), nn.GRU(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.memory(F.relu(self.first(x)).permute(2, 0, 1))[0])


def test_recurrent_layers():
    net, x = made(WithMemory()), X.flatten(2)
    tgd = apply_tgd(net, x, phi=0.9, on_unknown="mix")
    assert (
        0 < sum(p.numel() for p in tgd.memory.parameters()) < sum(p.numel() for p in net.memory.parameters())
    )
    assert torch.equal(tgd(x), net(x))
    state = {name: value + 1 for name, value in net.state_dict().items()}
    for other in (tgd, copy.deepcopy(tgd), by_file(tgd)):
        other.load_state_dict(state)
        plain = remove_tgd(other)
        assert type(plain.memory) is nn.GRU
        assert all(a is b for a, b in zip(plain.memory._flat_weights, plain.memory.parameters(), strict=True))
        assert torch.equal(other(x), plain(x))
    assert_equal_tensors(tgd.float().state_dict(), {n: v.float() for n, v in state.items()})
    assert torch.isfinite(tgd(x.float())).all()


class Attention(nn.Module):
    """torch's own attention reads the weights of a layer inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = (
            nn.Conv1d(3, 4, 3),
            nn.MultiheadAttention(4, 2),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x)).permute(2, 0, 1)
        return self.last(self.attention(x, x, x)[0])


@pytest.mark.parametrize("on_unknown", ["raise", "mix"])
def test_attention(on_unknown: str):
    net, x = made(Attention()), X.flatten(2)
    tgd = apply_tgd(net, x, phi=0.9, on_unknown=on_unknown)
    before = copy.deepcopy(tgd.state_dict())
    scalar_loss(tgd.train()(x)).backward()
    torch.optim.AdamW(tgd.parameters(), lr=0.1).step()
    assert verify(before, tgd).ok
    net.load_state_dict(tgd.state_dict())
    assert torch.equal(tgd.eval()(x), with_flags_of(net, tgd).eval()(x))


def test_a_network_that_is_a_graph():
    """Its class exists for this one network, and its copies are made from its code."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.first = nn.Parameter(torch.zeros(6, 6, 3, 3)), nn.Conv2d(3, 6, 3)
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x):  # torch's files of a graph cannot name types that are texts, as they are here
            return self.last(F.relu(F.conv2d(F.relu(self.first(x)), self.kernel)))

    net = fx.symbolic_trace(made(Functional()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tgd = apply_tgd(net, X, phi=0.5)
    before = copy.deepcopy(tgd.state_dict())
    assert list(before) == list(net.state_dict())
    for other in (tgd, copy.deepcopy(tgd), pickle.loads(pickle.dumps(tgd))):
        step(other)
        assert verify(before, other, tgd.tgd_plan).ok
        assert not torch.equal(other.state_dict()["kernel"], before["kernel"])
    plain = remove_tgd(tgd)
    assert_equal_tensors(plain.state_dict(), tgd.state_dict())


def test_a_parametrized_network_is_stored_by_its_state_only():
    net = made(nn.Sequential(parametrizations.weight_norm(OwnConv(3, 6, 3)), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    tgd = apply_tgd(net, X, phi=0.5)
    twin = copy.deepcopy(tgd)
    step(tgd)
    twin.load_state_dict(tgd.state_dict())
    assert torch.equal(twin.eval()(X), tgd.eval()(X))
    with pytest.raises(RuntimeError, match="parametrized"):
        by_file(tgd)
