"""A layer that was replaced, pruned or added after apply_tgd: no door takes it without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.laws.subjects import Method, in_both_forms, methods, on_every_topology, operated
from tests.strategies import Case, cases
from tests.strategies.case import randomise
from tests.topologies import case_of
from tgdsurgery import RewriteError, apply_tgd, guard, load_delta, remove_tgd, save_delta, verify

X = torch.linspace(-1, 1, 384).view(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.body, self.pool = nn.Conv2d(12, 8, 3), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(torch.relu(self.norm(self.stem(x))))
        return self.fc(self.pool(x).flatten(1))


def made(form: str, **settings: Any) -> tuple[nn.Module, nn.Module]:
    net = randomise(Net(), seed=0)
    return net, apply_tgd(net, X, phi=0.5, form=form, **settings)


def guarded(net: nn.Module, tgd: nn.Module, folder: Path) -> None:
    guard(torch.optim.SGD(tgd.parameters(), 0.1), tgd)


DOORS: dict[str, Callable[[nn.Module, nn.Module, Path], object]] = {
    "guard": guarded,
    "save_delta": lambda net, tgd, folder: save_delta(tgd, folder / "delta.safetensors"),
    "verify": lambda net, tgd, folder: verify(net, tgd),
    "remove_tgd": lambda net, tgd, folder: remove_tgd(tgd),
}
DOOR = pytest.mark.parametrize("door", DOORS)


@DOOR
@in_both_forms
@pytest.mark.parametrize("classes", [5, 10, 20])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel], ids=["bare", "wrapped"])
def test_a_head_for_another_task(door, form, classes, wrap, tmp_path):
    net, tgd = made(form)
    tgd.fc = nn.Linear(8, classes)
    message = r"^fc was replaced after apply_tgd\. Replace it before, and use overrides=\{'fc': 'train'\}\.$"
    with pytest.raises(RewriteError, match=message):
        DOORS[door](net, wrap(tgd), tmp_path)
    assert not list(tmp_path.iterdir())


@DOOR
@in_both_forms
def test_a_head_that_is_trained_whole(door, form, tmp_path):
    """Of another shape it is refused as well: a delta could not be put on the base. Replaced before, it is carried."""
    net, tgd = made(form, overrides={"fc": "train"})
    tgd.fc = nn.Linear(8, 5)
    with pytest.raises(RewriteError, match="fc was replaced"):
        DOORS[door](net, tgd, tmp_path)
    net.fc = nn.Linear(8, 5)
    tgd = apply_tgd(net, X, phi=0.5, form=form, overrides={"fc": "train"})
    optimizer = torch.optim.SGD(tgd.parameters(), 0.1)
    guard(optimizer, tgd)
    tgd(X).square().mean().backward()
    optimizer.step()
    assert verify(net, tgd).ok
    save_delta(tgd, tmp_path / "delta.safetensors")
    adapted = load_delta(net, tmp_path / "delta.safetensors")
    assert torch.equal(adapted.fc.weight, tgd.get_submodule("fc").weight)
    assert (adapted.fc.weight != net.fc.weight).all()
    assert torch.equal(adapted.eval()(X), remove_tgd(tgd).eval()(X))


@DOOR
@in_both_forms
@pytest.mark.parametrize("name", ["stem", "norm", "body"])
@pytest.mark.parametrize("other", [nn.Identity(), nn.Conv2d(12, 12, 1), nn.GroupNorm(2, 12)], ids=repr)
def test_any_layer(door, form, name, other, tmp_path):
    net, tgd = made(form)
    setattr(tgd, name, other)
    with pytest.raises(RewriteError, match=f"^{name} was replaced after apply_tgd"):
        DOORS[door](net, tgd, tmp_path)


def assert_intact(case: Case, method: Method, folder: Path) -> None:
    """Raise unless all doors take a network that nobody changed, and none takes it with a layer replaced."""
    tgd = operated(case, method)
    doors = {name: door for name, door in DOORS.items() if name != "guard" or list(tgd.parameters())}
    for door in doors.values():
        door(case.model, tgd, folder)
    (file,) = folder.iterdir()
    file.unlink()
    planned = {
        rows.name.rpartition(".")[0]: entry
        for entry in tgd.tgd_plan.entries
        for rows in entry.layer.parameters
    }
    owner = next((name for name, entry in planned.items() if name and not all(entry.mask)), None)
    if owner is None:
        return
    parent, _, name = owner.rpartition(".")
    tgd.get_submodule(parent).add_module(name, nn.Linear(3, 7))
    for door in doors.values():
        with pytest.raises(RewriteError, match=r"was replaced after apply_tgd|holds none of the TGD model"):
            door(case.model, tgd, folder)
    assert not list(folder.iterdir())


@given(case=cases(), method=methods)
def test_random_networks(case, method, tmp_path_factory):
    assert_intact(case, method, tmp_path_factory.mktemp("deltas"))


@on_every_topology
@in_both_forms
def test_catalogue(name, form, tmp_path):
    assert_intact(case_of(name), Method(form=form), tmp_path)


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned rows": lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
    "weight norm": parametrizations.weight_norm,
}


@pytest.mark.parametrize("way", COMPUTED)
@pytest.mark.parametrize("flow", ["masked", "full"])
def test_pruned_after_surgery_the_layers_form_says_so_at_every_door_and_forward(way, flow, tmp_path):
    net, tgd = made("layers", flow=flow)
    COMPUTED[way](tgd.get_submodule("body"))
    for act in (*DOORS.values(), lambda net, tgd, folder: tgd(X)):
        with pytest.raises(RewriteError, match=r"weight of a .* was pruned.*prune\.remove"):
            act(net, tgd, tmp_path)


@pytest.mark.parametrize("way", COMPUTED)
def test_pruned_after_surgery_the_compact_form_refuses_at_once(way, tmp_path):
    net, tgd = made("compact")
    with pytest.raises(RewriteError, match="remove_tgd"):
        COMPUTED[way](tgd.body)
    for door in DOORS.values():
        door(net, tgd, tmp_path)


@pytest.mark.parametrize("first", [lambda tgd: tgd(X), lambda tgd: None], ids=["forward", "no forward"])
def test_pruning_that_was_made_permanent_is_one_of_the_trainable_rows(first):
    """Of the frozen ones it is undone, as everything that is written to them."""
    net, tgd = made("layers")
    before, trainable = net.body.weight.detach().clone(), tgd.tgd_plan.trainable("body")
    assert trainable.any()
    assert not trainable.all()
    prune.l1_unstructured(tgd.get_submodule("body"), "weight", 0.5)
    pruned = tgd.get_submodule("body").weight_mask == 0
    assert pruned[trainable].any()
    assert pruned[~trainable].any()
    prune.remove(tgd.get_submodule("body"), "weight")
    first(tgd)
    assert verify(net, tgd).ok
    plain = remove_tgd(tgd)
    assert plain.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(plain.body.weight, before.where(~(pruned & trainable.view(-1, 1, 1, 1)), 0.0))


@in_both_forms
@given(name=st.sampled_from(["extra", "neck"]))
def test_a_layer_that_was_added(form, name, tmp_path_factory):
    """It trains and is there after removal; a delta would have no place for it."""
    folder = tmp_path_factory.mktemp("deltas")
    net, tgd = made(form)
    tgd.add_module(name, nn.Linear(3, 2))
    guarded(net, tgd, folder)
    assert verify(net, tgd).ok
    assert isinstance(remove_tgd(tgd).get_submodule(name), nn.Linear)
    with pytest.raises(RewriteError, match=rf"^{name} was added after apply_tgd.*overrides=.*whole"):
        save_delta(tgd, folder / "delta.safetensors")
    assert not list(folder.iterdir())
