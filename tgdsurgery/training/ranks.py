"""Processes that train together must have the same plan."""

from __future__ import annotations

import itertools
from datetime import timedelta

from torch import distributed

from tgdsurgery.core.errors import PlanError
from tgdsurgery.core.plan import TGDPlan
from tgdsurgery.core.torch_private import default_store

# How long to wait for the other processes: mapping a large network takes them minutes at most.
MAX_WAIT = timedelta(minutes=10)
_rounds = itertools.count()  # each call of `agree_on` has keys of its own


def agree_on(plan: TGDPlan) -> None:
    """Compare the plan with those of the other processes; without a process group nothing is done.

    Scores near the threshold can round differently on another CPU or another torch. Networks of different
    shapes would then train together, or hang. The digests go through the group's key-value store: no tensor is
    sent, so it does not matter which device or backend the group has.

    Raises:
        PlanError: another process has a different plan, or does not call `apply_tgd`.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return
    store, own, turn = default_store(), distributed.get_rank(), next(_rounds)
    keys = [f"tgdsurgery/plan/{turn}/{rank}" for rank in range(distributed.get_world_size())]
    store.set(keys[own], plan.digest)
    try:
        store.wait(keys, MAX_WAIT)
    except RuntimeError as error:  # torch's DistStoreError
        raise PlanError(
            f"Another process did not call apply_tgd within {MAX_WAIT}.",
            "Call apply_tgd in all processes of the group, or before init_process_group.",
        ) from error
    differing = [rank for rank, key in enumerate(keys) if store.get(key).decode() != plan.digest]
    if differing:
        raise PlanError(
            f"The processes have different plans: that of rank {differing[0]} differs from that of rank {own}.",
            "Make the plan once, store it with to_json, and give it to apply_tgd(..., plan=...) in all processes.",
        )
