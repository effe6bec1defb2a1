"""FSDP2: parameters in pieces on two processes; the state is the original's all the same."""

from __future__ import annotations

from typing import Any

import torch

from tests.distributed.launching import launch
from tests.distributed.subject import alone, base, operated
from tests.laws.subjects import assert_equal_tensors

FORMS: dict[str, dict[str, Any]] = {
    "compact": {},
    "compact, full flow": {"flow": "full"},
    "layers": {"form": "layers"},
}


def test_fsdp(tmp_path):
    ranks = launch("fsdp_worker", tmp_path)
    original = base().state_dict()
    for name, settings in FORMS.items():
        one, other = (rank[name] for rank in ranks)
        assert set(one["kinds"].values()) == {"DTensor"}
        assert one["shapes"] == {key: list(value.shape) for key, value in original.items()}
        assert one["frozen kept"], name
        assert_equal_tensors(one["before"], dict(original))
        assert_equal_tensors(other["state"], one["state"])
        expected = alone(operated(**settings))
        for key, value in one["state"].items():
            # The mean over two halves is the mean over all but for the order of the sums.
            torch.testing.assert_close(value, expected[key], rtol=1e-11, atol=1e-13)
    one, other = (rank["resume"] for rank in ranks)
    assert_equal_tensors(one["loaded"], ranks[0]["compact"]["state"])
    assert_equal_tensors(one["resumed"], one["uninterrupted"])
    assert_equal_tensors(other["resumed"], one["resumed"])
    for rank in ranks:
        loads, removed = rank["loads"], rank["removed"]
        assert_equal_tensors(loads["whole into TGD"], dict(base(seed=1).state_dict()))
        assert_equal_tensors(loads["whole of TGD into plain"], dict(base(seed=1).state_dict()))
        assert_equal_tensors(loads["pieces of plain into TGD"], dict(base(seed=2).state_dict()))
        assert "full_state_dict=True" in removed["message"]
        assert "size" in rank["sent by one"]
        assert_equal_tensors(removed["plain"], removed["state"])
