"""Making modules compact and plain again; their state, copies, and what cannot be made compact."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.compact.twins import described, is_compact, rows_of, twin_of
from tgdsurgery.surgery.compact import twin as rows
from tgdsurgery.surgery.compact.registry import TWINS
from tgdsurgery.surgery.compact.swap import compact, obstacles, restore

MAKERS: dict[str, Any] = {
    "Conv1d": lambda: nn.Conv1d(2, 6, 3),
    "Conv2d": lambda: nn.Conv2d(4, 6, 1, groups=2),
    "Conv3d": lambda: nn.Conv3d(2, 6, 2, bias=False),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 6, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(2, 6, 2),
    "Linear": lambda: nn.Linear(3, 6),
    "BatchNorm1d": lambda: nn.BatchNorm1d(6),
    "BatchNorm2d": lambda: nn.BatchNorm2d(6),
    "BatchNorm3d": lambda: nn.BatchNorm3d(6, track_running_stats=False),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(6, affine=True),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "InstanceNorm3d": lambda: nn.InstanceNorm3d(6, affine=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "LayerNorm": lambda: nn.LayerNorm((6, 2, 2)),
    "RMSNorm": lambda: nn.RMSNorm(6),
    "PReLU": lambda: nn.PReLU(6),
}
SOME = (True, False, True, True, False, False)
kinds = pytest.mark.parametrize("kind", MAKERS)


def plain(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = MAKERS[kind]()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
    return module


def assert_same_state(module: nn.Module, state: Any) -> None:
    found = module.state_dict()
    assert list(found) == list(state)
    assert found._metadata == state._metadata
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].stride() == tensor.stride()
        assert torch.equal(found[name], tensor), name


def test_every_class_is_tested():
    assert {original.__name__ for original in TWINS} == set(MAKERS)


@kinds
@given(mask=st.lists(st.booleans(), min_size=6, max_size=6), assign=st.booleans())
def test_state_dicts_are_those_of_the_plain_module_both_ways(kind: str, mask: list[bool], assign: bool):
    module, other = plain(kind), plain(kind, seed=1)
    twin = twin_of(module, mask)
    assert isinstance(twin, type(module))
    assert_same_state(twin, module.state_dict())
    twin.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    assert_same_state(twin, other.state_dict())
    module.load_state_dict(twin.state_dict())
    assert_same_state(module, other.state_dict())
    trainable = sum(mask)
    for name, parameter in twin.named_parameters():
        assert parameter.requires_grad
        rows = next(rows for rows in described(module).parameters if rows.name == f"layer.{name}")
        assert parameter.numel() * len(mask) == rows.numel * trainable
    assert bool(list(twin.parameters())) == any(mask)


@kinds
@pytest.mark.parametrize("mask", [SOME, (False,) * 6])
def test_restored_it_is_what_it_was(kind: str, mask: tuple[bool, ...]):
    module = plain(kind)
    next(module.parameters()).requires_grad_(False)
    twin = twin_of(module, mask)
    assert is_compact(twin)
    back = restore(twin)
    assert type(back) is type(module)
    assert vars(back).keys() == vars(module).keys()
    for part in ("_parameters", "_buffers", "_modules"):
        assert list(getattr(back, part)) == list(getattr(module, part))
    assert back._non_persistent_buffers_set == set()
    assert_same_state(back, module.state_dict())
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in module.parameters()]


@kinds
def test_copies_and_files_hold_the_same_module(kind: str):
    twin = twin_of(plain(kind), SOME)
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    for other in (
        copy.deepcopy(twin),
        pickle.loads(pickle.dumps(twin)),
        torch.load(file, weights_only=False),
    ):
        assert type(other) is type(twin)
        assert str(other) == str(twin)
        assert_same_state(other, twin.state_dict())
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in twin.parameters()}


@kinds
@pytest.mark.parametrize("mask", [SOME, (False,) * 6])
def test_it_moves_to_other_types_and_devices_as_the_plain_module_does(kind: str, mask: tuple[bool, ...]):
    module = plain(kind)
    for move in (nn.Module.half, nn.Module.double, lambda m: m.to(torch.bfloat16)):
        assert_same_state(move(twin_of(module, mask)), move(copy.deepcopy(module)).state_dict())
    for assign in (False, True):
        twin = twin_of(module, mask).to("meta")
        assert {t.device.type for t in (*twin.parameters(), *twin.buffers())} == {"meta"}
        assert [t.shape for t in twin.state_dict().values()] == [
            t.shape for t in module.state_dict().values()
        ]
        if not assign:
            twin.to_empty(device="cpu")
        twin.load_state_dict(module.state_dict(), assign=assign)
        assert_same_state(twin, module.state_dict())
        assert {t.device.type for t in (*twin.parameters(), *twin.buffers())} == {"cpu"}


def test_wrong_states_are_refused_in_the_terms_of_the_plain_module():
    twin = twin_of(plain("Conv2d"), SOME)
    before = copy.deepcopy(twin.state_dict())
    state = twin.state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: .*\[3, 2, 1, 1\].*\[6, 2, 1, 1\]"):
        twin.load_state_dict({**state, "weight": state["weight"][:3]})
    with pytest.raises(RuntimeError, match=r"Missing.*bias"):
        twin.load_state_dict({"weight": state["weight"]})
    with pytest.raises(RuntimeError, match=r"Unexpected.*_tgd_frozen_weight"):
        twin.load_state_dict({**state, "_tgd_frozen_weight": state["weight"]})
    assert_same_state(twin, before)
    assert twin.load_state_dict({}, strict=False).missing_keys == ["weight", "bias"]


def test_inside_a_network_the_keys_and_the_order_stay():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    twin = copy.deepcopy(net)
    for name, mask in (("0", SOME), ("1", [False] * 6)):
        module = twin.get_submodule(name)
        assert compact(module, described(module, name), mask, stops_gradient=True) is module
    assert_same_state(twin, net.state_dict())
    assert [name for name, _ in twin.named_parameters()] == ["0.weight", "0.bias"]
    kept = net.state_dict()
    net.load_state_dict(twin.state_dict())
    assert_same_state(net, kept)


def _step(parameter: nn.Parameter, **options: Any) -> None:
    parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW([parameter], lr=0.1, **options).step()


@torch.no_grad()
def _in_place(parameter: nn.Parameter) -> None:
    parameter.add_(1.0)


@torch.inference_mode()
def _in_inference_mode(parameter: nn.Parameter) -> None:
    parameter.add_(1.0)


CHANGES: dict[str, Any] = {
    "a step": lambda twin: _step(rows_of(twin)),
    "a fused step": lambda twin: _step(rows_of(twin), fused=True),
    "a step for each": lambda twin: _step(rows_of(twin), foreach=True),
    "in place": lambda twin: _in_place(rows_of(twin)),
    "in place, in inference mode": lambda twin: _in_inference_mode(rows_of(twin)),
    "through data": lambda twin: rows_of(twin).data.mul_(0.5),
    "through detach": lambda twin: rows_of(twin).detach().mul_(0.5),
    "other data": lambda twin: setattr(rows_of(twin), "data", rows_of(twin).detach() + 1),
    "an initialisation": lambda twin: nn.init.normal_(rows_of(twin)),
    "a clip of values": lambda twin: rows_of(twin).data.clamp_(-0.1, 0.1),
    "another parameter": lambda twin: setattr(twin, "weight", nn.Parameter(rows_of(twin).detach() + 1)),
    "a state": lambda twin: twin.load_state_dict(plain("Conv2d", seed=1).state_dict()),
    "a state, assigned": lambda twin: twin.load_state_dict(plain("Conv2d", seed=1).state_dict(), assign=True),
    "a write to the room for rows": lambda twin: twin._tgd_frozen_weight.index_fill_(
        0, torch.tensor([0, 2]), 7.0
    ),
    "another type and back": lambda twin: twin.double().float(),
    "a copy": lambda twin: copy.deepcopy(twin),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_sees_every_change_of_the_rows(change: str, mode: Any):
    twin, x = twin_of(plain("Conv2d"), SOME), torch.randn(1, 4, 3, 3)
    for _ in range(2):
        with mode():
            twin(x)
            twin(x)
        CHANGES[change](twin)
        module = plain("Conv2d")
        module.load_state_dict(twin.state_dict())
        with mode():
            assert torch.equal(twin(x), module(x))


def test_a_forward_writes_the_rows_only_if_they_changed(monkeypatch: pytest.MonkeyPatch):
    written = []
    right = rows.fill_
    monkeypatch.setattr(rows, "fill_", lambda *args: written.append(args[1].shape) or right(*args))
    twin, x = twin_of(plain("Conv2d"), SOME), torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        for _ in range(3):
            twin(x)
    assert written == [twin._tgd_frozen_weight.shape, twin._tgd_frozen_bias.shape]
    for change in (lambda: _step(rows_of(twin)), twin.eval):
        written.clear()
        change()
        with torch.no_grad():
            twin(x)
            twin(x)
        assert written == [twin._tgd_frozen_weight.shape, twin._tgd_frozen_bias.shape]


def test_it_shows_how_much_is_trainable():
    assert "kernel_size=(3,), stride=(1,), 3/6 trainable" in str(twin_of(plain("Conv1d"), SOME))
    assert str(twin_of(plain("PReLU"), [False] * 6)) == "CompactPReLU(num_parameters=6, 0/6 trainable)"


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean())


def shared_weight() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net


def hooked(register: Any) -> nn.Module:
    module = nn.Conv2d(2, 2, 1)
    register(module)
    return nn.Sequential(module)


def laid_out_otherwise() -> nn.Module:
    module = nn.Linear(4, 3)
    module.weight = nn.Parameter(torch.randn(4, 3).t())
    return nn.Sequential(module)


def fixed_bias() -> nn.Module:
    module = nn.Conv2d(2, 2, 1)
    module.bias.requires_grad_(False)
    return module


OBSTACLES: dict[str, Any] = {
    "OwnForward has no compact twin": lambda: nn.Sequential(OwnForward(2, 2, 1)),
    "ParametrizedConv2d has no compact twin": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(2, 2, 1))
    ),
    "shares a parameter": shared_weight,
    "laid out": laid_out_otherwise,
    "has hooks": lambda: hooked(lambda m: m.register_forward_hook(lambda *a: None)),
    "it has hooks": lambda: hooked(lambda m: m.weight.register_hook(lambda g: None)),
    "do not require a gradient": lambda: nn.Sequential(fixed_bias()),
    "complex": lambda: nn.Sequential(nn.Conv2d(2, 2, 1, dtype=torch.complex64)),
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_what_cannot_be_made_compact_is_known_with_its_reason(reason: str):
    net = OBSTACLES[reason]()
    layer = described(net[0], "0") if "Param" not in reason else described(nn.Conv2d(2, 2, 1), "0")
    assert reason in obstacles(net, [layer])["0"]


@kinds
def test_everything_else_has_no_obstacle(kind: str):
    net = nn.Sequential(plain(kind))
    assert obstacles(net, [described(net[0], "0")]) == {}
    assert obstacles(nn.Sequential(net), [described(net[0], "0")]).keys() == {"0"}
