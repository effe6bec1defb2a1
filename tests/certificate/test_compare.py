"""Any one bit of what is frozen is found and named, and nothing else is."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.certificate.states import denoiser, flip, movable, random_plan, trained
from tests.laws.subjects import ACCEPTED
from tests.strategies import Case, cases
from tests.topologies import case_of
from tgdsurgery import PlanError, plan_tgd, verify
from tgdsurgery.certificate.compare import compare
from tgdsurgery.certificate.rollback import rolled_back

seeds = st.integers(0, 2**16)


def assert_finds_one_bit(case: Case, seed: int) -> None:
    """Raise unless moved trainable entries pass, and one flipped bit of any other entry is found and named."""
    base = copy.deepcopy(case.model.state_dict())
    plan = random_plan(plan_tgd(case.model, case.inputs, norm_stats=("hold", "batch")[seed % 2]), seed)
    tuned = trained(base, plan, seed)
    found = compare(base, tuned, plan)
    assert [record for record in found.tensors if not record.ok] == []
    assert {r.name: r.trainable_changed for r in found.tensors} == {
        name: int(mask.sum()) for name, mask in movable(base, plan).items()
    }
    assert rolled_back(base, tuned, plan).restores_base
    assert verify(base, tuned, plan).ok
    flipped = flip(tuned, plan, seed)
    if flipped is None:
        return
    names, entry = flipped
    found = compare(base, tuned, plan)
    broken = [record for record in found.tensors if not record.ok]
    assert {record.name for record in broken} == names
    assert all((record.frozen_changed, len(record.channels)) == (1, 1) for record in broken)
    assert not rolled_back(base, tuned, plan).restores_base
    for record in broken:
        layer = plan[record.layer] if record.layer else None
        rows = {rows.name: rows for rows in layer.layer.parameters} if layer else {}
        if record.name in rows:
            assert record.channels == (int(rows[record.name].owner().flatten()[entry]),)
        if layer and record.kind == "parameter":
            assert any(drift.frozen_changed for drift in found.layers if drift.layer == record.layer)


@given(case=cases(), seed=seeds)
def test_random_networks(case, seed):
    assert_finds_one_bit(case, seed)


@pytest.mark.parametrize("name", ACCEPTED)
def test_catalogue(name):
    for seed in range(4):
        assert_finds_one_bit(case_of(name), seed)


def test_a_real_network():
    """A U-Net of MONAI with transposed convs, residual units and PReLU, as segmenters are."""
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    net = UNet(2, 1, 3, (8, 16, 32), (2, 2), num_res_units=1, norm="batch")
    case = Case(net, torch.rand(2, 1, 32, 32))
    for seed in range(10):
        assert_finds_one_bit(case, seed)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128]
)
def test_any_dtype(dtype):
    """The plan's own tensors are numbers of any kind."""
    net = denoiser()
    plan = random_plan(plan_tgd(net), 3)
    base = {name: tensor.to(dtype) for name, tensor in net.state_dict().items()}
    tuned = trained(base, plan, 0)
    assert compare(base, tuned, plan).ok
    entry = (~plan.parameter_masks()["0.weight"]).nonzero()[0]
    tuned["0.weight"][tuple(entry)] *= -1
    found = [record for record in compare(base, tuned, plan).tensors if not record.ok]
    assert [(record.name, record.frozen_changed) for record in found] == [("0.weight", 1)]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(3, 3).to(torch.float8_e4m3fn),
        torch.tensor([1, 2], dtype=torch.uint16),
        torch.tensor([True, False]),
        torch.tensor(1.0),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.rand(4, 4).t(),
        torch.rand(1, 4).expand(5, 4),
        torch.empty(0, 3),
    ],
    ids=["float8", "uint16", "bool", "scalar", "conjugated", "transposed", "expanded", "empty"],
)
def test_any_other_tensor(pair, tensor):
    """Which no plan knows: the same is accepted, another is not."""
    base, tuned, _ = pair
    base["other"], tuned["other"] = tensor, tensor.clone()
    assert broken(pair) == {}
    if tensor.numel():
        changed = tensor.clone().contiguous()
        changed.view(torch.uint8 if changed.ndim else torch.int32).bitwise_xor_(1)
        tuned["other"] = changed
        assert broken(pair)["other"].frozen_changed > 0


@pytest.fixture
def pair():
    """A base with a frozen zero and NaN, its tuned state, and the plan; the last layer is frozen."""
    net = denoiser()
    plan = random_plan(plan_tgd(net), 1).override({"3": "freeze", "0": "train"})
    with torch.no_grad():
        net[3].weight[0, 0, 0] = torch.tensor([0.0, torch.nan, 1.0])
    base = copy.deepcopy(net.state_dict())
    return base, trained(base, plan, 0), plan


def broken(pair):
    """By name, the tensors that changed and were not allowed to."""
    base, tuned, plan = pair
    return {record.name: record for record in compare(base, tuned, plan).tensors if not record.ok}


def test_zero_is_not_minus_zero_and_a_nan_has_a_payload(pair):
    _, tuned, _ = pair
    assert broken(pair) == {}
    tuned["3.weight"][0, 0, 0, 0] = -0.0
    assert broken(pair)["3.weight"].frozen_changed == 1
    tuned["3.weight"].view(torch.int32)[0, 0, 0, 1] ^= 1
    assert tuned["3.weight"][0, 0, 0, 1].isnan()
    assert broken(pair)["3.weight"].frozen_changed == 2


