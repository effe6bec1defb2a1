"""Training libraries run a TGD network on two processes with no word about it, as one process does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.distributed.launching import launch
from tests.distributed.subject import alone, operated
from tests.laws.subjects import assert_equal_tensors


def assert_as_alone(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(state) == list(expected)
    for key, value in state.items():
        # The mean over two halves is the mean over all but for the order of the sums.
        torch.testing.assert_close(value, expected[key], rtol=1e-11, atol=1e-13)


def test_lightning(tmp_path):
    one, other = launch("lightning_worker", tmp_path)
    assert one["frozen kept"]
    assert other["frozen kept"]
    assert_equal_tensors(other["state"], one["state"])
    assert_equal_tensors(one["plain"], one["state"])
    assert_as_alone(one["state"], alone(operated()))
    assert_equal_tensors(one["resumed"], one["uninterrupted"])
    assert_equal_tensors(other["resumed"], one["resumed"])
    assert any(not torch.equal(value, one["state"][key]) for key, value in one["resumed"].items())


def test_accelerate(tmp_path):
    pytest.importorskip("accelerate")
    ranks = launch("accelerate_worker", tmp_path)
    for form, settings in (("compact", {}), ("layers", {"form": "layers"})):
        one, other = (rank[form] for rank in ranks)
        assert one["frozen kept"], form
        assert other["frozen kept"], form
        assert_equal_tensors(other["state"], one["state"])
        assert_equal_tensors(one["plain"], one["state"])
        assert_as_alone(one["state"], alone(operated(**settings)))
