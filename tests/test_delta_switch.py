"""Deltas switched in place: adapted inside the block, the base bit for bit after it; and deltas by halves."""

from __future__ import annotations

import copy
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.deltas import adapted, bits, saved
from tests.laws.subjects import Method, in_both_forms, methods, on_every_topology
from tests.strategies import Case, call, cases, leaves
from tests.test_delta import IMAGES, base
from tests.topologies import case_of
from tgd_pet.network import new_network
from tgdsurgery import (
    CheckpointError,
    DeltaSwitch,
    PlanError,
    RewriteError,
    apply_tgd,
    load_delta,
    remove_tgd,
    save_delta,
)

CASE = Case(base(), IMAGES)
SCALES = st.floats(0, 1)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three deltas over `base`, the last one of another plan."""
    for name, phi in {"one": 0.3, "two": 0.3, "three": 0.6}.items():
        saved(CASE, tmp_path / f"{name}.safetensors", seed=len(name), method=Method(phi=phi))
    return {name: tmp_path / f"{name}.safetensors" for name in ("one", "two", "three")}


def assert_switches(case: Case, folder: Path, *ways: Method) -> None:
    """Raise unless each delta gives its network inside its block, and the base is as it was outside of all."""
    wanted, paths = {}, {}
    for number, method in enumerate(ways):
        paths[str(number)] = folder / f"{number}.safetensors"
        wanted[str(number)] = remove_tgd(saved(case, paths[str(number)], number, method=method)).eval()
    net = copy.deepcopy(case.model).eval()
    before, objects = bits(net.state_dict()), list(map(id, net.state_dict(keep_vars=True).values()))
    flags = [parameter.requires_grad for parameter in net.parameters()]
    deltas = DeltaSwitch(net, paths)
    assert bits(net.state_dict()) == before
    for name in [*paths, *paths]:
        with torch.inference_mode(name == "0"), deltas(name) as given:
            assert given is net
            assert deltas.active == name
            assert bits(net.state_dict()) == bits(wanted[name].state_dict())
        assert bits(net.state_dict()) == before
    assert list(map(id, net.state_dict(keep_vars=True).values())) == objects
    assert [parameter.requires_grad for parameter in net.parameters()] == flags


@given(case=cases(), one=methods, other=methods)
def test_random_networks(case, one, other, tmp_path_factory):
    assert_switches(case, tmp_path_factory.mktemp("random"), one, other)


@on_every_topology
@in_both_forms
def test_catalogue(name, form, tmp_path):
    assert_switches(case_of(name), tmp_path, Method(form=form), Method(phi=0.5, form=form))


def unet() -> Case:
    nets = pytest.importorskip(
        "monai.networks.nets", reason="needs `pip install monai`", exc_type=ImportError
    )
    torch.manual_seed(0)
    return Case(nets.UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=1).eval(), torch.rand(2, 1, 32, 32))


def dncnn() -> Case:
    net = new_network(0)
    torch.nn.init.normal_(net.convolutions[-1].weight)
    return Case(net.eval(), torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("real", [unet, dncnn], ids=["MONAI U-Net", "DnCNN of the paper"])
def test_networks_that_people_use(real, tmp_path):
    with torch.random.fork_rng(devices=[]):
        case = real()
    assert_switches(case, tmp_path, Method(phi=0.3), Method(phi=0.6, norm_stats="batch"))
    assert_scales(case, Method(phi=0.6), 0.25, tmp_path)


def test_the_output_is_that_of_the_adapted_network(files):
    net = base()
    deltas, before = DeltaSwitch(net, files), net(IMAGES)
    for name, path in files.items():
        with deltas(name):
            found = net(IMAGES)
        assert torch.equal(found, load_delta(net, path)(IMAGES))
        assert not torch.equal(found, before)
        assert torch.equal(net(IMAGES), before)


def test_an_error_in_the_block_comes_out_and_the_base_is_back(files):
    net = base()
    before, deltas = bits(net.state_dict()), DeltaSwitch(net, files)
    with pytest.raises(ZeroDivisionError), deltas("one"):
        _ = 1 / 0
    assert bits(net.state_dict()) == before
    assert deltas.active is None
    with deltas("two"):
        pass
    assert bits(net.state_dict()) == before


def test_one_delta_is_on_at_a_time_in_all_threads(files):
    net = base()
    before, deltas = bits(net.state_dict()), DeltaSwitch(net, files)
    found: list[str] = []

    def other() -> None:
        try:
            with deltas("two"):
                found.append("entered")
        except RewriteError as error:
            found.append(str(error))

    with deltas("one"):
        inside = bits(net.state_dict())
        with pytest.raises(RewriteError, match="The delta 'one' is on"), deltas("three"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert found == ["The delta 'one' is on. Leave its block first; one delta is on at a time."]
        assert bits(net.state_dict()) == inside
    assert bits(net.state_dict()) == before


def test_unknown_names_are_refused(files):
    deltas = DeltaSwitch(base(), files)
    with pytest.raises(RewriteError, match=r"no delta 'four'\. There are: one, two, three"), deltas("four"):
        pass


def add_one(net: nn.Module) -> None:
    with torch.no_grad():
        net.get_parameter("3.weight").add_(1)


CHANGES = {
    "a weight": add_one,
    "statistics, in training mode": lambda net: net.train()(IMAGES),
    "loaded": lambda net: net.load_state_dict(net.state_dict()),
    "moved": lambda net: net.double().float(),
    "another parameter": lambda net: setattr(net[3], "weight", nn.Parameter(net[3].weight.detach().clone())),
    "another layer": lambda net: net.append(nn.Conv2d(1, 1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_was_changed_between_blocks_is_refused(change, files):
    net = base()
    deltas = DeltaSwitch(net, files)
    with deltas("one"):
        pass
    CHANGES[change](net)
    after = bits(net.state_dict())
    with pytest.raises(RewriteError, match="was changed or moved"), deltas("one"):
        pass
    assert bits(net.state_dict()) == after


@pytest.mark.parametrize("change", [name for name in CHANGES if "statistics" not in name])
def test_a_network_that_was_changed_inside_a_block_is_refused_at_its_end(change, files):
    net = base()
    deltas = DeltaSwitch(net, files)
    with pytest.raises(RewriteError, match="was changed or moved"), deltas("one"):
        CHANGES[change](net)
    with pytest.raises(RewriteError, match="was changed or moved"), deltas("two"):
        pass


@pytest.mark.parametrize("norm_stats", ["hold", "batch"])
def test_statistics_that_training_mode_moves_inside_a_block_come_back(norm_stats, tmp_path):
    saved(CASE, tmp_path / "delta.safetensors", method=Method(norm_stats=norm_stats))
    net = base().train()
    before, deltas = bits(net.state_dict()), DeltaSwitch(net, {"one": tmp_path / "delta.safetensors"})
    for _ in range(2):
        with deltas("one"):
            assert bits(net.state_dict()) == bits(
                load_delta(base(), tmp_path / "delta.safetensors").state_dict()
            )
            net(IMAGES)
        assert bits(net.state_dict()) == before


def test_another_base_is_refused_before_anything_changes(files):
    net = base()
    with torch.no_grad():
        net[6].weight[0, 0, 0, 0] += 1
    before = bits(net.state_dict())
    with pytest.raises(CheckpointError, match=r"made from another network.*\(6\.weight\)"):
        DeltaSwitch(net, files)
    assert bits(net.state_dict()) == before
    tgd = apply_tgd(base(), IMAGES)
    with pytest.raises(RewriteError, match="The base is a TGD network"):
        DeltaSwitch(tgd, files)


def test_files_are_checked_whole(files):
    data = bytearray(files["two"].read_bytes())
    data[-1] ^= 1
    files["two"].write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        DeltaSwitch(base(), files)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, partial(torch.compile, backend="eager")], ids=["DataParallel", "compile"]
)
def test_wrapped_networks_switch_under_their_wrapper(files, wrap):
    net = wrap(base())
    before, deltas = net(IMAGES), DeltaSwitch(net, files)
    with deltas("three"):
        assert torch.equal(net(IMAGES), load_delta(base(), files["three"])(IMAGES))
    assert torch.equal(net(IMAGES), before)


def test_optimizers_keep_their_parameters(files):
    net = base()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net(IMAGES).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    path = files["one"].with_name("own.safetensors")
    saved(Case(net, IMAGES), path)
    state = copy.deepcopy(optimizer.state_dict())
    with DeltaSwitch(net, {"own": path})("own"):
        pass
    assert str(optimizer.state_dict()) == str(state)
    held = optimizer.param_groups[0]["params"]
    assert all(a is b for a, b in zip(held, net.parameters(), strict=True))


def test_memory_layouts_stay(files):
    net = base().to(memory_format=torch.channels_last)
    strides = [parameter.stride() for parameter in net.parameters()]
    with DeltaSwitch(net, files)("three"):
        assert bits(net.state_dict()) == bits(load_delta(base(), files["three"]).state_dict())
    assert [parameter.stride() for parameter in net.parameters()] == strides


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_are_where_the_network_is(files):
    net = base().cuda()
    before, deltas = bits(net.state_dict()), DeltaSwitch(net, files)
    for name, path in files.items():
        with deltas(name):
            assert bits(net.state_dict()) == bits(load_delta(base(), path).state_dict())
        assert bits(net.state_dict()) == before
    half = load_delta(net, files["one"], 0.5)
    assert bits(half.state_dict()) == bits(load_delta(base(), files["one"], 0.5).state_dict())


def test_memory_is_that_of_the_rows(files):
    """The base's rows and buffers once, the rows of each delta, and indices of rows once for each plan."""
    one = DeltaSwitch(base(), {"one": files["one"]}).nbytes
    more = DeltaSwitch(base(), dict.fromkeys("abcdefgh", files["one"])).nbytes
    tgd = adapted(CASE, 3, method=Method(phi=0.3))
    masks = tgd.tgd_plan.parameter_masks().values()
    rows = 4 * sum(int(mask.sum()) for mask in masks) + 8 * 2  # two counters
    rows += 4 * 2 * sum(e.trainable for e in tgd.tgd_plan.entries if e.layer.statistics)
    assert more - one == 7 * rows
    buffers = sum(buffer.nbytes for buffer in base().buffers())
    assert one - 2 * rows < buffers + 1000  # indices


