"""A process is killed in the middle of a step; all are started again, and end with the same weights."""

from __future__ import annotations

import torch

from tests.distributed.launching import launch, run
from tests.distributed.subject import base
from tests.laws.subjects import assert_equal_tensors


def test_killed_and_resumed(tmp_path):
    killed = run("resume_worker", tmp_path)
    assert killed.returncode
    assert "SIGKILL" in killed.stderr, killed.stderr[-8000:]
    ranks = launch("resume_worker", tmp_path)
    original = base().state_dict()
    for how in ("compact", "layers", "sharded"):
        states = [rank[how]["resumed"] for rank in ranks]
        assert_equal_tensors(states[0], ranks[0][how]["uninterrupted"])
        assert_equal_tensors(states[1], states[0])
        assert any(not torch.equal(states[0][key], value) for key, value in original.items())