def test_keys_that_were_added_and_removed(pair):
    _, tuned, _ = pair
    tuned["head.weight"] = torch.ones(2, 2)
    del tuned["3.bias"]
    found = broken(pair)
    assert {name: record.state for name, record in found.items()} == {
        "3.bias": "removed",
        "head.weight": "added",
    }
    assert (found["3.bias"].layer, found["head.weight"].layer) == ("3", None)


def test_counters_may_be_missing_and_move(pair):
    _, tuned, _ = pair
    del tuned["1.num_batches_tracked"]
    assert broken(pair) == {}


def test_a_tensor_that_no_plan_knows_is_frozen_whole(pair):
    base, tuned, _ = pair
    base["window"] = torch.zeros(5)
    tuned["window"] = torch.tensor([0.0, 0, 0, 1, 0])
    record = broken(pair)["window"]
    assert (record.kind, record.frozen, record.frozen_changed, record.channels) == ("unknown", 5, 1, (3,))


def test_recast(pair):
    _, tuned, _ = pair
    exact = tuned["3.bias"].double()
    tuned["3.bias"] = exact
    assert (broken(pair)["3.bias"].state, broken(pair)["3.bias"].frozen_changed) == ("recast", 0)
    tuned["3.bias"] = exact + 1e-9
    assert broken(pair)["3.bias"].frozen_changed == 1
    assert broken(pair)["3.bias"].dtype == "float32 > float64"


def test_reshaped(pair):
    _, tuned, _ = pair
    tuned["3.weight"] = tuned["3.weight"][:, :8].clone()
    assert (broken(pair)["3.weight"].state, broken(pair)["3.weight"].shape) == (
        "reshaped",
        "1x16x3x3 > 1x8x3x3",
    )


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "3.weight", "1.running_mean"])
def test_rows_in_another_order_are_said_to_be_so(pair, name):
    """Of filters, of one number per channel, and of the channels that the next layer reads."""
    base, tuned, plan = pair
    plan = plan.override({"0": "freeze", "1": "freeze"})
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    tuned = copy.deepcopy(base)
    tuned[name] = tuned[name].index_select(1 if name == "3.weight" else 0, order)
    assert broken((base, tuned, plan))[name].state == "permuted"
    tuned[name].view(torch.int32).view(-1)[7] ^= 1
    assert broken((base, tuned, plan))[name].state == "changed"


def test_two_frozen_rows_that_changed_places_among_trained_ones(pair):
    base, _, plan = pair
    plan = random_plan(plan, 5)
    tuned = trained(base, plan, 0)
    frozen = (~plan.trainable("0")).nonzero().flatten()[:2]
    assert 0 < plan["0"].trainable < 15
    tuned["0.weight"][frozen] = tuned["0.weight"][frozen.flip(0)]
    record = broken((base, tuned, plan))["0.weight"]
    assert (record.state, record.channels) == ("permuted", tuple(frozen.tolist()))


def test_drift(pair):
    base, _, plan = pair
    plan = plan.override({"1": "freeze"})
    tuned = copy.deepcopy(base)
    tuned["0.weight"][2, 0, 0, 0] += 0.5
    tuned["0.bias"][4] -= 0.25
    drift = {layer.layer: layer for layer in compare(base, tuned, plan).layers}
    assert (drift["0"].trainable, drift["0"].moved) == (16, 2)
    assert drift["0"].largest == pytest.approx(0.5)
    assert drift["0"].rms == pytest.approx(((0.5**2 + 0.25**2) / 160) ** 0.5)
    assert (drift["3"].trainable, drift["3"].moved, drift["3"].largest) == (0, 0, 0.0)
    tuned["0.weight"][3] = torch.inf
    drift = {layer.layer: layer for layer in compare(base, tuned, plan).layers}
    assert (drift["0"].largest, drift["0"].rms, drift["0"].moved) == (None, None, 3)


def test_tied_weights_that_a_file_keeps_twice():
    """The plan has one of their names."""
    case = case_of("tied weights")
    plan = plan_tgd(case.model, case.inputs, phi=1.0)
    base = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    assert "second.weight" not in plan.parameter_masks()
    tuned = copy.deepcopy(base)
    for name in ("first.weight", "second.weight"):
        tuned[name][plan.parameter_masks()["first.weight"]] += 1
    assert compare(base, tuned, plan).ok
    tuned["second.weight"].view(-1)[0] += 1
    assert not compare(base, tuned, plan).ok


@pytest.mark.parametrize("change", ["missing", "narrower", "unmapped", "absurd"])
def test_a_plan_for_another_network_is_refused(pair, change):
    base, tuned, plan = pair
    if change == "missing":
        base = {name.replace("3.", "4."): tensor for name, tensor in base.items()}
    elif change == "narrower":
        base["3.weight"] = base["3.weight"][:, :8]
    elif change == "absurd":
        entry = plan.entries[0]
        rows = replace(entry.layer.parameters[0], shape=(2**40, 16, 1, 1), axis=1)
        layer = replace(entry.layer, parameters=(rows, *entry.layer.parameters))
        plan = replace(plan, entries=(replace(entry, layer=layer), *plan.entries[1:]))
    else:
        net = case_of("tied weights")
        plan = plan_tgd(net.model, net.inputs)
        base = copy.deepcopy(net.model.state_dict())
        del base["encoder.weight"]
    with pytest.raises(PlanError, match="The plan was not made for this base, which has"):
        compare(base, tuned, plan)


def test_a_frozen_network_is_itself():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
    found = compare(net.state_dict(), net.state_dict(), plan_tgd(net))
    assert found.ok
    assert {record.state for record in found.tensors} == {"unchanged"}
