"""DistributedDataParallel: one network on two processes, as in one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.distributed.launching import launch
from tests.distributed.subject import alone, base, batch, operated
from tests.laws.subjects import assert_equal_tensors
from tgdsurgery import apply_tgd, remove_tgd

FORMS: dict[str, dict[str, Any]] = {
    "compact": {},
    "compact, full flow": {"flow": "full"},
    "layers": {"form": "layers"},
    "layers, full flow": {"form": "layers", "flow": "full"},
}


@pytest.mark.parametrize("own", [None, ["4.running_mean"]])
def test_ddp_is_told_what_is_frozen_until_tgd_is_removed(own):
    net = base()
    if own is not None:
        net._ddp_params_and_buffers_to_ignore = own
    tgd = apply_tgd(net, batch(0), phi=0.8, overrides={"9": "freeze"})
    told = tgd._ddp_params_and_buffers_to_ignore
    assert set(told) >= {"0._tgd_frozen_weight", "0._tgd_frozen_bias", "9.weight", "9.bias", *(own or [])}
    assert set(told) - set(own or []) <= {name for name, _ in tgd.named_buffers()}
    assert copy.deepcopy(tgd)._ddp_params_and_buffers_to_ignore == told
    assert vars(remove_tgd(tgd)).get("_ddp_params_and_buffers_to_ignore") == own
    assert vars(net).get("_ddp_params_and_buffers_to_ignore") == own


def test_ddp(tmp_path):
    ranks = launch("ddp_worker", tmp_path)
    for name, settings in FORMS.items():
        one, other = (rank[name] for rank in ranks)
        assert one["frozen kept"], name
        assert other["frozen kept"], name
        assert_equal_tensors(one["state"], other["state"])
        assert_equal_tensors(one["plain"], one["state"])
        assert one["wrapped keys"] == [f"module.{key}" for key in base().state_dict()]
        # Buffers that torch sends before every forward: statistics only, nothing frozen.
        assert one["sent"] == ["4.num_batches_tracked", "4.running_mean", "4.running_var"]
        expected = alone(operated(**settings))
        for key, value in one["state"].items():
            # The mean over two halves is the mean over all but for the order of the sums.
            torch.testing.assert_close(value, expected[key], rtol=1e-11, atol=1e-13)
        moved = [
            key for key, value in base().state_dict().items() if not torch.equal(value, one["state"][key])
        ]
        assert {"0.weight", "1.weight", "3.weight", "5.weight", "6.weight", "7.weight"} <= set(moved), name
    assert all("The processes have different plans" in rank["other weights"] for rank in ranks)
    assert any("appears not to match" in rank["other shapes"] for rank in ranks)
    assert_statistics_are_kept_in_part([rank["norm in part"] for rank in ranks])


def assert_statistics_are_kept_in_part(ranks: list[dict[str, Any]]) -> None:
    """Each process has batches of its own, so that statistics of trainable channels differ, and nothing else."""
    mask = operated(overrides={"4": 0.8}).tgd_plan.trainable("4")
    assert mask.any()
    assert not mask.all()
    one, other = (rank["state"] for rank in ranks)
    assert all(rank["frozen kept"] for rank in ranks)
    for name in ("4.running_mean", "4.running_var"):
        before = base().state_dict()[name]
        for state in (one, other):
            assert torch.equal(state[name][~mask], before[~mask])
            assert (state[name][mask] != before[mask]).all()
    parameters = [name for name, _ in base().named_parameters()]
    assert_equal_tensors({n: one[n] for n in parameters}, {n: other[n] for n in parameters})