class Copies(nn.Conv2d):
    """A layer whose state_dict holds no tensors of its own."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"].detach().clone()


def test_a_network_that_cannot_be_switched_in_place_is_refused():
    net = nn.Sequential(Copies(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
    with pytest.raises(RewriteError, match=r"holds copies \(0\.weight\)\. Use load_delta"):
        DeltaSwitch(net, {})


def assert_lies_between(found: Tensor, start: Tensor, end: Tensor, scale: float) -> None:
    """Raise unless each entry is the nearest to the point on the line, and those that are equal at both ends stay."""
    if not found.is_floating_point():
        assert torch.equal(found, start if scale == 0 else end)
        return
    exact = start.double() + scale * (end.double() - start.double())
    same = start == end
    assert torch.equal(found[~same], exact.to(found.dtype)[~same])
    assert bits({"": found[same]}) == bits({"": start[same]})


@given(case=cases(), method=methods, scale=SCALES)
def test_scales_of_random_networks(case, method, scale, tmp_path_factory):
    assert_scales(case, method, scale, tmp_path_factory.mktemp("random"))


@on_every_topology
def test_scales_of_the_catalogue(name, tmp_path):
    assert_scales(case_of(name), Method(), 0.3, tmp_path)


def assert_scales(case: Case, method: Method, scale: float, folder: Path) -> None:
    path = folder / "delta.safetensors"
    ends = [bits(net.state_dict()) for net in (case.model, remove_tgd(saved(case, path, method=method)))]
    for end in (0, 1):
        assert bits(load_delta(case.model, path, scale=end).state_dict()) == ends[end]
    start, end = case.model.state_dict(), load_delta(case.model, path).state_dict()
    for name, tensor in load_delta(case.model, path, scale).state_dict().items():
        assert tensor.dtype == start[name].dtype
        assert_lies_between(tensor, start[name], end[name], scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scales_of_other_precisions(dtype, tmp_path):
    case = Case(base().to(dtype), IMAGES.to(dtype))
    assert_scales(case, Method(phi=0.6), 0.7, tmp_path)


def test_infinities_and_signs_of_zero_stay_where_nothing_moved(tmp_path):
    net = base()
    tgd = apply_tgd(net, IMAGES, phi=0.9)
    row = int(tgd.tgd_plan.trainable("3").nonzero()[0])
    net[3].weight.data[row, 0, 0] = torch.tensor([-0.0, torch.inf, torch.nan])
    tgd = apply_tgd(net, IMAGES, plan=tgd.tgd_plan)
    save_delta(tgd, tmp_path / "delta.safetensors")
    half = load_delta(net, tmp_path / "delta.safetensors", 0.5)
    assert bits(half.state_dict()) == bits(net.state_dict())


@pytest.mark.parametrize("scale", [-0.1, 1.5, float("nan"), "half", True])
def test_scales_out_of_range_are_refused(scale, files):
    with pytest.raises(PlanError, match=r"scale is .*\. Give a number from 0 to 1\."):
        load_delta(base(), files["one"], scale)


def test_outputs_move_from_base_to_adapted(files):
    net, adapted_net = base(), load_delta(base(), files["three"])
    half = load_delta(net, files["three"], 0.5)
    (a,), (b,), (c,) = (leaves(call(each, IMAGES)) for each in (net, half, adapted_net))
    assert not torch.equal(a, b)
    assert not torch.equal(b, c)
